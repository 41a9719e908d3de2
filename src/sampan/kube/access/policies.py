"""ValidatingAdmissionPolicy: rules about writes, written in CEL and kept in the cluster itself.

A policy says what must hold (`spec.validations`) and for which requests; a binding puts it in force, may narrow it, names its
parameters, and says what a violation means: Deny, Warn, Audit. A policy that cannot be evaluated counts as a violation or as
nothing, as its ``failurePolicy`` says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from sampan.kernel.errors import SampanError
from sampan.kube import cel
from sampan.kube.access import expressions
from sampan.kube.access.interface import AdmissionRequest, Authorizer, ObjectCache
from sampan.kube.access.matching import converted, described, exempt, matched, selected
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Kind, Object, Resource
from sampan.kube.resources import (
    NAMESPACES,
    VALIDATING_ADMISSION_POLICIES,
    VALIDATING_ADMISSION_POLICY_BINDINGS,
)
from sampan.kube.status import ApiError
from sampan.kube.types.resource import ResourceType, TypeRegistry
from sampan.kube.types.selectors import matches

AUDIT_KEY = "validation.policy.admission.k8s.io/validation_failure"
MESSAGE_LIMIT = 5 * 1024
"""Characters of a computed message; a longer one is not used."""
_CODES = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


class PolicyError(SampanError):
    """A policy or binding cannot be applied as it stands."""


class Violation(NamedTuple):
    """One way in which a request violates a policy."""

    policy: str
    binding: str
    message: str
    reason: str
    position: int
    """Of the validation in the policy; -1: the policy itself could not be evaluated."""
    actions: tuple[str, ...]


class ValidatingPolicies:
    """The admission plugin that evaluates policies."""

    def __init__(self, cache: ObjectCache, types: TypeRegistry, authorizer: Authorizer) -> None:
        self._cache = cache
        self._types = types
        self._authorizer = authorizer

    async def admit(self, request: AdmissionRequest) -> None:
        """Nothing: these policies only validate."""

    async def validate(self, request: AdmissionRequest) -> None:
        """Refuse what a binding denies; warn and record for the others."""
        bindings = self._cache.objects(VALIDATING_ADMISSION_POLICY_BINDINGS)
        if not bindings or exempt(request):
            return
        denied: Violation | None = None
        recorded: list[Object] = []
        async for violation in self._violations(request, bindings):
            if "Deny" in violation.actions and denied is None:
                denied = violation
            if "Warn" in violation.actions:
                request.warnings.append(
                    f"Validation failed for ValidatingAdmissionPolicy '{violation.policy}' with binding "
                    f"'{violation.binding}': {violation.message}"
                )
            if "Audit" in violation.actions:
                recorded.append(
                    {
                        "message": violation.message,
                        "policy": violation.policy,
                        "binding": violation.binding,
                        "expressionIndex": violation.position,
                        "validationActions": list(violation.actions),
                    }
                )
        if recorded:
            request.audit[AUDIT_KEY] = msgspec.json.encode(recorded).decode()
        if denied is not None:
            raise _denial(request, denied)

    async def _violations(self, request: AdmissionRequest, bindings: list[Object]) -> AsyncIterator[Violation]:
        for binding in sorted(bindings, key=lambda each: str(each["metadata"]["name"])):
            spec = binding.get("spec") or {}
            policy = self._cache.get(VALIDATING_ADMISSION_POLICIES, "", spec.get("policyName") or "")
            if policy is None:
                continue
            fails = (policy.get("spec") or {}).get("failurePolicy") != "Ignore"
            names = policy["metadata"]["name"], binding["metadata"]["name"]
            actions = tuple(spec.get("validationActions") or ("Deny",))
            try:
                async for message, reason, position in self._evaluate(request, policy, spec):
                    if position >= 0 or fails:
                        yield Violation(*names, message, reason, position, actions)
            except (PolicyError, cel.CelError) as error:
                if fails:
                    yield Violation(*names, str(error), "Invalid", -1, actions)

    async def _evaluate(
        self, request: AdmissionRequest, policy: Object, binding: Mapping[str, Any]
    ) -> AsyncIterator[tuple[str, str, int]]:
        """(message, reason, position) of each validation that fails or cannot be evaluated (position -1)."""
        spec = policy.get("spec") or {}
        type = self._matched(request, spec.get("matchConstraints") or {})
        if type is None:
            return
        narrowed = binding.get("matchResources")
        if narrowed and self._matched(request, narrowed, all_when_without_rules=True) is None:
            return
        values = expressions.bindings(
            request,
            self._authorizer,
            described=described(request, type, ""),
            obj=await converted(request.object, request.type, type),
            old=await converted(request.old_object, request.type, type),
            namespace=self._cache.get(NAMESPACES, "", request.namespace) if request.namespace else None,
        )
        for params in self._params(request, spec.get("paramKind"), binding.get("paramRef")):
            bound = {**values, "params": params}
            bound["variables"] = _variables(spec.get("variables") or (), bound)
            if expressions.first_unmet(list(spec.get("matchConditions") or ()), bound):
                continue
            for position, validation in enumerate(spec.get("validations") or ()):
                outcome = _outcome(validation, bound)
                if outcome is not None:
                    message, failed = outcome
                    yield message, validation.get("reason") or "Invalid", position if failed else -1
            self._annotate(request, policy, spec, bound)

    def _matched(
        self, request: AdmissionRequest, constraints: Mapping[str, Any], *, all_when_without_rules: bool = False
    ) -> ResourceType | None:
        equivalent = constraints.get("matchPolicy") != "Exact"
        excluded = constraints.get("excludeResourceRules") or ()
        if matched(request, self._types, excluded, equivalent=equivalent) is not None:
            return None
        rules = constraints.get("resourceRules") or ()
        if rules or not all_when_without_rules:
            type = matched(request, self._types, rules, equivalent=equivalent)
        else:
            type = request.type
        if type is None:
            return None
        chosen = selected(request, self._cache, constraints.get("namespaceSelector"), constraints.get("objectSelector"))
        return type if chosen else None

    def _params(
        self, request: AdmissionRequest, kind: Mapping[str, Any] | None, reference: Mapping[str, Any] | None
    ) -> list[Object | None]:
        """The parameter objects to evaluate with, one after the other; [None]: without."""
        if not kind or not reference:
            return [None]
        gvk = Kind.parse(kind.get("apiVersion") or "", kind.get("kind") or "")
        type = self._types.find_kind(gvk)
        if type is None:
            raise PolicyError(
                f"failed to configure policy: paramKind kind `{gvk.api_version}, Kind={gvk.kind}` not known"
            )
        namespace = reference.get("namespace") or ""
        if not type.namespaced and namespace:
            raise PolicyError(
                "failed to configure binding: paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
            )
        if type.namespaced and not namespace:
            namespace = request.namespace
            if not namespace:
                raise PolicyError(
                    "failed to configure binding: cannot use namespaced paramRef in policy binding that matches "
                    "cluster-scoped resources"
                )
        found = self._find(type.resource, namespace if type.namespaced else "", reference)
        if not found and reference.get("parameterNotFoundAction") == "Deny":
            raise PolicyError(
                "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
            )
        return list(found)

    def _find(self, resource: Resource, namespace: str, reference: Mapping[str, Any]) -> list[Object]:
        if name := reference.get("name"):
            found = self._cache.get(resource, namespace, name)
            return [found] if found is not None else []
        selector = reference.get("selector") or {}
        listed = self._cache.objects(resource, namespace or None)
        return [each for each in listed if matches(selector, each["metadata"].get("labels"))]

    def _annotate(
        self, request: AdmissionRequest, policy: Object, spec: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        for annotation in spec.get("auditAnnotations") or ():
            value = expressions.compiled(annotation["valueExpression"]).evaluate(values)
            if isinstance(value, str) and value:
                key = f"{policy['metadata']['name']}/{annotation['key']}"
                before = request.audit.get(key)
                request.audit[key] = value if before in (None, value) else f"{before}, {value}"


def _variables(declared: Any, values: Mapping[str, Any]) -> cel.Lazy:
    """A policy's variables; each may read those declared before it."""

    def computing(expression: str) -> Callable[[], Any]:
        return lambda: expressions.compiled(expression).evaluate({**values, "variables": lazy})

    lazy = cel.Lazy({each["name"]: computing(each["expression"]) for each in declared})
    return lazy


def _outcome(validation: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[str, bool] | None:
    """(message, True) when the validation fails, (message, False) when it cannot be evaluated, None when it holds."""
    expression = validation["expression"]
    try:
        result = expressions.compiled(expression).evaluate(values)
    except cel.CompileError as error:
        return f"compilation error: {error}", False
    except cel.CelError as error:
        return f"expression '{expression}' resulted in error: {error}", False
    if result is True:
        return None
    if result is not False:
        return f"expression '{expression}' resulted in error: it must evaluate to a bool", False
    return _message(validation, values), True


def _message(validation: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    if computed := validation.get("messageExpression"):
        try:
            text = expressions.compiled(computed).evaluate(values)
        except cel.CelError:
            text = ""  # the fixed message stands in, as the API promises
        if isinstance(text, str) and text.strip() and "\n" not in text.strip() and len(text) <= MESSAGE_LIMIT:
            return text.strip()
    message = str(validation.get("message") or "").strip()
    return message or f"failed expression: {str(validation['expression']).strip()}"


def _denial(request: AdmissionRequest, violation: Violation) -> ApiError:
    text = (
        f"ValidatingAdmissionPolicy '{violation.policy}' with binding '{violation.binding}' denied request: "
        f"{violation.message}"
    )
    error = refused(request, text)
    error.reason = violation.reason
    error.code = _CODES.get(violation.reason, 422)
    error.details["causes"] = [{"message": text}]
    return error
