"""Answers on their way to the wire: headers, indentation, compression, and every error as its Status."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
import zlib
from collections.abc import Iterable, Mapping

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from sampan.kernel.clock import Clock
from sampan.kernel.http import PIECE, BodyTooLargeError, Pieces, SlowClientError
from sampan.kube.server import representation
from sampan.kube.status import ApiError, internal, timeout, too_large
from sampan.kube.store.interface import FullError, StoreError

log = logging.getLogger(__name__)

GZIP_FROM = 128 * 1024
"""Bytes from which an answer is compressed for clients that take gzip."""
_THREAD_FROM = 1024 * 1024
"""Bytes from which compressing is worth a thread."""
_GZIP_LEVEL = 1


_process = str(uuid.uuid4())[:-12]
_requests = itertools.count(1)


def audit_id() -> str:
    """An identifier of one request: unique to this process, and cheaper than a UUID's twelve random bytes."""
    return f"{_process}{next(_requests):012x}"


def error_of(error: BaseException) -> ApiError:
    """The API error that a failure is to its client. What nobody foresaw is logged and answered as a 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BodyTooLargeError):
        return too_large(error.limit)
    if isinstance(error, SlowClientError):
        return ApiError(408, "Timeout", str(error))
    if isinstance(error, FullError):
        return ApiError(507, "InsufficientStorage", f"the data directory's disk is full: {error}")
    if isinstance(error, StoreError):
        return internal(str(error))
    if isinstance(error, TimeoutError):
        return timeout("Timeout: request did not complete within the requested timeout")
    log.error("a request failed", exc_info=error)
    return internal(f"{type(error).__name__}: {error}")


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=31)
    return packer.compress(body) + packer.flush()


def peer_of(request: web.BaseRequest) -> str:
    """The address a request came from; 127.0.0.1 where it did not come by TCP, or is gone."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer[0] if isinstance(peer, tuple) else "127.0.0.1"


def _worth_compressing(request: web.BaseRequest) -> bool:
    """The client takes gzip and is on another machine: over loopback compressing costs several times what it saves."""
    if "gzip" not in request.headers.get("Accept-Encoding", ""):
        return False
    host = peer_of(request)
    return not (host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1"))


def warning_headers(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Warning headers, each text once."""
    headers = []
    for text in dict.fromkeys(texts):
        clean = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
        headers.append(("Warning", f'299 - "{clean}"'))
    return headers


async def reply(
    request: web.BaseRequest,
    body: bytes,
    *,
    code: int = 200,
    content_type: str = "application/json",
    headers: Iterable[tuple[str, str]] = (),
    compressible: bool = True,
) -> web.Response:
    """A response with the headers that every answer has."""
    fields: CIMultiDict[str] = CIMultiDict(headers)
    fields["Audit-Id"] = audit_id()
    fields.setdefault("Cache-Control", "no-cache, private")
    fields["Content-Type"] = content_type
    if compressible and len(body) >= GZIP_FROM and _worth_compressing(request):
        body = await asyncio.to_thread(_gzip, body) if len(body) >= _THREAD_FROM else _gzip(body)
        fields["Content-Encoding"] = "gzip"
        fields.add("Vary", "Accept-Encoding")
    whole = len(body) <= PIECE
    return web.Response(body=body if whole else Pieces(body, Clock()), status=code, headers=fields)


async def reply_object(
    request: web.BaseRequest,
    query: Mapping[str, list[str]],
    encoded: bytes,
    *,
    code: int = 200,
    yaml: bool = False,
    headers: Iterable[tuple[str, str]] = (),
) -> web.Response:
    """An encoded object (already in YAML if ``yaml``), indented when the client wants to read it."""
    if yaml:
        return await reply(request, encoded, code=code, content_type="application/yaml", headers=headers)
    if wants_pretty(request, query):
        encoded = representation.pretty(encoded)
    return await reply(request, encoded, code=code, headers=headers)


def wants_pretty(request: web.BaseRequest, query: Mapping[str, list[str]]) -> bool:
    """``pretty`` was asked for, or the client is a person's."""
    given = query.get("pretty")
    if given is not None:
        return given[0].lower() not in ("false", "0")
    return request.headers.get("User-Agent", "").startswith(("curl", "Wget", "Mozilla"))


async def reply_error(
    request: web.BaseRequest, error: ApiError, headers: Iterable[tuple[str, str]] = ()
) -> web.Response:
    """The Status of an error, with the headers that go with its code."""
    extra = list(headers)
    if error.retry_after is not None:
        extra.append(("Retry-After", str(error.retry_after)))
    if error.code == 401:
        extra.append(("WWW-Authenticate", 'Bearer realm="kubernetes"'))
    response = await reply(request, msgspec.json.encode(error.status()) + b"\n", code=error.code, headers=extra)
    if error.code in (408, 413):
        response.force_close()  # what is left of the body is not worth reading
    return response


async def reply_text(request: web.BaseRequest, text: str, code: int = 200) -> web.Response:
    """Plain text."""
    return await reply(request, text.encode(), code=code, content_type="text/plain; charset=utf-8")
