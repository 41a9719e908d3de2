"""admissionregistration.k8s.io/v1: webhook configurations, admission policies and their bindings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import names, selectors
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

GROUP_VERSION = "admissionregistration.k8s.io/v1"


class WebhookConfigurationStrategy(BuiltinStrategy):
    """Mutating and validating webhook configurations."""

    columns = columns("Webhooks:integer")
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        for webhook in obj.get("webhooks") or ():
            webhook.setdefault("failurePolicy", "Fail")
            webhook.setdefault("matchPolicy", "Equivalent")
            webhook.setdefault("namespaceSelector", {})
            webhook.setdefault("objectSelector", {})
            webhook.setdefault("timeoutSeconds", 10)
            if self.kind.kind == "MutatingWebhookConfiguration":
                webhook.setdefault("reinvocationPolicy", "Never")
            service = (webhook.get("clientConfig") or {}).get("service")
            if service is not None:
                service.setdefault("port", 443)
            for rule in webhook.get("rules") or ():
                rule.setdefault("scope", "*")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj.get("webhooks") or ()), cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        seen: set[str] = set()
        for index, webhook in enumerate(obj.get("webhooks") or ()):
            here, name = f"webhooks[{index}]", webhook.get("name") or ""
            problems.invalid_all(f"{here}.name", name, names.fully_qualified_name(name))
            if name in seen:
                problems.duplicate(f"{here}.name", name)
            seen.add(name)
            self._check_webhook(webhook, here, problems)

    def _check_webhook(self, webhook: Object, here: str, problems: Problems) -> None:
        versions = webhook.get("admissionReviewVersions") or ()
        if not versions:
            why = "must specify one of v1, v1beta1"
            problems.required(f"{here}.admissionReviewVersions", why)
        elif not {"v1", "v1beta1"}.intersection(versions):
            why = "must include at least one of v1, v1beta1"
            problems.invalid(f"{here}.admissionReviewVersions", list(versions), why)
        effects = webhook.get("sideEffects")
        if effects is None:
            problems.required(f"{here}.sideEffects", "must specify one of None, NoneOnDryRun")
        elif effects not in ("None", "NoneOnDryRun"):
            problems.unsupported(f"{here}.sideEffects", effects, ("None", "NoneOnDryRun"))
        problems.one_of(f"{here}.failurePolicy", webhook.get("failurePolicy"), ("Fail", "Ignore"))
        problems.one_of(f"{here}.matchPolicy", webhook.get("matchPolicy"), ("Equivalent", "Exact"))
        seconds = webhook.get("timeoutSeconds")
        if seconds is not None and not 1 <= seconds <= 30:
            problems.invalid(f"{here}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds")
        if self.kind.kind == "MutatingWebhookConfiguration":
            policies = ("IfNeeded", "Never")
            problems.one_of(f"{here}.reinvocationPolicy", webhook.get("reinvocationPolicy"), policies)
        for field in ("namespaceSelector", "objectSelector"):
            selectors.validate_object(webhook.get(field), f"{here}.{field}", problems)
        _check_rules(webhook.get("rules") or (), f"{here}.rules", problems)
        _check_client(webhook.get("clientConfig") or {}, f"{here}.clientConfig", problems)


OPERATIONS = ("CONNECT", "CREATE", "DELETE", "UPDATE", "*")


def _check_rules(rules: Sequence[Object], path: str, problems: Problems) -> None:
    for index, rule in enumerate(rules):
        here, operations = f"{path}[{index}]", rule.get("operations") or ()
        if not operations:
            problems.required(f"{here}.operations")
        for place, operation in enumerate(operations):
            if operation not in OPERATIONS:
                problems.unsupported(f"{here}.operations[{place}]", operation, OPERATIONS)
        if "*" in operations and len(operations) > 1:
            problems.invalid(
                f"{here}.operations", list(operations), "if '*' is present, must not specify other operations"
            )
        for field in ("apiGroups", "apiVersions", "resources"):
            values = rule.get(field) or ()
            if not values:
                problems.required(f"{here}.{field}")
            elif "*" in values and len(values) > 1 and field != "resources":
                noun = "API groups" if field == "apiGroups" else "API versions"
                problems.invalid(f"{here}.{field}", list(values), f"if '*' is present, must not specify other {noun}")
        problems.one_of(f"{here}.scope", rule.get("scope"), ("*", "Cluster", "Namespaced"))


def _check_client(client: Object, path: str, problems: Problems) -> None:
    url: str | None = client.get("url")
    service: Object = client.get("service") or {}
    if (url is None) == (client.get("service") is None):
        problems.required(path, "exactly one of url or service is required")
    elif url is not None:
        if not url.startswith("https://"):
            scheme = url.partition(":")[0]
            why = "'https' is the only allowed URL scheme; desired format: https://host[/path]"
            problems.invalid(f"{path}.url", scheme, why)
    else:
        for field in ("namespace", "name"):
            if not service.get(field):
                problems.required(f"{path}.service.{field}", f"service {field} is required")
        port = service.get("port")
        if port is not None and names.port_number(port):
            problems.invalid(f"{path}.service.port", port, f"port is not valid: {names.port_number(port)[0]}")


class AdmissionPolicyStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicies."""

    columns = columns("Validations:integer", "ParamKind")
    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("failurePolicy", "Fail")
        if spec.get("matchConstraints") is not None:
            _default_match(spec["matchConstraints"])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        parameters = dig(obj, "spec", "paramKind")
        shown = f"{parameters.get('apiVersion')}/{parameters.get('kind')}" if parameters else cells.UNSET
        return [obj["metadata"]["name"], len(dig(obj, "spec", "validations", default=())), shown, cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        if not spec.get("validations") and not spec.get("auditAnnotations"):
            problems.required("spec.validations", "validations or auditAnnotations must contain at least one item")
        for index, validation in enumerate(spec.get("validations") or ()):
            if not (validation.get("expression") or "").strip():
                problems.required(f"spec.validations[{index}].expression", "expression is not specified")
        constraints = spec.get("matchConstraints")
        if constraints is None:
            problems.required("spec.matchConstraints")
        else:
            if not constraints.get("resourceRules"):
                problems.required("spec.matchConstraints.resourceRules")
            _check_rules(constraints.get("resourceRules") or (), "spec.matchConstraints.resourceRules", problems)
        problems.one_of("spec.failurePolicy", spec.get("failurePolicy"), ("Fail", "Ignore"))
        seen: set[str] = set()
        for index, variable in enumerate(spec.get("variables") or ()):
            for field in ("name", "expression"):
                if not variable.get(field):
                    problems.required(f"spec.variables[{index}].{field}")
            if variable.get("name") in seen:
                problems.duplicate(f"spec.variables[{index}].name", variable["name"])
            seen.add(variable.get("name") or "")


class AdmissionPolicyBindingStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicyBindings."""

    columns = columns("PolicyName", "ParamRef")
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        match = (obj.setdefault("spec", {})).get("matchResources")
        if match is not None:
            _default_match(match)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        reference = dig(obj, "spec", "paramRef")
        shown = cells.UNSET
        if reference:
            name, namespace = reference.get("name") or "*", reference.get("namespace")
            shown = f"{namespace}/{name}" if namespace else name
        return [obj["metadata"]["name"], dig(obj, "spec", "policyName", default=""), shown, cells.age(obj, now)]

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        if not spec.get("policyName"):
            problems.required("spec.policyName")
        actions = spec.get("validationActions") or ()
        if not actions:
            problems.required("spec.validationActions", "at least one validation action is required")
        for index, action in enumerate(actions):
            if action not in ("Audit", "Deny", "Warn"):
                problems.unsupported(f"spec.validationActions[{index}]", action, ("Audit", "Deny", "Warn"))
        if "Deny" in actions and "Warn" in actions:
            why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"
            problems.invalid("spec.validationActions", list(actions), why)
        reference = spec.get("paramRef")
        if reference is not None and bool(reference.get("name")) == (reference.get("selector") is not None):
            problems.required("spec.paramRef.name", "one of name or selector must be specified")


def _default_match(match: Object) -> None:
    match.setdefault("matchPolicy", "Equivalent")
    match.setdefault("namespaceSelector", {})
    match.setdefault("objectSelector", {})
    for rule in [*(match.get("resourceRules") or ()), *(match.get("excludeResourceRules") or ())]:
        rule.setdefault("scope", "*")


def types() -> list[ResourceType]:
    """The kinds of this module."""
    api = ("api-extensions",)
    return [
        declare(
            GROUP_VERSION,
            "mutatingwebhookconfigurations",
            "MutatingWebhookConfiguration",
            WebhookConfigurationStrategy(),
            categories=api,
        ),
        declare(
            GROUP_VERSION,
            "validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            AdmissionPolicyStrategy(),
            categories=api,
            subresources=(status("ValidatingAdmissionPolicy"),),
        ),
        declare(
            GROUP_VERSION,
            "validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            AdmissionPolicyBindingStrategy(),
            categories=api,
        ),
        declare(
            GROUP_VERSION,
            "validatingwebhookconfigurations",
            "ValidatingWebhookConfiguration",
            WebhookConfigurationStrategy(),
            categories=api,
        ),
    ]
