"""The CustomResourceDefinitions of the Gateway API (standard channel), with upstream's defaults, limits and rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sampan.kube.objects import Object

GROUP = "gateway.networking.k8s.io"
BUNDLE = "v1.6.0"

Schema = dict[str, Any]

HOSTNAME = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
PRECISE_HOSTNAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
GROUP_NAME = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
KIND_NAME = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"
NAMESPACE_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$"
DURATION = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
CONTROLLER_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9\/\-._~%!$&'()*+,;=:]+$"


# -- a small language for structural schemas


def text(
    pattern: str = "", *, low: int = 0, high: int = 0, default: str | None = None, one_of: Sequence[str] = ()
) -> Schema:
    """A string."""
    schema: Schema = {"type": "string"}
    if pattern:
        schema["pattern"] = pattern
    if low:
        schema["minLength"] = low
    if high:
        schema["maxLength"] = high
    if default is not None:
        schema["default"] = default
    if one_of:
        schema["enum"] = list(one_of)
    return schema


def number(low: int, high: int, default: int | None = None) -> Schema:
    """An int32 within bounds."""
    schema: Schema = {"type": "integer", "format": "int32", "minimum": low, "maximum": high}
    if default is not None:
        schema["default"] = default
    return schema


def record(
    properties: dict[str, Schema], required: Sequence[str] = (), rules: Sequence[tuple[str, str]] = (), **more: Any
) -> Schema:
    """An object; ``rules`` are (CEL expression, message)."""
    schema: Schema = {"type": "object", "properties": properties, **more}
    if required:
        schema["required"] = list(required)
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    return schema


def many(
    items: Schema,
    high: int,
    *,
    low: int = 0,
    keys: Sequence[str] = (),
    default: Any = None,
    atomic: bool = False,
    unique: bool = False,
) -> Schema:
    """A list; with ``keys`` a map-list, with ``unique`` a set."""
    schema: Schema = {"type": "array", "items": items, "maxItems": high}
    if low:
        schema["minItems"] = low
    if keys:
        schema["x-kubernetes-list-type"] = "map"
        schema["x-kubernetes-list-map-keys"] = list(keys)
    elif unique:
        schema["x-kubernetes-list-type"] = "set"
    elif atomic:
        schema["x-kubernetes-list-type"] = "atomic"
    if default is not None:
        schema["default"] = default
    return schema


def mapping(values: Schema, high: int) -> Schema:
    """A string-keyed map."""
    return {"type": "object", "additionalProperties": values, "maxProperties": high}


PORT = number(1, 65535)
NAME = text(low=1, high=253)
NAMESPACE = text(NAMESPACE_NAME, low=1, high=63)
SECTION = text(PRECISE_HOSTNAME, low=1, high=253)


def group(default: str | None = None) -> Schema:
    """An API group."""
    return text(GROUP_NAME, high=253, default=default)


def kind(default: str | None = None) -> Schema:
    """A kind name."""
    return text(KIND_NAME, low=1, high=63, default=default)


CONDITION = record(
    {
        "type": text(
            r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            high=316,
        ),
        "status": text(one_of=("True", "False", "Unknown")),
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "reason": text(r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", low=1, high=1024),
        "message": text(high=32768),
    },
    ("lastTransitionTime", "message", "reason", "status", "type"),
)
CONDITIONS = many(CONDITION, 8, keys=("type",))

PARENT_REFERENCE = record(
    {
        "group": group(GROUP),
        "kind": kind("Gateway"),
        "namespace": NAMESPACE,
        "name": NAME,
        "sectionName": SECTION,
        "port": PORT,
    },
    ("name",),
)

BACKEND_OBJECT = {
    "group": group(""),
    "kind": kind("Service"),
    "name": NAME,
    "namespace": NAMESPACE,
    "port": PORT,
}
NEEDS_PORT = (
    "(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true",
    "Must have port for Service reference",
)

HEADER = record({"name": text(HEADER_NAME, low=1, high=256), "value": text(low=1, high=4096)}, ("name", "value"))
HEADER_MODIFIER = record(
    {
        "set": many(HEADER, 16, keys=("name",)),
        "add": many(HEADER, 16, keys=("name",)),
        "remove": many({"type": "string"}, 16, unique=True),
    }
)
PATH_MODIFIER = record(
    {
        "type": text(one_of=("ReplaceFullPath", "ReplacePrefixMatch")),
        "replaceFullPath": text(high=1024),
        "replacePrefixMatch": text(high=1024),
    },
    ("type",),
    (
        (
            "self.type == 'ReplaceFullPath' ? has(self.replaceFullPath) : true",
            "replaceFullPath must be specified when type is set to 'ReplaceFullPath'",
        ),
        (
            "has(self.replaceFullPath) ? self.type == 'ReplaceFullPath' : true",
            "type must be 'ReplaceFullPath' when replaceFullPath is set",
        ),
        (
            "self.type == 'ReplacePrefixMatch' ? has(self.replacePrefixMatch) : true",
            "replacePrefixMatch must be specified when type is set to 'ReplacePrefixMatch'",
        ),
        (
            "has(self.replacePrefixMatch) ? self.type == 'ReplacePrefixMatch' : true",
            "type must be 'ReplacePrefixMatch' when replacePrefixMatch is set",
        ),
    ),
)
MIRROR = record(
    {
        "backendRef": record(dict(BACKEND_OBJECT), ("name",), (NEEDS_PORT,)),
        "percent": number(0, 100),
        "fraction": record(
            {
                "numerator": {"type": "integer", "format": "int32", "minimum": 0},
                "denominator": {"type": "integer", "format": "int32", "minimum": 1, "default": 100},
            },
            ("numerator",),
            (("self.numerator <= self.denominator", "numerator must be less than or equal to denominator"),),
        ),
    },
    ("backendRef",),
    (
        (
            "!(has(self.percent) && has(self.fraction))",
            "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter",
        ),
    ),
)
EXTENSION = record({"group": group(), "kind": kind(), "name": NAME}, ("group", "kind", "name"))
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
CORS = record(
    {
        "allowOrigins": many(text(low=1, high=253), 64, unique=True),
        "allowMethods": many(text(one_of=(*METHODS, "*")), 9, unique=True),
        "allowHeaders": many(text(HEADER_NAME, low=1, high=256), 64, unique=True),
        "exposeHeaders": many(text(HEADER_NAME, low=1, high=256), 64, unique=True),
        "maxAge": {"type": "integer", "format": "int32", "minimum": 1, "default": 5},
        "allowCredentials": {"type": "boolean"},
    }
)


def _union(options: dict[str, str]) -> list[tuple[str, str]]:
    """``type`` decides which one of these fields must, and which may, be set."""
    rules = []
    for name, field in options.items():
        rules.append(
            (
                f"!(has(self.{field}) && self.type != '{name}')",
                f"filter.{field} must be nil if the filter.type is not {name}",
            )
        )
        rules.append(
            (
                f"!(!has(self.{field}) && self.type == '{name}')",
                f"filter.{field} must be specified for {name} filter.type",
            )
        )
    return rules


_SHARED_FILTERS = {
    "RequestHeaderModifier": ("requestHeaderModifier", HEADER_MODIFIER),
    "ResponseHeaderModifier": ("responseHeaderModifier", HEADER_MODIFIER),
    "RequestMirror": ("requestMirror", MIRROR),
    "ExtensionRef": ("extensionRef", EXTENSION),
}
_HTTP_FILTERS = {
    **_SHARED_FILTERS,
    "RequestRedirect": (
        "requestRedirect",
        record(
            {
                "scheme": text(one_of=("http", "https")),
                "hostname": text(PRECISE_HOSTNAME, low=1, high=253),
                "path": PATH_MODIFIER,
                "port": PORT,
                "statusCode": {"type": "integer", "default": 302, "enum": [301, 302, 303, 307, 308]},
            }
        ),
    ),
    "URLRewrite": ("urlRewrite", record({"hostname": text(PRECISE_HOSTNAME, low=1, high=253), "path": PATH_MODIFIER})),
    "CORS": ("cors", CORS),
}


def _filters(options: dict[str, tuple[str, Schema]], *, http: bool) -> Schema:
    items = record(
        {"type": text(one_of=tuple(options)), **dict(options.values())},
        ("type",),
        _union({name: field for name, (field, _) in options.items()}),
    )
    schema = many(items, 16, atomic=True)
    once = ["RequestHeaderModifier", "ResponseHeaderModifier"]
    rules = []
    if http:
        once += ["RequestRedirect", "URLRewrite", "CORS"]
        rules.append(
            (
                "!(self.exists(f, f.type == 'RequestRedirect') && self.exists(f, f.type == 'URLRewrite'))",
                "May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite, but not both",
            )
        )
    rules += [(f"self.filter(f, f.type == '{name}').size() <= 1", f"{name} filter cannot be repeated") for name in once]
    schema["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    return schema


def _backend_refs(filters: Schema | None) -> Schema:
    properties = {**BACKEND_OBJECT, "weight": number(0, 1_000_000, 1)}
    if filters is not None:
        properties["filters"] = filters
    return many(record(properties, ("name",), (NEEDS_PORT,)), 16, atomic=True)


HEADER_MATCH = record(
    {
        "type": text(one_of=("Exact", "RegularExpression"), default="Exact"),
        "name": text(HEADER_NAME, low=1, high=256),
        "value": text(low=1, high=4096),
    },
    ("name", "value"),
)
_ABSOLUTE = "(self.type in ['Exact','PathPrefix']) ? self.value.startsWith('/') : true"
PATH_MATCH = record(
    {
        "type": text(one_of=("Exact", "PathPrefix", "RegularExpression"), default="PathPrefix"),
        "value": text(high=1024, default="/"),
    },
    (),
    (
        (_ABSOLUTE, "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']"),
        *(
            (
                f"(self.type in ['Exact','PathPrefix']) ? !self.value.contains('{bad}') : true",
                f"must not contain '{bad}' when type one of ['Exact', 'PathPrefix']",
            )
            for bad in ("//", "/./", "/../", "%2f", "%2F", "#")
        ),
        *(
            (
                f"(self.type in ['Exact','PathPrefix']) ? !self.value.endsWith('{bad}') : true",
                f"must not end with '{bad}' when type one of ['Exact', 'PathPrefix']",
            )
            for bad in ("/..", "/.")
        ),
    ),
    default={"type": "PathPrefix", "value": "/"},
)
HTTP_MATCH = record(
    {
        "path": PATH_MATCH,
        "headers": many(HEADER_MATCH, 16, keys=("name",)),
        "queryParams": many(HEADER_MATCH, 16, keys=("name",)),
        "method": text(one_of=METHODS),
    }
)
_TIMEOUT_ORDER = (
    "!(has(self.request) && has(self.backendRequest) && duration(self.request) != duration('0s') && duration(self.backendRequest) > duration(self.request))",
    "backendRequest timeout cannot be longer than request timeout",
)
RETRY = record(
    {
        "codes": many({"type": "integer", "minimum": 400, "maximum": 599}, 32, atomic=True),
        "attempts": {"type": "integer"},
        "backoff": text(DURATION),
    }
)
SESSION = record(
    {
        "sessionName": text(high=128),
        "absoluteTimeout": text(DURATION),
        "idleTimeout": text(DURATION),
        "type": text(one_of=("Cookie", "Header"), default="Cookie"),
        "cookieConfig": record({"lifetimeType": text(one_of=("Permanent", "Session"), default="Session")}),
    },
    (),
    (
        (
            "!has(self.cookieConfig) || !has(self.cookieConfig.lifetimeType) || self.cookieConfig.lifetimeType != 'Permanent' || has(self.absoluteTimeout)",
            "AbsoluteTimeout must be specified when cookie lifetimeType is Permanent",
        ),
        (
            "!has(self.cookieConfig) || self.type != 'Header'",
            "cookieConfig can only be set with type Cookie",
        ),
    ),
)
HTTP_RULE = record(
    {
        "name": SECTION,
        "matches": many(HTTP_MATCH, 64, default=[{"path": {"type": "PathPrefix", "value": "/"}}], atomic=True),
        "filters": _filters(_HTTP_FILTERS, http=True),
        "backendRefs": _backend_refs(_filters(_HTTP_FILTERS, http=True)),
        "timeouts": record({"request": text(DURATION), "backendRequest": text(DURATION)}, (), (_TIMEOUT_ORDER,)),
        "retry": RETRY,
        "sessionPersistence": SESSION,
    },
    (),
    (
        (
            "(has(self.backendRefs) && size(self.backendRefs) > 0) ? (!has(self.filters) || self.filters.all(f, !has(f.requestRedirect))): true",
            "RequestRedirect filter must not be used together with backendRefs",
        ),
        (
            "(has(self.filters) && self.filters.exists_one(f, has(f.urlRewrite) && has(f.urlRewrite.path) && f.urlRewrite.path.type == 'ReplacePrefixMatch' && has(f.urlRewrite.path.replacePrefixMatch))) ? ((size(self.matches) != 1 || !has(self.matches[0].path) || self.matches[0].path.type != 'PathPrefix') ? false : true) : true",
            "When using URLRewrite filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified",
        ),
    ),
)
GRPC_MATCH = record(
    {
        "method": record(
            {
                "type": text(one_of=("Exact", "RegularExpression"), default="Exact"),
                "service": text(high=1024),
                "method": text(high=1024),
            },
            (),
            (
                (
                    "has(self.type) ? has(self.service) || has(self.method) : true",
                    "One or both of 'service' or 'method' must be specified",
                ),
            ),
        ),
        "headers": many(HEADER_MATCH, 16, keys=("name",)),
    }
)
GRPC_RULE = record(
    {
        "name": SECTION,
        "matches": many(GRPC_MATCH, 64, atomic=True),
        "filters": _filters(_SHARED_FILTERS, http=False),
        "backendRefs": _backend_refs(_filters(_SHARED_FILTERS, http=False)),
        "sessionPersistence": SESSION,
    }
)
STREAM_RULE = record({"name": SECTION, "backendRefs": _backend_refs(None) | {"minItems": 1}}, ("backendRefs",))

ROUTE_STATUS = record(
    {
        "parents": many(
            record(
                {
                    "parentRef": PARENT_REFERENCE,
                    "controllerName": text(CONTROLLER_NAME, low=1, high=253),
                    "conditions": CONDITIONS,
                },
                ("controllerName", "parentRef"),
            ),
            32,
            atomic=True,
        )
    },
    ("parents",),
)

ROUTE_KIND = record({"group": group(GROUP), "kind": kind()}, ("kind",))
CERTIFICATE_REFERENCE = record(
    {"group": group(""), "kind": kind("Secret"), "name": NAME, "namespace": NAMESPACE}, ("name",)
)
LABEL_SELECTOR = record(
    {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {
            "type": "array",
            "x-kubernetes-list-type": "atomic",
            "items": record(
                {
                    "key": {"type": "string"},
                    "operator": {"type": "string"},
                    "values": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"},
                },
                ("key", "operator"),
            ),
        },
    }
) | {"x-kubernetes-map-type": "atomic"}
LISTENER = record(
    {
        "name": SECTION,
        "hostname": text(HOSTNAME, low=1, high=253),
        "port": PORT,
        "protocol": text(
            r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\/[A-Za-z0-9]+$",
            low=1,
            high=255,
        ),
        "tls": record(
            {
                "mode": text(one_of=("Terminate", "Passthrough"), default="Terminate"),
                "certificateRefs": many(CERTIFICATE_REFERENCE, 64, atomic=True),
                "options": mapping(text(high=4096), 16),
            },
            (),
            (
                (
                    "self.mode == 'Terminate' ? size(self.certificateRefs) > 0 || size(self.options) > 0 : true",
                    "certificateRefs or options must be specified when mode is Terminate",
                ),
            ),
        ),
        "allowedRoutes": record(
            {
                "namespaces": record(
                    {"from": text(one_of=("All", "Selector", "Same"), default="Same"), "selector": LABEL_SELECTOR},
                    default={"from": "Same"},
                ),
                "kinds": many(ROUTE_KIND, 8, atomic=True),
            },
            default={"namespaces": {"from": "Same"}},
        ),
    },
    ("name", "port", "protocol"),
)
LISTENERS = many(LISTENER, 64, low=1, keys=("name",)) | {
    "x-kubernetes-validations": [
        {
            "rule": "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
            "message": "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']",
        },
        {
            "rule": "self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
            "message": "tls mode must be Terminate for protocol HTTPS",
        },
        {
            "rule": "self.all(l, l.protocol in ['TCP', 'UDP'] ? (!has(l.hostname) || l.hostname == '') : true)",
            "message": "hostname must not be specified for protocols ['TCP', 'UDP']",
        },
        {
            "rule": "self.all(l1, self.exists_one(l2, l1.name == l2.name))",
            "message": "Listener name must be unique within the Gateway",
        },
        {
            "rule": "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
            "message": "Combination of port, protocol and hostname must be unique for each listener",
        },
    ]
}
ADDRESS = record({"type": text(default="IPAddress", low=1, high=253), "value": text(high=253)})
AUTHORITY_REFERENCE = record(
    {"group": group(), "kind": kind(), "name": NAME, "namespace": NAMESPACE}, ("group", "kind", "name")
)
FRONTEND_TLS = record(
    {
        "validation": record(
            {
                "caCertificateRefs": many(AUTHORITY_REFERENCE, 8, low=1, atomic=True),
                "mode": text(one_of=("AllowValidOnly", "AllowInsecureFallback"), default="AllowValidOnly"),
            },
            ("caCertificateRefs",),
        )
    }
)
GATEWAY_SPEC = record(
    {
        "tls": record(
            {
                "frontend": record(
                    {
                        "default": FRONTEND_TLS,
                        "perPort": many(
                            record({"port": PORT, "tls": FRONTEND_TLS}, ("port", "tls")), 64, keys=("port",)
                        ),
                    },
                    ("default",),
                )
            }
        ),
        "gatewayClassName": NAME,
        "listeners": LISTENERS,
        "addresses": many(ADDRESS, 16, atomic=True),
        "infrastructure": record(
            {
                "labels": mapping(text(high=63), 8),
                "annotations": mapping(text(high=4096), 8),
                "parametersRef": record({"group": group(), "kind": kind(), "name": NAME}, ("group", "kind", "name")),
            }
        ),
        "allowedListeners": record(
            {
                "namespaces": record(
                    {
                        "from": text(one_of=("All", "Selector", "Same", "None"), default="None"),
                        "selector": LABEL_SELECTOR,
                    },
                    default={"from": "None"},
                )
            }
        ),
    },
    ("gatewayClassName", "listeners"),
)
_PENDING = {
    "lastTransitionTime": "1970-01-01T00:00:00Z",
    "message": "Waiting for controller",
    "reason": "Pending",
    "status": "Unknown",
}
LISTENER_STATUSES = many(
    record(
        {
            "name": SECTION,
            "supportedKinds": many(ROUTE_KIND, 8, atomic=True),
            "attachedRoutes": {"type": "integer", "format": "int32"},
            "conditions": CONDITIONS,
        },
        ("attachedRoutes", "conditions", "name"),
    ),
    64,
    keys=("name",),
)
GATEWAY_STATUS = record(
    {
        "addresses": many(
            record({"type": text(default="IPAddress"), "value": text(low=1, high=253)}, ("value",)), 16, atomic=True
        ),
        "conditions": CONDITIONS | {"default": [{**_PENDING, "type": "Accepted"}, {**_PENDING, "type": "Programmed"}]},
        "listeners": LISTENER_STATUSES,
        "attachedListenerSets": {"type": "integer", "format": "int32"},
    },
    default={"conditions": [{**_PENDING, "type": "Accepted"}, {**_PENDING, "type": "Programmed"}]},
)
LISTENER_SET_SPEC = record(
    {
        "parentRef": record(
            {"group": group(GROUP), "kind": kind("Gateway"), "namespace": NAMESPACE, "name": NAME}, ("name",)
        ),
        "listeners": LISTENERS,
    },
    ("listeners", "parentRef"),
)
LISTENER_SET_STATUS = record(
    {
        "conditions": CONDITIONS | {"default": [{**_PENDING, "type": "Accepted"}, {**_PENDING, "type": "Programmed"}]},
        "listeners": LISTENER_STATUSES,
    },
    default={"conditions": [{**_PENDING, "type": "Accepted"}, {**_PENDING, "type": "Programmed"}]},
)


def _route_spec(rule: Schema, *, hostnames: bool, default_rules: Any = None, required: Sequence[str] = ()) -> Schema:
    properties: dict[str, Schema] = {
        "parentRefs": many(PARENT_REFERENCE, 32, atomic=True),
        "rules": many(rule, 16, atomic=True, default=default_rules),
    }
    if hostnames:
        properties["hostnames"] = many(text(HOSTNAME, low=1, high=253), 16, atomic=True)
    return record(properties, required)


HTTP_ROUTE_SPEC = _route_spec(
    HTTP_RULE, hostnames=True, default_rules=[{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]
)
GRPC_ROUTE_SPEC = _route_spec(GRPC_RULE, hostnames=True)
TLS_ROUTE_SPEC = _route_spec(STREAM_RULE, hostnames=True, required=("rules",))
STREAM_ROUTE_SPEC = _route_spec(STREAM_RULE, hostnames=False, required=("rules",))

CLASS_SPEC = record(
    {
        "controllerName": text(CONTROLLER_NAME, low=1, high=253)
        | {"x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "Value is immutable"}]},
        "parametersRef": record(
            {"group": group(), "kind": kind(), "name": NAME, "namespace": NAMESPACE}, ("group", "kind", "name")
        ),
        "description": text(high=64),
    },
    ("controllerName",),
)
CLASS_STATUS = record(
    {
        "conditions": CONDITIONS | {"default": [{**_PENDING, "type": "Accepted"}]},
        "supportedFeatures": many(record({"name": text()}, ("name",)), 128, keys=("name",)),
    },
    default={"conditions": [{**_PENDING, "type": "Accepted"}]},
)
GRANT_SPEC = record(
    {
        "from": many(
            record({"group": group(), "kind": kind(), "namespace": NAMESPACE}, ("group", "kind", "namespace")),
            16,
            low=1,
            atomic=True,
        ),
        "to": many(record({"group": group(), "kind": kind(), "name": NAME}, ("group", "kind")), 16, low=1, atomic=True),
    },
    ("from", "to"),
)
POLICY_SPEC = record(
    {
        "targetRefs": many(
            record({"group": group(), "kind": kind(), "name": NAME, "sectionName": SECTION}, ("group", "kind", "name")),
            16,
            low=1,
            atomic=True,
        ),
        "validation": record(
            {
                "caCertificateRefs": many(
                    record({"group": group(), "kind": kind(), "name": NAME}, ("group", "kind", "name")), 8, atomic=True
                ),
                "wellKnownCACertificates": text(one_of=("System",)),
                "hostname": text(PRECISE_HOSTNAME, low=1, high=253),
                "subjectAltNames": many(
                    record(
                        {
                            "type": text(one_of=("Hostname", "URI")),
                            "hostname": text(HOSTNAME, low=1, high=253),
                            "uri": text(low=1, high=253),
                        },
                        ("type",),
                    ),
                    5,
                    atomic=True,
                ),
            },
            ("hostname",),
            (
                (
                    '!(has(self.caCertificateRefs) && size(self.caCertificateRefs) > 0 && has(self.wellKnownCACertificates) && self.wellKnownCACertificates != "")',
                    "must not contain both CACertificateRefs and WellKnownCACertificates",
                ),
                (
                    '(has(self.caCertificateRefs) && size(self.caCertificateRefs) > 0 || has(self.wellKnownCACertificates) && self.wellKnownCACertificates != "")',
                    "must specify either CACertificateRefs or WellKnownCACertificates",
                ),
            ),
        ),
        "options": mapping(text(high=4096), 16),
    },
    ("targetRefs", "validation"),
)
POLICY_STATUS = record(
    {
        "ancestors": many(
            record(
                {
                    "ancestorRef": PARENT_REFERENCE,
                    "controllerName": text(CONTROLLER_NAME, low=1, high=253),
                    "conditions": CONDITIONS,
                },
                ("ancestorRef", "controllerName"),
            ),
            16,
            atomic=True,
        )
    },
    ("ancestors",),
)

_AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
_HOSTNAMES = {"name": "Hostnames", "type": "string", "jsonPath": ".spec.hostnames"}


def _definition(
    kind_name: str,
    plural: str,
    versions: Sequence[str],
    spec: Schema,
    status: Schema | None,
    columns: Sequence[Object],
    *,
    short: Sequence[str] = (),
    cluster: bool = False,
    storage: str = "v1",
) -> Object:
    properties: dict[str, Schema] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if status is not None:
        properties["status"] = status
    served = []
    for version in versions:
        entry: Object = {
            "name": version,
            "served": True,
            "storage": version == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties, "required": ["spec"]}},
            "additionalPrinterColumns": [*columns, _AGE],
        }
        if status is not None:
            entry["subresources"] = {"status": {}}
        served.append(entry)
    names: Object = {
        "plural": plural,
        "singular": kind_name.lower(),
        "kind": kind_name,
        "listKind": f"{kind_name}List",
        "categories": ["gateway-api"],
    }
    if short:
        names["shortNames"] = list(short)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "annotations": {
                "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api",
                "gateway.networking.k8s.io/bundle-version": BUNDLE,
                "gateway.networking.k8s.io/channel": "standard",
            },
        },
        "spec": {"group": GROUP, "names": names, "scope": "Cluster" if cluster else "Namespaced", "versions": served},
    }


def _column(name: str, path: str) -> Object:
    return {"name": name, "type": "string", "jsonPath": path}


def all_definitions() -> list[Object]:
    """Every CustomResourceDefinition of the Gateway API that is served."""
    both = ("v1", "v1beta1")
    accepted = _column("Accepted", '.status.conditions[?(@.type=="Accepted")].status')
    return [
        _definition(
            "GatewayClass",
            "gatewayclasses",
            both,
            CLASS_SPEC,
            CLASS_STATUS,
            [_column("Controller", ".spec.controllerName"), accepted],
            short=("gc",),
            cluster=True,
        ),
        _definition(
            "Gateway",
            "gateways",
            both,
            GATEWAY_SPEC,
            GATEWAY_STATUS,
            [
                _column("Class", ".spec.gatewayClassName"),
                _column("Address", ".status.addresses[*].value"),
                _column("Programmed", '.status.conditions[?(@.type=="Programmed")].status'),
            ],
            short=("gtw",),
        ),
        _definition(
            "ListenerSet",
            "listenersets",
            ("v1",),
            LISTENER_SET_SPEC,
            LISTENER_SET_STATUS,
            [accepted, _column("Programmed", '.status.conditions[?(@.type=="Programmed")].status')],
            short=("lset",),
        ),
        _definition("HTTPRoute", "httproutes", both, HTTP_ROUTE_SPEC, ROUTE_STATUS, [_HOSTNAMES]),
        _definition("GRPCRoute", "grpcroutes", ("v1",), GRPC_ROUTE_SPEC, ROUTE_STATUS, [_HOSTNAMES]),
        _definition("TLSRoute", "tlsroutes", ("v1",), TLS_ROUTE_SPEC, ROUTE_STATUS, [_HOSTNAMES]),
        _definition("TCPRoute", "tcproutes", ("v1",), STREAM_ROUTE_SPEC, ROUTE_STATUS, []),
        _definition("UDPRoute", "udproutes", ("v1",), STREAM_ROUTE_SPEC, ROUTE_STATUS, []),
        _definition(
            "ReferenceGrant", "referencegrants", both, GRANT_SPEC, None, [], short=("refgrant",), storage="v1beta1"
        ),
        _definition(
            "BackendTLSPolicy", "backendtlspolicies", ("v1",), POLICY_SPEC, POLICY_STATUS, [], short=("btlspolicy",)
        ),
    ]
