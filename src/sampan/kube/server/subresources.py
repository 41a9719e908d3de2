"""Subresources that are small views of an object, or acts on it: status, scale, ephemeralcontainers, resize, finalize,
approval, binding, eviction, token.

Each view has two halves: what a client reads and patches (`view`), and how what it writes goes back into the object
(`merged`). The streaming subresources (log, exec, attach, portforward, proxy) are in ``connect``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Object, copy, dig
from sampan.kube.server.call import Call
from sampan.kube.status import FieldError, bad_request, conflict, invalid
from sampan.kube.types.qos import qos_class
from sampan.kube.types.resource import ResourceType

SCALE_API = "autoscaling/v1"

PIECES = frozenset({"ephemeralcontainers", "resize", "finalize", "approval", "binding"})
"""Subresources that change a piece of the object which the main path protects."""


def view(call: Call, obj: Object) -> Object:
    """What the subresource shows of an object."""
    return scale_of(call.type, obj) if call.subresource == "scale" else obj


def merged(call: Call, obj: Object, written: Object) -> Object:
    """The object after ``written`` has been put to its subresource; neither is changed.

    Raises:
        ApiError: 422, the subresource does not take that.
    """
    match call.subresource:
        case "scale":
            return _scaled(call, obj, written)
        case "ephemeralcontainers":
            return _with_ephemeral(call, obj, written)
        case "resize":
            return _resized(call, obj, written)
        case "finalize":
            result = copy(obj)
            result.setdefault("spec", {})["finalizers"] = list(dig(written, "spec", "finalizers", default=[]))
            _precondition(result, written)
            return result  # type: ignore[no-any-return]
        case "approval":
            result = copy(obj)
            conditions = dig(written, "status", "conditions")
            if conditions is not None:
                result.setdefault("status", {})["conditions"] = conditions
            _precondition(result, written)
            return result  # type: ignore[no-any-return]
    return written


def _precondition(result: Object, written: Object) -> None:
    revision = dig(written, "metadata", "resourceVersion")
    if revision:
        result["metadata"]["resourceVersion"] = revision
    else:
        result["metadata"].pop("resourceVersion", None)


# -- scale


def scale_of(type: ResourceType, obj: Object) -> Object:
    """The autoscaling/v1 Scale of an object."""
    paths = type.scale
    metadata = obj["metadata"]
    shown: Object = {
        field: metadata[field]
        for field in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if field in metadata
    }
    status: Object = {"replicas": int(dig(obj, *paths.status_replicas, default=0))}
    selector = selector_text(dig(obj, *paths.selector)) if paths.selector else ""
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": SCALE_API,
        "metadata": shown,
        "spec": {"replicas": int(dig(obj, *paths.spec_replicas, default=0))},
        "status": status,
    }


def selector_text(selector: Any) -> str:
    """A LabelSelector (or a plain map of labels, or a string) as a selector string."""
    if isinstance(selector, str):
        return selector
    if not isinstance(selector, Mapping):
        return ""
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    terms = [(key, f"{key}={value}") for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or ():
        key, values = expression["key"], ",".join(sorted(expression.get("values") or ()))
        text = {
            "In": f"{key} in ({values})",
            "NotIn": f"{key} notin ({values})",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }.get(expression.get("operator"), "")
        terms.append((key, text))
    return ",".join(text for _, text in sorted(terms))


def _scaled(call: Call, obj: Object, written: Object) -> Object:
    if written.get("kind", "Scale") != "Scale":
        raise bad_request(f"{written.get('kind')} cannot be handled as a Scale")
    metadata = written.get("metadata") or {}
    if metadata.get("name") and metadata["name"] != call.name:
        raise bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({call.name})"
        )
    replicas = dig(written, "spec", "replicas", default=0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise bad_request("json: cannot unmarshal into Go struct field ScaleSpec.spec.replicas of type int32")
    if replicas < 0:
        message = f"Invalid value: {replicas}: must be greater than or equal to 0"
        raise invalid("autoscaling", "Scale", call.name, [FieldError("spec.replicas", "FieldValueInvalid", message)])
    uid = metadata.get("uid")
    if uid and uid != obj["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {obj['metadata']['uid']}"
        raise conflict(call.type.resource, call.name, why)
    result: Object = copy(obj)
    place = result
    *parents, last = call.type.scale.spec_replicas
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = replicas
    _precondition(result, written)
    return result


# -- pieces of pods


def _with_ephemeral(call: Call, obj: Object, written: Object) -> Object:
    wanted = dig(written, "spec", "ephemeralContainers", default=[])
    present = dig(obj, "spec", "ephemeralContainers", default=[])
    by_name = {container.get("name"): container for container in wanted if isinstance(container, dict)}
    problems = []
    for index, container in enumerate(present):
        fresh = by_name.get(container["name"])
        path = f"spec.ephemeralContainers[{index}]"
        if fresh is None:
            message = f'Forbidden: existing ephemeral containers "{container["name"]}" may not be removed\n'
            problems.append(FieldError("spec.ephemeralContainers", "FieldValueForbidden", message))
        elif any(fresh.get(key) != value for key, value in container.items() if key in fresh):
            message = f'Forbidden: existing ephemeral containers "{container["name"]}" may not be changed\n'
            problems.append(FieldError(path, "FieldValueForbidden", message))
    if problems:
        raise invalid("", "Pod", call.name, problems)
    result: Object = copy(obj)
    if wanted:
        result["spec"]["ephemeralContainers"] = wanted
    _precondition(result, written)
    return result


def _resized(call: Call, obj: Object, written: Object) -> Object:
    result: Object = copy(obj)
    problems: list[FieldError] = []
    for field in ("containers", "initContainers"):
        wanted = {c.get("name"): c for c in dig(written, "spec", field, default=[]) if isinstance(c, dict)}
        for index, container in enumerate(result["spec"].get(field) or ()):
            fresh = wanted.get(container["name"])
            if fresh is None:
                continue
            problems += _unresizable(container, fresh, f"spec.{field}[{index}].resources")
            container["resources"] = copy(fresh.get("resources") or {})
            if "resizePolicy" in fresh:
                container["resizePolicy"] = copy(fresh["resizePolicy"])
    quality = qos_class(result["spec"])
    if quality != qos_class(obj["spec"]):
        message = f'Invalid value: "{quality}": Pod QOS Class may not change as a result of resizing'
        problems.append(FieldError("spec", "FieldValueInvalid", message))
    if problems:
        raise invalid("", "Pod", call.name, problems)
    _precondition(result, written)
    return result


def _unresizable(old: Object, new: Object, path: str) -> list[FieldError]:
    """What a resize may not do: take a request or limit away, or touch anything but cpu and memory."""
    problems = []
    for which in ("limits", "requests"):
        before: Object = dig(old, "resources", which, default={})
        after: Object = dig(new, "resources", which, default={})
        for name in ("cpu", "memory"):
            if name in before and name not in after:
                message = f"Forbidden: resource {which} cannot be removed"
                problems.append(FieldError(f"{path}.{which}", "FieldValueForbidden", message))
        others = (before.keys() | after.keys()) - {"cpu", "memory"}
        if any(before.get(name) != after.get(name) for name in others):
            message = "Forbidden: only cpu and memory resources are mutable"
            problems.append(FieldError(f"{path}.{which}", "FieldValueForbidden", message))
    return problems


# -- acts


def bound(call: Call, pod: Object, binding: Object, now: str) -> Object:
    """The pod after a Binding.

    Raises:
        ApiError: 409, it is already assigned or being deleted; 422, the binding is malformed.
    """
    target = binding.get("target") or {}
    node = target.get("name") or ""
    if target.get("kind") not in (None, "", "Node"):
        message = f'Unsupported value: "{target["kind"]}": supported values: "Node"'
        problem = FieldError("target.kind", "FieldValueNotSupported", message)
        raise invalid("", "Binding", call.name, [problem])
    if not node:
        raise invalid("", "Binding", call.name, [FieldError("target.name", "FieldValueRequired", "Required value")])
    uid = dig(binding, "metadata", "uid")
    if uid and uid != pod["metadata"]["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {pod['metadata']['uid']}"
        raise conflict(call.type.resource, call.name, why)
    if pod["metadata"].get("deletionTimestamp"):
        raise conflict(call.type.resource, call.name, f"pod {call.name} is being deleted, cannot be assigned to a host")
    current = dig(pod, "spec", "nodeName")
    if current:
        raise conflict(call.type.resource, call.name, f'pod {call.name} is already assigned to node "{current}"')
    if dig(pod, "spec", "schedulingGates"):
        raise conflict(call.type.resource, call.name, f"pod {call.name} has non-empty .spec.schedulingGates")
    result: Object = copy(pod)
    result["metadata"].pop("resourceVersion", None)
    result["spec"]["nodeName"] = node
    annotations = dig(binding, "metadata", "annotations")
    if annotations:
        result["metadata"].setdefault("annotations", {}).update(annotations)
    status = result.setdefault("status", {})
    others = [condition for condition in status.get("conditions") or () if condition.get("type") != "PodScheduled"]
    scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    status["conditions"] = [*others, scheduled]
    return result
