"""Calling a webhook: one HTTPS POST to a URL or to a Service, trusting exactly the bundle its configuration gives.

The deadline is the machine's: a webhook is an outside program, and a jump of the platform's clock must not cut it off. Connections are kept and shared by all webhooks of the process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kube.access.service_endpoints import Resolver, ServiceError
from sampan.kube.objects import Object

if TYPE_CHECKING:
    import aiohttp

RESPONSE_BYTES_LIMIT = 3 * 1024 * 1024
CONTEXTS_LIMIT = 256
"""TLS contexts kept, one a bundle; beyond it they are made anew."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


class WebhookCallError(SampanError):
    """A webhook could not be reached in time or did not answer as it should."""


class WebhookCaller:
    """Posts reviews; `close` ends its connections."""

    def __init__(self, clock: Clock, resolve: Resolver) -> None:
        self._clock = clock
        self._resolve = resolve
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[bytes, ssl.SSLContext] = {}

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, client: Mapping[str, Any], body: Mapping[str, Any], seconds: float) -> Object:
        """POST ``body`` to a webhook's ``clientConfig`` and decode the JSON answer.

        Raises:
            WebhookCallError: no connection, no answer within ``seconds``, or an answer that is no success or no JSON.
        """
        import aiohttp

        shown, target, host = await self._target(client)
        timeout = f"timeout={int(seconds)}s"
        target, shown = (f"{url}{'&' if '?' in url else '?'}{timeout}" for url in (target, shown))
        context = self._context(client.get("caBundle") or "")
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Host": host}
        try:
            async with (
                self._clock.patience(seconds),
                self._open().post(
                    target,
                    data=_encoder.encode(body),
                    headers=headers,
                    ssl=context,
                    server_hostname=host.partition(":")[0],
                    allow_redirects=False,
                ) as response,
            ):
                content = await response.content.read(RESPONSE_BYTES_LIMIT + 1)
                while len(content) <= RESPONSE_BYTES_LIMIT and (
                    more := await response.content.read(RESPONSE_BYTES_LIMIT)
                ):
                    content += more
                if len(content) > RESPONSE_BYTES_LIMIT:
                    raise WebhookCallError(f"the response is larger than {RESPONSE_BYTES_LIMIT} bytes")
                if not 200 <= response.status < 300:
                    raise WebhookCallError(_unexpected(response.status, content))
                return _decoder.decode(content)
        except TimeoutError:
            raise WebhookCallError(f'failed to call webhook: Post "{shown}": context deadline exceeded') from None
        except msgspec.DecodeError as error:
            raise WebhookCallError(f"failed to call webhook: the response is not JSON: {error}") from None
        except aiohttp.ClientError as error:
            raise WebhookCallError(f'failed to call webhook: Post "{shown}": {_plain(error)}') from None

    async def _target(self, client: Mapping[str, Any]) -> tuple[str, str, str]:
        """(URL for messages, URL to connect to, host name to ask for and to verify)."""
        if url := client.get("url"):
            return url, url, urlsplit(url).netloc
        service = client.get("service") or {}
        namespace, name, port = service.get("namespace") or "", service.get("name") or "", service.get("port") or 443
        path = service.get("path") or "/"
        path = path if path.startswith("/") else f"/{path}"
        host = f"{name}.{namespace}.svc"
        shown = f"https://{host}:{port}{path}"
        try:
            address, number = await self._resolve(namespace, name, port)
        except ServiceError as error:
            raise WebhookCallError(f'failed to call webhook: Post "{shown}": {error}') from None
        address = f"[{address}]" if ":" in address else address
        return shown, f"https://{address}:{number}{path}", host

    def _context(self, bundle: str) -> ssl.SSLContext:
        digest = hashlib.sha256(bundle.encode()).digest()
        context = self._contexts.get(digest)
        if context is None:
            try:
                authorities = base64.b64decode(bundle).decode("ascii")
                context = ssl.create_default_context(cadata=authorities or None)
            except (ssl.SSLError, ValueError, binascii.Error) as error:
                raise WebhookCallError(f"unable to load root certificates: {error}") from None
            if len(self._contexts) >= CONTEXTS_LIMIT:
                self._contexts.clear()
            self._contexts[digest] = context
        return context

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            # `post` keeps the deadline; aiohttp's own are switched off.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=None))
        return self._session


def _unexpected(code: int, content: bytes) -> str:
    text = content[:512].decode(errors="replace").strip()
    return f"failed to call webhook: an error on the server ({text!r}) has prevented the request from succeeding (code {code})"


def _plain(error: Exception) -> str:
    """The cause in one line, in the words Go's clients print where there is a counterpart."""
    cause = getattr(error, "os_error", None) or error
    text = str(cause) or type(cause).__name__
    if isinstance(getattr(error, "certificate_error", None), Exception):
        return f"tls: failed to verify certificate: {error.certificate_error}"  # type: ignore[attr-defined]
    if isinstance(cause, ConnectionRefusedError):
        return f"dial tcp: connect: connection refused ({text})"
    return text
