"""Everything that is not a resource: discovery, OpenAPI, version, health, metrics, and the ServiceAccount issuer's keys."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from sampan.kube.access.interface import ServiceAccountTokens
from sampan.kube.server import openapi_v2, representation
from sampan.kube.server.answers import reply, reply_object, reply_text
from sampan.kube.server.discovery import Discovery, Document
from sampan.kube.server.negotiation import clauses
from sampan.kube.server.openapi import OpenApi
from sampan.kube.server.options import Query, text
from sampan.kube.server.version import version_info
from sampan.kube.status import method_not_allowed, not_acceptable

_HEALTH = ("healthz", "livez", "readyz")
_V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2"

Check = Callable[[], str]
"""A health check: an empty string, or why it fails."""


class Endpoints:
    """Serves the paths outside the resources."""

    def __init__(
        self,
        discovery: Discovery,
        openapi: OpenApi,
        registry: CollectorRegistry,
        *,
        tokens: ServiceAccountTokens | None = None,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self._discovery = discovery
        self._openapi = openapi
        self._registry = registry
        self._tokens = tokens
        self.checks: dict[str, Check] = {"ping": lambda: "", **(checks or {})}
        """Health checks by name; parts may add theirs."""

    async def serve(self, request: web.BaseRequest, path: str, query: Query) -> web.StreamResponse:
        """Answer a path that names no resource."""
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        path = path.rstrip("/") or "/"
        first, _, rest = path.strip("/").partition("/")
        # generated clients ask for /version/ and /openid/v1/jwks/
        plain = path.rstrip("/") or "/"
        pretty = {name: list(values) for name, values in query.items()}
        if first in ("api", "apis"):
            document = self._discovery.find(path, request.headers.get("Accept", ""))
            if document is not None:
                return await self._document(request, document, aggregated=not rest)
        elif first in _HEALTH:
            return await self._health(request, first, rest, query)
        elif plain == "/version":
            return await reply_object(request, {"pretty": ["true"]}, representation.json(version_info()))
        elif first == "openapi":
            response = await self._open_api(request, rest, query)
            if response is not None:
                return response
        elif plain == "/swagger-2.0.0.pb-v1":
            raise not_acceptable(("application/json",))
        elif plain == "/metrics":
            body = generate_latest(self._registry)
            return await reply(request, body, content_type="text/plain; version=0.0.4; charset=utf-8")
        elif plain == "/.well-known/openid-configuration" and self._tokens is not None:
            return await reply_object(request, pretty, representation.json(self._tokens.discovery()))
        elif plain == "/openid/v1/jwks" and self._tokens is not None:
            return await reply(
                request, representation.json(self._tokens.keys()), content_type="application/jwk-set+json"
            )
        elif plain == "/":
            return await reply_object(request, {"pretty": ["true"]}, representation.json({"paths": self._root()}))
        return await reply_text(request, "404 page not found\n", 404)

    def _root(self) -> list[str]:
        paths = ["/.well-known/openid-configuration", "/api", "/apis", "/metrics", "/openapi/v2", "/openapi/v3"]
        paths += ["/openid/v1/jwks", "/version", *(f"/{name}" for name in _HEALTH)]
        paths += [f"/{path}" for path in self._openapi.index()["paths"]]
        return sorted(paths)

    @staticmethod
    async def _document(request: web.BaseRequest, document: Document, *, aggregated: bool) -> web.Response:
        tag = f'"{document.etag}"'
        headers = [("ETag", tag), ("Vary", "Accept"), ("Cache-Control", "public")] if aggregated else []
        if aggregated and request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return await reply(request, document.body, content_type=document.content_type, headers=headers)

    async def _health(self, request: web.BaseRequest, kind: str, name: str, query: Query) -> web.Response:
        if name and name not in self.checks:
            return await reply_text(request, "404 page not found\n", 404)
        excluded = set(query.get("exclude", ()))
        names = [name] if name else [check for check in self.checks if check not in excluded]
        failures = {check: why for check in names if (why := self.checks[check]())}
        if not failures and ("verbose" not in query or name):
            return await reply_text(request, "ok")
        lines = [f"[-]{check} failed: {failures[check]}" if check in failures else f"[+]{check} ok" for check in names]
        if failures:
            return await reply_text(request, "\n".join([*lines, f"{kind} check failed"]) + "\n", 500)
        return await reply_text(request, "\n".join([*lines, f"{kind} check passed"]) + "\n")

    async def _open_api(self, request: web.BaseRequest, rest: str, query: Query) -> web.StreamResponse | None:
        if rest == "v3":
            return await reply(request, representation.json(self._openapi.index()))
        if rest.startswith("v3/"):
            return await self._v3(request, rest.removeprefix("v3/").strip("/"), query)
        if rest == "v2":
            return await self._v2(request, protobuf=_prefers_protobuf(request.headers.get("Accept", "")))
        return None

    async def _v3(self, request: web.BaseRequest, path: str, query: Query) -> web.StreamResponse | None:
        current = self._openapi.hash(path)
        if not current:
            return None
        asked = text(query, "hash")
        if asked and asked != current:
            return web.Response(status=301, headers={"Location": f"/openapi/v3/{path}?hash={current}"})
        compressed = await asyncio.to_thread(self._openapi.document, path)
        assert compressed is not None
        caching = "public, immutable" if asked else "no-cache, private"
        return await _compressed(request, compressed, current, "application/json", caching)

    async def _v2(self, request: web.BaseRequest, *, protobuf: bool) -> web.StreamResponse:
        compressed, hash = await asyncio.to_thread(self._openapi.v2, protobuf=protobuf)
        kind = openapi_v2.MEDIA_TYPE if protobuf else "application/json"
        return await _compressed(request, compressed, hash, kind, "no-cache, private")


def _prefers_protobuf(accept: str) -> bool:
    """The first clause that can be served is the protobuf one."""
    for media, _ in clauses(accept):
        if media.startswith(_V2_PROTOBUF):
            return True
        if media in ("application/json", "application/*", "*/*"):
            return False
    if accept:
        raise not_acceptable(("application/json", openapi_v2.MEDIA_TYPE))
    return False


async def _compressed(
    request: web.BaseRequest, compressed: bytes, tag: str, content_type: str, caching: str
) -> web.StreamResponse:
    """A document that is kept in gzip form."""
    headers = [("ETag", f'"{tag}"'), ("Cache-Control", caching), ("Vary", "Accept-Encoding")]
    if request.headers.get("If-None-Match") == f'"{tag}"':
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers.append(("Content-Encoding", "gzip"))
        body = compressed
    else:
        body = zlib.decompress(compressed, wbits=31)
    return await reply(request, body, content_type=content_type, headers=headers, compressible=False)
