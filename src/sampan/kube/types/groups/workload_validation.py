"""What the kinds that carry a pod template have in common: selector and template belong together, counts are not negative."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.status import FieldError
from sampan.kube.types import selectors
from sampan.kube.types.groups.pod_validation import validate_template
from sampan.kube.types.problems import Problems

_PERCENT = re.compile(r"[0-9]+%")


def validate_workload(
    spec: Object,
    problems: Problems,
    *,
    counts: Sequence[str] = (),
    restart_policies: Sequence[str] = ("Always",),
    kind: str = "deployment",
) -> None:
    """Selector, template and their match; ``counts`` are fields that may not be negative."""
    for field in counts:
        problems.at_least(f"spec.{field}", spec.get(field))
    selector, template = spec.get("selector"), spec.get("template") or {}
    if selector is None:
        problems.required("spec.selector")
    else:
        selectors.validate_object(selector, "spec.selector", problems)
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            problems.invalid("spec.selector", selector, f"empty selector is invalid for {kind}")
    labels = (template.get("metadata") or {}).get("labels") or {}
    if selector and not problems and not selectors.matches(selector, labels):
        why = "`selector` does not match template `labels`"
        problems.invalid("spec.template.metadata.labels", labels, why)
    validate_template(template, "spec.template", problems, spec.get("volumeClaimTemplates") or ())
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy not in restart_policies:
        problems.unsupported("spec.template.spec.restartPolicy", policy or "", restart_policies)


def selector_unchanged(new: Object, old: Object, problems: Problems) -> None:
    """The selector of a workload is immutable."""
    fresh, stored = (new.get("spec") or {}).get("selector"), (old.get("spec") or {}).get("selector")
    if fresh != stored:
        message = f"Invalid value: {_go_selector(fresh or {})}: field is immutable"
        problems.append(FieldError("spec.selector", "FieldValueInvalid", message))


def _go_selector(selector: Mapping[str, Any]) -> str:
    """A selector as Go prints it, which is what the error of an immutable selector is known by."""
    pairs = ", ".join(f'"{key}":"{value}"' for key, value in sorted((selector.get("matchLabels") or {}).items()))
    expressions = ", ".join(
        f'v1.LabelSelectorRequirement{{Key:"{e.get("key")}", Operator:"{e.get("operator")}", Values:[]string{{'
        + ", ".join(f'"{value}"' for value in e.get("values") or ())
        + "}}"
        for e in selector.get("matchExpressions") or ()
    )
    listed = f"[]v1.LabelSelectorRequirement{{{expressions}}}" if expressions else "[]v1.LabelSelectorRequirement(nil)"
    return f"v1.LabelSelector{{MatchLabels:map[string]string{{{pairs}}}, MatchExpressions:{listed}}}"


def validate_int_or_percent(value: Any, path: str, problems: Problems, *, limit_percent: bool = False) -> None:
    """A count that is not negative, or a percentage."""
    if value is None:
        return
    if isinstance(value, str):
        if not _PERCENT.fullmatch(value):
            why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
            problems.invalid(path, value, why)
        elif limit_percent and int(value[:-1]) > 100:
            problems.invalid(path, value, "must not be greater than 100%")
    elif value < 0:
        problems.invalid(path, value, "must be greater than or equal to 0")


def is_zero(value: Any) -> bool:
    """Whether a count or percentage is nothing."""
    return value in (0, None) or (isinstance(value, str) and value.rstrip("%").strip("0") == "")
