"""HTTPRoute and GRPCRoute rules as the model's rules."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from sampan.kube.objects import Object
from sampan.parts.traffic.model import (
    EVERYTHING,
    Action,
    Cors,
    Forward,
    HeaderEdit,
    Match,
    Mirror,
    NameMatch,
    PathMatch,
    PathRewrite,
    Redirect,
    Respond,
    Retry,
    Rule,
    Session,
    Target,
    edit_of,
)
from sampan.parts.traffic.places import Place
from sampan.parts.traffic.references import Backends, Origin, Problem

_DURATION = re.compile(r"(\d+)(h|ms|m|s)")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""What a cookie or header may be called."""
BREAKS = "\0\r\n"
"""What Envoy refuses in headers and paths."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class UnsupportedError(Exception):
    """A rule asks for what cannot be done; ``reason`` is that of the Accepted or PartiallyInvalid condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Translated:
    """A route's rules and what was wrong with it."""

    rules: list[Rule] = field(default_factory=list)
    unresolved: list[Problem] = field(default_factory=list)
    invalid: list[Problem] = field(default_factory=list)
    """Rules left out altogether."""
    redirects: bool = False
    """Some rule redirects: what it says depends on where it is served."""


def seconds(duration: str | None) -> float | None:
    """A Gateway API duration; None and zero mean without limit."""
    if not duration:
        return None
    total = sum(int(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))
    return total or None


def http_rules(route: Object, backends: Backends, place: Place | None = None, secure: bool = False) -> Translated:
    """The rules of an HTTPRoute served at ``place`` (None: on the usual ports), over TLS when ``secure``."""
    return _translate(route, backends, "HTTPRoute", place or Place("", 80), secure)


def grpc_rules(route: Object, backends: Backends) -> Translated:
    """The rules of a GRPCRoute."""
    return _translate(route, backends, "GRPCRoute", Place("", 80), False)


def _translate(route: Object, backends: Backends, kind: str, place: Place, secure: bool) -> Translated:
    metadata = route["metadata"]
    origin = Origin("gateway.networking.k8s.io", kind, metadata["namespace"])
    name = f"{kind.lower()}/{metadata['namespace']}/{metadata['name']}"
    result = Translated()
    default: list[Mapping[str, Any]] = [{"matches": [{}]}]
    for position, rule in enumerate(route["spec"].get("rules") or default):
        try:
            default_session = f"sampan-session-{zlib.crc32(f'{name}/{position}'.encode()):08x}"
            common = _Common(rule, origin, backends, result, kind == "GRPCRoute", place, secure, default_session)
            matches = [
                _grpc_match(one) if kind == "GRPCRoute" else _http_match(one) for one in rule.get("matches") or [{}]
            ]
        except UnsupportedError as error:
            result.invalid.append(Problem(error.reason, f"rule {position}: {error}"))
            continue
        for index, match in enumerate(matches):
            order = (metadata.get("creationTimestamp") or "", metadata["namespace"], metadata["name"], position, index)
            made = Rule(match, common.action, common.request, common.response, common.cors, order, name)
            result.rules.append(made)
    return result


class _Common:
    """What all matches of one rule share."""

    def __init__(
        self,
        rule: Mapping[str, Any],
        origin: Origin,
        backends: Backends,
        result: Translated,
        grpc: bool,
        place: Place,
        secure: bool,
        default_session: str,
    ) -> None:
        self.request = HeaderEdit()
        self.response = HeaderEdit()
        self.cors: Cors | None = None
        redirect: Redirect | None = None
        rewrite: PathRewrite | None = None
        host = ""
        mirrors: list[Mirror] = []
        broken = False
        for one in rule.get("filters") or ():
            match one["type"]:
                case "RequestHeaderModifier":
                    self.request = _edit(one["requestHeaderModifier"])
                case "ResponseHeaderModifier":
                    self.response = _edit(one["responseHeaderModifier"])
                case "RequestRedirect":
                    redirect = _redirect(one["requestRedirect"], place, secure)
                    result.redirects = True
                case "URLRewrite":
                    host = one["urlRewrite"].get("hostname") or ""
                    rewrite = _path(one["urlRewrite"].get("path"))
                case "RequestMirror":
                    mirrors += _mirror(one["requestMirror"], origin, backends, result, grpc=grpc)
                case "CORS":
                    self.cors = _cors(one["cors"])
                case "ExtensionRef":
                    reference = one["extensionRef"]
                    text = f"filter {reference.get('kind')} {reference.get('name')} does not exist"
                    result.unresolved.append(Problem("BackendNotFound", text))
                    broken = True
                case other:
                    raise UnsupportedError("UnsupportedValue", f"filter type {other} is not supported")
        if redirect is not None and (rewrite is not None or host):
            raise UnsupportedError("IncompatibleFilters", "RequestRedirect and URLRewrite exclude each other")
        self.action: Action
        if broken:
            self.action = Respond(500)
        elif redirect is not None:
            self.action = redirect
        else:
            timeouts = rule.get("timeouts") or {}
            targets = tuple(_target(one, origin, backends, result, grpc=grpc) for one in rule.get("backendRefs") or ())
            session = _session(rule.get("sessionPersistence"), default_session)
            if session is not None:
                targets = _united(targets, backends)
            self.action = Forward(
                targets,
                timeout=seconds(timeouts.get("request")),
                try_timeout=seconds(timeouts.get("backendRequest")),
                rewrite=rewrite,
                host=host,
                retry=_retry(rule.get("retry")),
                mirrors=tuple(mirrors),
                session=session,
                hash_source_ip=any(target.cluster and backends.made[target.cluster].affinity for target in targets),
            )


def _target(
    reference: Mapping[str, Any], origin: Origin, backends: Backends, result: Translated, *, grpc: bool
) -> Target:
    request, response = HeaderEdit(), HeaderEdit()
    for one in reference.get("filters") or ():
        if one["type"] == "RequestHeaderModifier":
            request = _edit(one["requestHeaderModifier"])
        elif one["type"] == "ResponseHeaderModifier":
            response = _edit(one["responseHeaderModifier"])
        else:
            raise UnsupportedError("UnsupportedValue", f"filter {one['type']} is not supported on a backendRef")
    weight = 1 if reference.get("weight") is None else int(reference["weight"])
    resolved = backends.resolve(origin, reference, grpc=grpc)
    if isinstance(resolved, Problem):
        result.unresolved.append(resolved)
        return Target("", weight, request, response)
    return Target(resolved, weight, request, response)


def _edit(source: Mapping[str, Any]) -> HeaderEdit:
    made = edit_of(source)
    for name, value in (*made.set, *made.add):
        if any(sign in value for sign in BREAKS):
            raise UnsupportedError("UnsupportedValue", f"the value of header {name} contains a line break")
        if name.lower() == "host" or name.startswith(":"):
            raise UnsupportedError(
                "UnsupportedValue", f"header {name} cannot be modified; rewrite the hostname instead"
            )
    return made


def _mirror(
    source: Mapping[str, Any], origin: Origin, backends: Backends, result: Translated, *, grpc: bool
) -> list[Mirror]:
    resolved = backends.resolve(origin, source["backendRef"], grpc=grpc)
    if isinstance(resolved, Problem):
        result.unresolved.append(resolved)
        return []
    if source.get("fraction"):
        fraction = source["fraction"]
        return [Mirror(resolved, int(fraction["numerator"]), int(fraction.get("denominator") or 100))]
    percent = source.get("percent")
    return [Mirror(resolved, 100 if percent is None else int(percent))]


def _redirect(source: Mapping[str, Any], place: Place, secure: bool) -> Redirect:
    """The port is the one named, else the usual one of a named scheme, else the listener's."""
    host, scheme = source.get("hostname") or "", source.get("scheme") or ""
    port = source.get("port")
    if port is None and scheme:
        port = place.https if scheme == "https" else place.http
    elif port is None:
        port = place.port
    usual = 443 if (scheme or ("https" if secure else "http")) == "https" else 80
    # The usual port is left out of the Location. Envoy keeps a port that the request's Host names, unless it is the usual
    # one of the request's own scheme; where clients have to name another, ours is said too.
    if port == usual and (host or place.port in (80, 443)):
        port = None
    return Redirect(int(source.get("statusCode") or 302), scheme, host, port, _path(source.get("path")))


def _path(source: Mapping[str, Any] | None) -> PathRewrite | None:
    if source is None:
        return None
    field = "replaceFullPath" if source["type"] == "ReplaceFullPath" else "replacePrefixMatch"
    path = source.get(field) or "/"
    if any(sign in path for sign in BREAKS):
        raise UnsupportedError("UnsupportedValue", f"{field} contains a line break")
    return PathRewrite("Full" if field == "replaceFullPath" else "Prefix", path)


def _cors(source: Mapping[str, Any]) -> Cors:
    return Cors(
        tuple(source.get("allowOrigins") or ()),
        tuple(source.get("allowMethods") or ()),
        tuple(source.get("allowHeaders") or ()),
        tuple(source.get("exposeHeaders") or ()),
        int(source.get("maxAge") or 5),
        bool(source.get("allowCredentials")),
    )


def _retry(source: Mapping[str, Any] | None) -> Retry | None:
    if source is None:
        return None
    codes = tuple(int(code) for code in source.get("codes") or ())
    return Retry(int(source.get("attempts") or 1), codes, seconds(source.get("backoff")))


def _united(targets: Sequence[Target], backends: Backends) -> tuple[Target, ...]:
    """Targets among which sessions are kept: one cluster over all of them, and the share of those that cannot be resolved."""
    live = [one for one in targets if one.weight and one.cluster]
    if len(live) < 2:
        return tuple(targets)
    if any(one.request or one.response for one in live):
        raise UnsupportedError("UnsupportedValue", "sessionPersistence over backends with filters of their own")
    cluster = backends.union(tuple((one.cluster, one.weight) for one in live))
    if cluster is None:
        message = "sessionPersistence over backends that differ in protocol, TLS or session affinity"
        raise UnsupportedError("UnsupportedValue", message)
    lost = [one for one in targets if one.weight and not one.cluster]
    return (Target(cluster, sum(one.weight for one in live)), *lost)


def _session(source: Mapping[str, Any] | None, default: str) -> Session | None:
    if source is None:
        return None
    if seconds(source.get("idleTimeout")):
        raise UnsupportedError("UnsupportedValue", "sessionPersistence.idleTimeout is not supported")
    name, lifetime = source.get("sessionName") or default, seconds(source.get("absoluteTimeout"))
    if not _TOKEN.fullmatch(name):
        raise UnsupportedError("UnsupportedValue", f"sessionName {name!r} is no name of a cookie or header")
    if source.get("type") != "Header":
        return Session(name, "Cookie", lifetime)
    if lifetime:
        raise UnsupportedError("UnsupportedValue", "sessionPersistence.absoluteTimeout is for cookies only")
    return Session(name, "Header")


def _http_match(source: Mapping[str, Any]) -> Match:
    path = source.get("path") or {}
    kind, value = path.get("type") or "PathPrefix", path.get("value") or "/"
    if kind == "RegularExpression":
        matched = PathMatch("Regex", _regex(value))
    else:
        if any(sign in value for sign in "?#\0\r\n"):
            raise UnsupportedError("UnsupportedValue", f"path {value!r} has characters that no path contains")
        matched = PathMatch("Exact" if kind == "Exact" else "Prefix", value)
    return Match(
        matched,
        source.get("method") or "",
        _names(source.get("headers"), fold=True),
        _names(source.get("queryParams"), fold=False),
    )


def _names(sources: Any, *, fold: bool) -> tuple[NameMatch, ...]:
    """Header or query matches; of equal names only the first counts."""
    found: dict[str, NameMatch] = {}
    for one in sources or ():
        name = one["name"].lower() if fold else one["name"]
        kind = "Regex" if one.get("type") == "RegularExpression" else "Exact"
        value = _regex(one["value"]) if kind == "Regex" else one["value"]
        found.setdefault(name, NameMatch(name, kind, value))  # type: ignore[arg-type]
    return tuple(found.values())


def _grpc_match(source: Mapping[str, Any]) -> Match:
    method = source.get("method") or {}
    service, name = method.get("service") or "", method.get("method") or ""
    headers = _names(source.get("headers"), fold=True)
    if not service and not name:
        return Match(EVERYTHING, headers=headers)
    if method.get("type") == "RegularExpression":
        pattern = f"/{_regex(service) if service else '[^/]+'}/{_regex(name) if name else '[^/]+'}"
        return Match(PathMatch("Regex", pattern), headers=headers)
    if service and name:
        return Match(PathMatch("Exact", f"/{service}/{name}"), headers=headers)
    if service:
        return Match(PathMatch("Prefix", f"/{service}"), headers=headers)
    return Match(PathMatch("Regex", f"/[^/]+/{re.escape(name)}"), headers=headers)


def _regex(pattern: str) -> str:
    """A pattern Envoy's engine takes."""
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise UnsupportedError("UnsupportedValue", f"regular expression {pattern!r} is invalid: {why}") from None
    return pattern
