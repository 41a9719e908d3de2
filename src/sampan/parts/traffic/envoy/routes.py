"""Rules as Envoy routes.

The order of routes is the Gateway API's precedence; Envoy takes the first that matches. Each rule is encoded once and keeps
its bytes, and so does each host (``envoy.ports``); a RouteConfiguration is joined from them, so a change of one rule in
thousands costs that one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from sampan.parts.traffic.envoy import forwarded, gate
from sampan.parts.traffic.model import (
    Cors,
    Forward,
    HeaderEdit,
    Match,
    NameMatch,
    PathRewrite,
    Redirect,
    Respond,
    Retry,
    Rule,
    Session,
    Target,
)
from sampan.parts.traffic.xds import schema

log = logging.getLogger(__name__)

NO_SUCH_CLUSTER = "invalid-backend"
"""A cluster that never exists: its share of traffic answers 500."""
_REDIRECT_CODES = {
    301: "MOVED_PERMANENTLY",
    302: "FOUND",
    303: "SEE_OTHER",
    307: "TEMPORARY_REDIRECT",
    308: "PERMANENT_REDIRECT",
}
SESSION_FILTER = "envoy.filters.http.stateful_session"
SAFE_RETRY = Retry(attempts=2)
"""What every route retries unless told otherwise: only requests no backend has begun to work on."""


def route_configuration(name: str, hosts: Iterable[bytes]) -> bytes:
    """The wire form of a RouteConfiguration with these `virtual_host`s."""
    return b"".join((_route_configuration(name), *hosts))


@lru_cache(maxsize=1 << 10)
def _route_configuration(name: str) -> bytes:
    return schema.pack("envoy.config.route.v3.RouteConfiguration", {"name": name, "ignorePortInHostMatching": True})


def virtual_host(domain: str, rules: Iterable[Rule]) -> bytes:
    """A domain and its rules in order, as a field of a RouteConfiguration; rules that Envoy must not see are left out."""
    routes = [encoded(rule) for rule in rules if rule.wire.standing in ("new", "trusted")]
    return schema.field(2, b"".join((_virtual_host(domain), *routes)))


@lru_cache(maxsize=1 << 14)
def _virtual_host(domain: str) -> bytes:
    # what most rules retry is said once: that is half of what Envoy would have to read again at every change
    content = {"name": domain, "domains": [domain], "retryPolicy": _retry(SAFE_RETRY, None)}
    return schema.pack("envoy.config.route.v3.VirtualHost", content)


def encoded(rule: Rule) -> bytes:
    """The rule as a field of a virtual host, made once; nothing, and the rule is refused, where that cannot be done."""
    if rule.wire.encoded is None:
        try:
            rule.wire.encoded = schema.field(3, schema.pack("envoy.config.route.v3.Route", route(rule)))
        except Exception as error:
            log.exception("a rule of %s cannot be encoded", rule.name)
            rule.wire.encoded, rule.wire.standing, rule.wire.reason = b"", "refused", f"cannot be encoded: {error}"
    return rule.wire.encoded


def route(rule: Rule) -> dict[str, Any]:
    """A rule as an Envoy Route in JSON form."""
    made: dict[str, Any] = {"match": _match(rule.match), "name": rule.name}
    action = rule.action
    if isinstance(action, Respond):
        made["directResponse"] = {"status": action.status}
        if action.body:
            made["directResponse"]["body"] = {"inlineString": action.body}
    elif isinstance(action, Redirect):
        made["redirect"] = _redirect(action, rule.match)
    elif not any(target.weight for target in action.targets):
        made["directResponse"] = {"status": 500}
    else:
        made["route"] = _forward(action, rule.match)
    made |= _edits(rule.request, "request") | _edits(rule.response, "response")
    if isinstance(action, Forward) and action.forwarded:
        made.setdefault("requestHeadersToAdd", []).append(forwarded.SIMPLE)
    per_filter: dict[str, Any] = {}
    if rule.cors is not None:
        per_filter["envoy.filters.http.cors"] = _cors(rule.cors)
    if isinstance(action, Forward) and action.session is not None:
        per_filter[SESSION_FILTER] = _session(action.session, rule.match)
    if per_filter:
        made["typedPerFilterConfig"] = per_filter
    return made


def _match(match: Match) -> dict[str, Any]:
    made: dict[str, Any]
    kind, value = match.path
    if kind == "Exact":
        made = {"path": value}
    elif kind == "Regex":
        made = {"safeRegex": {"regex": value}}
    elif value.rstrip("/") == "":
        made = {"prefix": "/"}
    else:
        made = {"pathSeparatedPrefix": value.rstrip("/")}
    headers = [_name_match(one) for one in match.headers]
    if match.method:
        headers.append({"name": ":method", "stringMatch": {"exact": match.method}})
    if headers:
        made["headers"] = headers
    if match.share is not None:
        made["runtimeFraction"] = {"defaultValue": _fraction(*match.share)}
    if match.query:
        made["queryParameters"] = [_name_match(one) for one in match.query]
    return made


def _name_match(one: NameMatch) -> dict[str, Any]:
    if one.type == "Present":
        return {"name": one.name, "presentMatch": True}
    if one.type == "Regex":
        return {"name": one.name, "stringMatch": {"safeRegex": {"regex": one.value}}}
    return {"name": one.name, "stringMatch": {"exact": one.value}}


def _redirect(action: Redirect, match: Match) -> dict[str, Any]:
    made: dict[str, Any] = {"responseCode": _REDIRECT_CODES[action.status]}
    if action.scheme:
        made["schemeRedirect"] = action.scheme
    if action.host:
        made["hostRedirect"] = action.host
    if action.port is not None:
        made["portRedirect"] = action.port
    if action.path is not None:
        if action.path.type == "Full":
            made["pathRedirect"] = action.path.value
        else:
            made |= _prefix_rewrite(action.path.value, match)
    return made


def _forward(action: Forward, match: Match) -> dict[str, Any]:
    made: dict[str, Any] = {
        "timeout": _seconds(action.timeout),
        "clusterNotFoundResponseCode": "INTERNAL_SERVER_ERROR",
    }
    if action.retry is not None or action.try_timeout is not None or action.silence_timeout is not None:
        made["retryPolicy"] = _retry(action.retry or SAFE_RETRY, action.try_timeout, action.silence_timeout)
    if action.longest is not None:
        made["maxStreamDuration"] = {"maxStreamDuration": _seconds(action.longest)}
    if action.idle_timeout is not None:
        made["idleTimeout"] = _seconds(action.idle_timeout)
    targets = [target for target in action.targets if target.weight]
    if len(targets) == 1 and not (targets[0].request or targets[0].response or targets[0].host or targets[0].gate):
        made["cluster"] = targets[0].cluster or NO_SUCH_CLUSTER
    else:
        made["weightedClusters"] = {"clusters": [_weighted(target) for target in targets]}
    if action.rewrite is not None:
        made |= _rewrite(action.rewrite, match)
    if action.host:
        made["hostRewriteLiteral"] = action.host
    if action.mirrors:
        made["requestMirrorPolicies"] = [
            {
                "cluster": mirror.cluster,
                "disableShadowHostSuffixAppend": True,
                "runtimeFraction": {"defaultValue": _fraction(mirror.numerator, mirror.denominator)},
            }
            for mirror in action.mirrors
        ]
    if action.hash_source_ip:
        made["hashPolicy"] = [{"connectionProperties": {"sourceIp": True}}]
    return made


def _session(session: Session, match: Match) -> dict[str, Any]:
    if session.kind == "Header":
        state = schema.any_of(
            "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState", name=session.name
        )
    else:
        cookie = {"name": session.name, "path": _cookie_path(match), "ttl": _seconds(session.lifetime)}
        state = schema.any_of("envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState", cookie=cookie)
    stateful = {"sessionState": {"name": f"envoy.http.stateful_session.{session.kind.lower()}", "typedConfig": state}}
    return schema.any_of(
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute", statefulSession=stateful
    )


def _cookie_path(match: Match) -> str:
    """Sessions of rules for different paths do not meet."""
    return "/" if match.path.type == "Regex" else match.path.value


def _fraction(numerator: int, denominator: int) -> dict[str, Any]:
    scale = {100: "HUNDRED", 10_000: "TEN_THOUSAND", 1_000_000: "MILLION"}
    if denominator in scale:
        return {"numerator": numerator, "denominator": scale[denominator]}
    return {"numerator": round(numerator * 1_000_000 / denominator), "denominator": "MILLION"}


def _weighted(target: Target) -> dict[str, Any]:
    made: dict[str, Any] = {"name": target.cluster or NO_SUCH_CLUSTER, "weight": target.weight}
    made |= _edits(target.request, "request") | _edits(target.response, "response")
    if target.host:
        made["hostRewriteLiteral"] = target.host
    if target.gate:
        made["typedPerFilterConfig"] = {
            gate.FILTER: schema.any_of(
                "envoy.extensions.filters.http.lua.v3.LuaPerRoute", filterContext={"gate": target.gate}
            )
        }
    return made


def _rewrite(rewrite: PathRewrite, match: Match) -> dict[str, Any]:
    if rewrite.type == "Full":
        return {"regexRewrite": {"pattern": {"regex": "^/.*$"}, "substitution": _literal(rewrite.value)}}
    return _prefix_rewrite(rewrite.value, match)


def _prefix_rewrite(value: str, match: Match) -> dict[str, Any]:
    """Replace the matched prefix without a doubled or missing slash at the seam."""
    prefix, replacement = match.path.value.rstrip("/"), value.rstrip("/")
    if match.path.type != "Prefix":
        return {"prefixRewrite": value}
    if prefix and replacement:
        return {"prefixRewrite": replacement}
    pattern = f"^{re.escape(prefix)}/*" if prefix else "^/+"
    return {"regexRewrite": {"pattern": {"regex": pattern}, "substitution": _literal(f"{replacement}/")}}


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def _retry(retry: Retry, try_timeout: float | None, silence: float | None = None) -> dict[str, Any]:
    conditions = list(retry.on) + (["retriable-status-codes"] if retry.codes else [])
    made: dict[str, Any] = {
        "retryOn": ",".join(conditions),
        "numRetries": retry.attempts,
        "hostSelectionRetryMaxAttempts": "5",
        "retryHostPredicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typedConfig": schema.any_of("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
    }
    if retry.codes:
        made["retriableStatusCodes"] = list(retry.codes)
    if retry.backoff is not None:
        made["retryBackOff"] = {"baseInterval": _seconds(retry.backoff), "maxInterval": _seconds(retry.backoff * 10)}
    if try_timeout is not None:
        made["perTryTimeout"] = _seconds(try_timeout)
    if silence is not None:
        made["perTryIdleTimeout"] = _seconds(silence)
    return made


def _edits(edit: HeaderEdit, direction: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    added = [_header(*pair, "OVERWRITE_IF_EXISTS_OR_ADD") for pair in edit.set]
    added += [_header(*pair, "APPEND_IF_EXISTS_OR_ADD") for pair in edit.add]
    if added:
        made[f"{direction}HeadersToAdd"] = added
    if edit.remove:
        made[f"{direction}HeadersToRemove"] = list(edit.remove)
    return made


def _header(name: str, value: str, action: str) -> dict[str, Any]:
    # a percent sign would start one of Envoy's own substitutions
    header = {"key": name, "value": value.replace("%", "%%")}
    return {"header": header, "appendAction": action, "keepEmptyValue": True}


def _cors(cors: Cors) -> dict[str, Any]:
    origins = [
        {"safeRegex": {"regex": ".*".join(re.escape(part) for part in origin.split("*"))}}
        if "*" in origin
        else {"exact": origin}
        for origin in cors.origins
    ]
    made: dict[str, Any] = {
        "allowOriginStringMatch": origins,
        "maxAge": str(cors.max_age),
        "allowCredentials": cors.credentials,
        "forwardNotMatchingPreflights": True,
    }
    for key, values in (("allowMethods", cors.methods), ("allowHeaders", cors.headers), ("exposeHeaders", cors.expose)):
        if values:
            made[key] = ", ".join(values)
    return schema.any_of("envoy.extensions.filters.http.cors.v3.CorsPolicy", **made)


def _seconds(value: float | None) -> str:
    return "0s" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") + "s"
