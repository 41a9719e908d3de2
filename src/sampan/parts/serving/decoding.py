"""Can an object be read? What Knative's defaulting webhook asks first, for it reads JSON into typed structs.

Defaults and validation take every field for what its type says, and null for absent; what is not so ends here, in Go's words.
A template's pods are checked against the built-in ``PodSpec``, what Knative adds against the tables of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Kind, Object, copy
from sampan.kube.status import ApiError
from sampan.kube.types.schema_check import conform
from sampan.parts.serving.findings import denied

WEBHOOK = "webhook.serving.knative.dev"
_POD_SPEC = "io.k8s.api.core.v1.PodSpec"
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_REVISION = {
    "containerConcurrency": int,
    "timeoutSeconds": int,
    "responseStartTimeoutSeconds": int,
    "idleTimeoutSeconds": int,
}
_TARGET = {
    "tag": str,
    "revisionName": str,
    "configurationName": str,
    "latestRevision": bool,
    "percent": int,
    "url": str,
}
_GO = {int: "int64", str: "string", bool: "bool", dict: "struct", list: "slice"}
_JSON = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def read(plural: str, obj: Object) -> None:
    """Leave an object as the webhook reads it: nulls, in place, for absent.

    Raises:
        ApiError: 400, a field has the wrong type.
    """
    spec = _struct(obj, "spec", "spec")
    if plural == "revisions":
        obj["spec"] = _revision(spec, "spec")
        return
    if plural in ("services", "configurations"):
        template = _struct(spec, "template", "spec.template")
        if "metadata" in template:
            template["metadata"] = _shaped(template["metadata"] or {}, _OBJECT_META, "spec.template.metadata")
        if template.get("spec") is None:
            template.pop("spec", None)
        else:
            template["spec"] = _revision(template["spec"], "spec.template.spec")
    if plural == "domainmappings":
        _fields(spec, {"ref": dict, "tls": dict}, "spec")
    if spec.get("traffic") is None:
        spec.pop("traffic", None)
        return
    _want(spec["traffic"], list, "spec.traffic")
    for target in spec["traffic"]:
        _want(target, dict, "spec.traffic")
        _fields(target, _TARGET, "spec.traffic")


def _struct(parent: Object, name: str, path: str) -> Object:
    if parent.get(name) is None:
        parent[name] = {}
    _want(parent[name], dict, path)
    found: Object = parent[name]
    return found


def _fields(obj: Object, types: Mapping[str, type], path: str) -> None:
    for name in [name for name in types if name in obj]:
        if obj[name] is None:
            del obj[name]
        else:
            _want(obj[name], types[name], f"{path}.{name}")


def _want(value: Any, wanted: type, path: str) -> None:
    if type(value) is not wanted:
        kind = _JSON.get(type(value), "null")
        raise _refused(f"json: cannot unmarshal {kind} into Go struct field {path} of type {_GO[wanted]}")


def _revision(spec: Any, path: str) -> Object:
    _want(spec, dict, path)
    own = {name: spec[name] for name in _REVISION if name in spec}
    _fields(own, _REVISION, path)
    return _shaped({name: spec[name] for name in spec if name not in _REVISION}, _POD_SPEC, path) | own


def _shaped(value: Any, definition: str, path: str) -> Object:
    """The value itself, so that quantities stay as they are written; with its nulls gone if it has any."""
    _want(value, dict, path)
    made: Object = copy(value)
    kind = definition.rpartition(".")[2]
    try:
        conform(made, definition, Kind("", "v1", kind))
    except ApiError as error:
        raise _refused(error.message.partition(f"as a {kind}: ")[2]) from None
    return made if _has_null(value) else value


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _refused(why: str) -> ApiError:
    return denied(f"mutation failed: cannot decode incoming new object: {why}", WEBHOOK)
