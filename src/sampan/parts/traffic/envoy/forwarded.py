"""The ``Forwarded`` header that an application behind Knative expects, made as upstream's queue proxy makes it.

Nearly every request comes straight from its client over IPv4: for those the route adds a header that Envoy formats by itself
(``SIMPLE``). A list of proxies, an IPv6 address or ``X-Forwarded-Host`` need more than that: then, and only then, a Lua filter
writes the header first, and the route adds none.
"""

from __future__ import annotations

from typing import Any

from sampan.parts.traffic.xds import schema

FILTER = "sampan.forwarded"
ROUTES = "knative/"
"""How the names of routes begin whose requests carry the header."""
SIMPLE: dict[str, Any] = {
    "header": {
        "key": "forwarded",
        "value": "for=%REQ(X-FORWARDED-FOR)%;proto=%REQ(X-FORWARDED-PROTO)%",
    },
    "appendAction": "ADD_IF_ABSENT",
}
_SCRIPT = f"""
function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get("forwarded") ~= nil then return end
  if string.sub(handle:streamInfo():routeName(), 1, {len(ROUTES)}) ~= "{ROUTES}" then return end
  local hops = {{}}
  for hop in string.gmatch(headers:get("x-forwarded-for") or "", "[^,]+") do
    -- looked at once: a pattern for both ends takes seconds for a long line of spaces within, and nobody is served meanwhile
    local first = string.find(hop, "%S")
    if first then
      hop = string.match(hop, ".*%S", first)
      if string.find(hop, ":", 1, true) then hop = '"[' .. hop .. ']"' end
      hops[#hops + 1] = "for=" .. hop
    end
  end
  local first = {{}}
  if hops[1] then first[#first + 1] = hops[1] end
  local host, scheme = headers:get("x-forwarded-host"), headers:get("x-forwarded-proto")
  if host then first[#first + 1] = "host=" .. host end
  if scheme then first[#first + 1] = "proto=" .. scheme end
  hops[1] = table.concat(first, ";")
  headers:add("forwarded", table.concat(hops, ", "))
end
"""


def http_filter() -> dict[str, Any]:
    """The filter, skipped where `SIMPLE` says all there is to say."""
    lua = schema.any_of("envoy.extensions.filters.http.lua.v3.Lua", defaultSourceCode={"inlineString": _SCRIPT})
    skip = {
        "name": "skip",
        "typedConfig": schema.any_of("envoy.extensions.filters.common.matcher.action.v3.SkipFilter"),
    }
    straight = {
        "singlePredicate": {
            "input": _header("x-forwarded-for"),
            "valueMatch": {"safeRegex": {"googleRe2": {}, "regex": "[0-9.]+"}},
        }
    }
    named = {
        "singlePredicate": {
            "input": _header("x-forwarded-host"),
            "valueMatch": {"safeRegex": {"googleRe2": {}, "regex": ".+"}},
        }
    }
    predicate = {"andMatcher": {"predicate": [straight, {"notMatcher": named}]}}
    matcher = {"matcherList": {"matchers": [{"predicate": predicate, "onMatch": {"action": skip}}]}}
    typed = schema.any_of(
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        extensionConfig={"name": "envoy.filters.http.lua", "typedConfig": lua},
        xdsMatcher=matcher,
    )
    return {"name": FILTER, "typedConfig": typed}


def _header(name: str) -> dict[str, Any]:
    typed = schema.any_of("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", headerName=name)
    return {"name": name, "typedConfig": typed}
