"""Passing plain HTTP on: which headers travel, and how an answer flows back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    import aiohttp

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding",
     "upgrade", "host", "content-length", "authorization", "cookie"}
)  # fmt: skip


_IDENTITY = ("x-remote-", "impersonate-")
"""How the headers begin in which an API server and its clients say who asks: what a client wrote there was judged here, and must
not reach a server that would take it for our word."""


def travels(name: str) -> bool:
    """Whether a request header of this name may be passed on to another server."""
    return not name.lower().startswith(_IDENTITY)


def exact(url: str) -> Any:
    """A URL that is sent as it is written."""
    from yarl import URL

    return URL(url, encoded=True)


def forwarded(request: web.BaseRequest) -> list[tuple[str, str]]:
    """The request headers that travel on; credentials, identities and what belongs to this connection stay behind."""
    return [
        (name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP and travels(name)
    ]


async def relay(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, extra: Mapping[str, str]
) -> web.StreamResponse:
    """Stream a backend's answer to the client; ``extra`` headers replace its own.

    Where the backend breaks off, so does the client's connection: there is no other way to say it in the middle of an answer.
    """
    from aiohttp import ClientPayloadError

    response = web.StreamResponse(status=answer.status)
    replaced = {name.lower() for name in extra}
    for name, value in answer.headers.items():
        if name.lower() not in _HOP_BY_HOP and name.lower() not in replaced:
            response.headers.add(name, value)
    response.headers.update(extra)
    await response.prepare(request)
    try:
        async for block in answer.content.iter_any():
            await response.write(block)
    except ClientPayloadError:
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
