"""Admission's own expressions are compiled when they are written, not when they are first needed.

The CEL of admission policies and of webhooks' match conditions that does not compile is refused with the place of the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sampan.kube import cel
from sampan.kube.access import expressions
from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import name_of
from sampan.kube.objects import Object
from sampan.kube.resources import MUTATING_WEBHOOKS, VALIDATING_ADMISSION_POLICIES, VALIDATING_WEBHOOKS
from sampan.kube.status import invalid
from sampan.kube.types.problems import Problems


class PolicyExpressions(Plugin):
    """Refuses policies and webhook configurations whose expressions do not compile."""

    resources = (VALIDATING_ADMISSION_POLICIES, MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)

    async def validate(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        problems = Problems()
        for path, expression in _expressions(request.object):
            try:
                expressions.compiled(expression)
            except cel.CompileError as error:
                problems.invalid(path, expression, f"compilation failed: {error}")
        if problems:
            raise invalid(request.type.resource.group, request.type.kind, name_of(request), problems)


def _expressions(obj: Object) -> Iterator[tuple[str, str]]:
    spec: Any = obj.get("spec") or {}
    for holder, path in [
        (spec, "spec"),
        *((each, f"webhooks[{i}]") for i, each in enumerate(obj.get("webhooks") or ())),
    ]:
        for i, condition in enumerate(holder.get("matchConditions") or ()):
            yield f"{path}.matchConditions[{i}].expression", condition.get("expression") or ""
    for i, validation in enumerate(spec.get("validations") or ()):
        yield f"spec.validations[{i}].expression", validation.get("expression") or ""
        if validation.get("messageExpression"):
            yield f"spec.validations[{i}].messageExpression", validation["messageExpression"]
    for i, variable in enumerate(spec.get("variables") or ()):
        yield f"spec.variables[{i}].expression", variable.get("expression") or ""
    for i, annotation in enumerate(spec.get("auditAnnotations") or ()):
        yield f"spec.auditAnnotations[{i}].valueExpression", annotation.get("valueExpression") or ""
