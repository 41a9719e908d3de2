"""CEL in admission: the variables that match conditions and policies see, and the ``authorizer`` they may ask.

``object`` and ``oldObject`` are null where there is none, ``request`` is the AdmissionReview's request without the objects,
``namespaceObject`` the namespace, ``params`` what a policy's binding refers to, ``variables`` the policy's own, computed when
first read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sampan.kube import cel
from sampan.kube.access.interface import AdmissionRequest, Attributes, Authorizer, Decision, User
from sampan.kube.access.tokens import GROUP_ALL, USER_PREFIX
from sampan.kube.objects import Resource

_NAMES = ("object", "oldObject", "request", "namespaceObject", "params", "variables", "authorizer")
VARIABLES: Mapping[str, cel.Type] = dict.fromkeys(_NAMES, cel.DYN)


class _Authorizer(cel.Lazy):
    """CEL's ``authorizer``: asks what the requester, or a service account, may do."""

    __slots__ = ("authorizer", "user")
    cel_type = "kubernetes.authorization.Authorizer"

    def __init__(self, authorizer: Authorizer, user: User, request: AdmissionRequest | None = None) -> None:
        super().__init__({} if request is None else {"requestResource": lambda: _requested(self, request)})
        self.authorizer = authorizer
        self.user = user


@dataclass(frozen=True, slots=True)
class _PathCheck:
    asker: _Authorizer
    path: str
    cel_type = "kubernetes.authorization.PathCheck"


@dataclass(frozen=True, slots=True)
class _GroupCheck:
    asker: _Authorizer
    group: str
    cel_type = "kubernetes.authorization.GroupCheck"


@dataclass(frozen=True, slots=True)
class _ResourceCheck:
    asker: _Authorizer
    group: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    cel_type = "kubernetes.authorization.ResourceCheck"


@dataclass(frozen=True, slots=True)
class _Answer:
    decision: Decision
    cel_type = "kubernetes.authorization.Decision"


def _requested(asker: _Authorizer, request: AdmissionRequest) -> _ResourceCheck:
    resource = request.type.resource
    return _ResourceCheck(asker, resource.group, resource.plural, request.subresource, request.namespace, request.name)


def _check_path(check: _PathCheck, verb: str) -> _Answer:
    return _Answer(check.asker.authorizer.authorize(Attributes(check.asker.user, verb, path=check.path)))


def _check_resource(check: _ResourceCheck, verb: str) -> _Answer:
    resource = Resource(check.group, "*", check.resource)
    attributes = Attributes(check.asker.user, verb, resource, check.subresource, check.namespace, check.name)
    return _Answer(check.asker.authorizer.authorize(attributes))


def _service_account(asker: _Authorizer, namespace: str, name: str) -> _Authorizer:
    groups = (GROUP_ALL, f"{GROUP_ALL}:{namespace}", "system:authenticated")
    return _Authorizer(asker.authorizer, User(f"{USER_PREFIX}{namespace}:{name}", groups))


_A = "kubernetes.authorization"
_FUNCTIONS = tuple(
    cel.overload(signature, call)
    for signature, call in (
        (f"<{_A}.Authorizer>.path(string) -> {_A}.PathCheck", _PathCheck),
        (f"<{_A}.Authorizer>.group(string) -> {_A}.GroupCheck", _GroupCheck),
        (f"<{_A}.Authorizer>.serviceAccount(string, string) -> {_A}.Authorizer", _service_account),
        (f"<{_A}.GroupCheck>.resource(string) -> {_A}.ResourceCheck", lambda c, r: _ResourceCheck(c.asker, c.group, r)),
        (f"<{_A}.ResourceCheck>.subresource(string) -> {_A}.ResourceCheck", lambda c, s: replace(c, subresource=s)),
        (f"<{_A}.ResourceCheck>.namespace(string) -> {_A}.ResourceCheck", lambda c, n: replace(c, namespace=n)),
        (f"<{_A}.ResourceCheck>.name(string) -> {_A}.ResourceCheck", lambda c, n: replace(c, name=n)),
        (f"<{_A}.PathCheck>.check(string) -> {_A}.Decision", _check_path),
        (f"<{_A}.ResourceCheck>.check(string) -> {_A}.Decision", _check_resource),
        (f"<{_A}.Decision>.allowed() -> bool", lambda answer: answer.decision.allowed),
        (f"<{_A}.Decision>.reason() -> string", lambda answer: answer.decision.reason),
        (f"<{_A}.Decision>.errored() -> bool", lambda answer: False),
        (f"<{_A}.Decision>.error() -> string", lambda answer: ""),
    )
)


@lru_cache(maxsize=4096)
def compiled(expression: str) -> cel.Program:
    """A program over the variables of admission; the same text is compiled once.

    Raises:
        CompileError: it does not compile.
    """
    return cel.compile(expression, VARIABLES, _FUNCTIONS)


def bindings(
    request: AdmissionRequest,
    authorizer: Authorizer,
    *,
    described: Mapping[str, Any],
    obj: Any = ...,
    old: Any = ...,
    namespace: Any = None,
    params: Any = None,
) -> dict[str, Any]:
    """The variables' values for a request; ``obj`` and ``old`` when they are seen in another version."""
    return {
        "object": request.object if obj is ... else obj,
        "oldObject": request.old_object if old is ... else old,
        "request": described,
        "namespaceObject": namespace,
        "params": params,
        "authorizer": _Authorizer(authorizer, request.user, request),
        "variables": cel.Lazy({}),
    }


def first_unmet(conditions: list[Mapping[str, Any]], values: Mapping[str, Any]) -> bool:
    """Whether some match condition is false, so that the matcher does not apply.

    A condition that is false outweighs others that fail.

    Raises:
        CelError: none is false, but at least one cannot be evaluated.
    """
    failures = []
    for condition in conditions:
        try:
            if compiled(condition["expression"]).evaluate(values) is not True:
                return True
        except cel.CelError as error:
            failures.append(f"expression '{condition['expression']}' resulted in error: {error}")
    if failures:
        raise cel.CelError("; ".join(failures))
    return False
