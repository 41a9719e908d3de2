"""The client over HTTP: any Kubernetes API server, ours or a real one, as the identity of a certificate or a token.

It behaves as the in-process client does: the same arguments, the same ``ApiError`` (made of the ``Status`` that came back, or
503 where nobody answered), objects that always name their kind, watches that deliver bookmarks and raise when the server says
the revision is too old. One connection pool serves a client and everything that impersonates through it.

Deadlines on the network are the machine's: a jump of the platform's clock must not cut off a request under way. Pauses the
server asks for (429 and the like with Retry-After) are the clock's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote, urlencode

import msgspec

from sampan.kernel.clock import Clock
from sampan.kube.client.config import ClientConfig, from_kubeconfig
from sampan.kube.client.interface import EventType, ObjectList, PatchType, Propagation, WatchEvent
from sampan.kube.objects import Object, Resource
from sampan.kube.status import ApiError, unavailable

if TYPE_CHECKING:
    import aiohttp

CONNECT_SECONDS = 10.0
"""Machine seconds to reach the server."""
ANSWER_SECONDS = 90.0
"""Machine seconds of silence after which a request has failed (servers give up after 60)."""
WATCH_SECONDS = 600.0
"""Machine seconds of silence after which a watch counts as dead; servers send bookmarks about every minute."""
RETRIES = 10
"""How often a request is repeated when the server asks for that."""
RETRY_LIMIT = 30.0
"""Seconds between repetitions at most, whatever the server asks for."""
TOKEN_SECONDS = 60.0
"""Machine seconds after which a token file is read again."""
EVENT_LIMIT = 16 * 1024 * 1024
"""Bytes in one watch event at most."""
_PATCH_TYPES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Gone",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
"""What an answer without a Status means."""
_IN_PATHS = "/:@!$&'()*+,;=~"
"""Characters that stand for themselves in a path; names may have others, such as ``?``."""
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"


class HttpClient:
    """Implements ``client.interface.Client`` over HTTP. `close` it, or use it as an async context manager.

    ``server`` is the base URL. ``context`` trusts the server and presents the client certificate; ``headers`` go with every
    request (``Authorization``).
    """

    def __init__(
        self,
        server: str,
        context: ssl.SSLContext | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        field_manager: str = "sampan",
        groups: Sequence[str] = (),
        pool: _Pool | None = None,
        clock: Clock | None = None,
        namespace: str = "default",
    ) -> None:
        """``groups`` are those to impersonate; ``pool`` shares another client's connections."""
        self.namespace = namespace
        """The configuration's default namespace; requests name theirs themselves."""
        self._clock = clock or Clock()
        self.server = server.rstrip("/")
        self._groups = tuple(groups)
        self._headers = {"Accept": _JSON, "User-Agent": field_manager, **(headers or {})}
        self._manager = field_manager
        self._pool = pool or _Pool(context)

    @staticmethod
    def from_config(config: ClientConfig, *, field_manager: str = "sampan", clock: Clock | None = None) -> HttpClient:
        """A client for a loaded configuration (``client.config``)."""
        headers = {}
        if config.token:
            headers["Authorization"] = f"Bearer {config.token}"
        elif config.basic:
            credentials = base64.b64encode(":".join(config.basic).encode()).decode()
            headers["Authorization"] = f"Basic {credentials}"
        pool = _Pool(config.tls, config.server_name, config.token_file)
        return HttpClient(
            config.server,
            headers=headers,
            field_manager=field_manager,
            pool=pool,
            clock=clock,
            namespace=config.namespace,
        )

    @staticmethod
    def from_kubeconfig(path: Path, context: str | None = None) -> HttpClient:
        """A client for a kubeconfig's current (or named) context. Reads files; call it outside the event loop.

        Raises:
            ClientConfigError: the file cannot be read, names no such context, or wants an unsupported way to log in.
        """
        return HttpClient.from_config(from_kubeconfig(path, context))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, also those of clients made by `impersonate`."""
        await self._pool.close()

    # -- the interface

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, subresource: str | None = None
    ) -> Object:
        """Read one object."""
        return await self._ask("GET", resource.path(namespace, name, subresource))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = None,
        continue_token: str | None = None,
        revision: str | None = None,
    ) -> ObjectList:
        """List one page (everything when ``limit`` is None)."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "limit": str(limit) if limit else None,
            "continue": continue_token,
            "resourceVersion": revision,
        }
        page = await self._ask("GET", resource.path(namespace), query)
        metadata = page.get("metadata") or {}
        kind = str(page.get("kind", "")).removesuffix("List")
        # the items of a list leave out what the list says for all of them
        named = {"kind": kind, "apiVersion": page.get("apiVersion", resource.api_version)}
        items = [item if "kind" in item else {**named, **item} for item in page.get("items") or ()]
        return ObjectList(items, metadata.get("resourceVersion", ""), metadata.get("continue", ""))

    @asynccontextmanager
    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        revision: str | None = None,
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Changes after ``revision`` (None: first ADDED for all that exists)."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": revision,
        }
        async with self._request("GET", resource.path(namespace), query, silence=WATCH_SECONDS) as response:
            yield _events(response)

    async def create(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        namespace: str | None = None,
        *,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Create an object, or POST to a subresource of ``name``."""
        if namespace is None:
            namespace = (obj.get("metadata") or {}).get("namespace")
        path = resource.path(namespace, name, subresource)
        return await self._ask("POST", path, self._writing(dry_run), _named(resource, obj))

    async def update(
        self, resource: Resource, obj: Mapping[str, Any], *, subresource: str | None = None, dry_run: bool = False
    ) -> Object:
        """Replace the object at its own name and namespace."""
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._ask("PUT", path, self._writing(dry_run), _named(resource, obj))

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        namespace: str | None = None,
        *,
        patch_type: PatchType = "merge",
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Patch an object."""
        path = resource.path(namespace, name, subresource)
        return await self._ask("PATCH", path, self._writing(dry_run), patch, _PATCH_TYPES[patch_type])

    async def apply(
        self,
        resource: Resource,
        obj: Mapping[str, Any],
        *,
        field_manager: str,
        force: bool = False,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Server-side apply."""
        metadata = obj["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        query = {**self._writing(dry_run), "fieldManager": field_manager, "force": "true" if force else None}
        return await self._ask("PATCH", path, query, _named(resource, obj), _APPLY)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        grace_period: int | None = None,
        propagation: Propagation | None = None,
        uid: str | None = None,
        revision: str | None = None,
    ) -> Object:
        """Delete an object; returns it, or a Status."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_period is not None:
            options["gracePeriodSeconds"] = grace_period
        if propagation is not None:
            options["propagationPolicy"] = propagation
        conditions = {"uid": uid, "resourceVersion": revision}
        if preconditions := {key: value for key, value in conditions.items() if value is not None}:
            options["preconditions"] = preconditions
        return await self._ask("DELETE", resource.path(namespace, name), None, options)

    async def delete_collection(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        propagation: Propagation | None = None,
    ) -> None:
        """Delete everything that matches."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "propagationPolicy": propagation,
        }
        await self._ask("DELETE", resource.path(namespace), query)

    def impersonate(self, user: str, groups: Sequence[str] = ()) -> HttpClient:
        """The same client acting as another user; the server refuses its requests where that is not allowed."""
        headers = {**self._headers, "Impersonate-User": user}
        return HttpClient(
            self.server,
            headers=headers,
            field_manager=self._manager,
            groups=groups,
            pool=self._pool,
            clock=self._clock,
            namespace=self.namespace,
        )

    # -- the wire

    def _writing(self, dry_run: bool) -> dict[str, str | None]:
        return {"fieldManager": self._manager, "dryRun": "All" if dry_run else None}

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None] | None = None,
        body: Any = None,
        content_type: str = _JSON,
    ) -> Object:
        async with self._request(method, path, query, body, content_type) as response:
            content = await response.read()
        try:
            decoded: Object = msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise unavailable(
                f"{self.server} answered {method} {path} with something else than JSON: {error}"
            ) from None
        return decoded

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        *,
        silence: float = ANSWER_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request that was answered with success, repeated for as long as the server asks for it.

        Raises:
            ApiError: it was not, or nobody answered.
        """
        import aiohttp
        from multidict import CIMultiDict
        from yarl import URL

        given = {name: value for name, value in (query or {}).items() if value}
        headers = CIMultiDict(self._headers)
        for group in self._groups:
            headers.add("Impersonate-Group", group)
        data = None
        if body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(body), content_type
        address = f"{self.server}{quote(path, safe=_IN_PATHS)}{'?' if given else ''}{urlencode(given)}"
        url = URL(address, encoded=True)
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        session = self._pool.session()
        tries, renewed, answered = 0, False, False
        try:
            while True:
                if token := await self._pool.token(fresh=renewed):
                    headers["Authorization"] = f"Bearer {token}"
                async with session.request(
                    method, url, data=data, headers=headers, timeout=patience, server_hostname=self._pool.server_name
                ) as response:
                    if response.status < 400:
                        answered = True
                        yield response
                        return
                    refused = _refused(response.status, await response.read())
                    pause = _pause(response)
                if refused.code == 401 and token and not renewed:
                    renewed = True  # the file may have been rotated since it was read
                    continue
                if pause is None or tries >= RETRIES:
                    raise refused
                tries += 1
                await self._clock.sleep(min(pause, RETRY_LIMIT))
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            if answered and not isinstance(error, aiohttp.ClientError):
                raise  # the caller's own, from the body of its `async with`
            raise unavailable(f"{method} {self.server}{path}: {error or type(error).__name__}") from error


class _Pool:
    """The connections to one server, opened on first use."""

    def __init__(
        self, context: ssl.SSLContext | None, server_name: str | None = None, token_file: Path | None = None
    ) -> None:
        self.server_name = server_name
        self._context = context
        self._token_file = token_file
        self._token = ""
        self._token_read = float("-inf")
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            # watches hold a connection each for as long as they live
            connector = aiohttp.TCPConnector(limit=0, ssl=self._context or True)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=1 << 18)
        return self._session

    async def token(self, *, fresh: bool) -> str:
        """The token of the token file, if there is one, at most `TOKEN_SECONDS` old (``fresh``: read now).

        Raises:
            ApiError: 401, the file cannot be read.
        """
        if self._token_file is None:
            return ""
        now = asyncio.get_running_loop().time()
        if fresh or now - self._token_read > TOKEN_SECONDS:
            try:
                self._token = (await asyncio.to_thread(self._token_file.read_text)).strip()
            except OSError as error:
                raise ApiError(401, "Unauthorized", f"cannot read the token in {self._token_file}: {error}") from None
            self._token_read = now
        return self._token

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[WatchEvent]:
    """The events of a watch's response, one JSON document a line.

    Raises:
        ApiError: the server ended the watch with an error event.
    """
    import aiohttp

    rest = b""
    while True:
        try:
            block = await response.content.readany()
        except (aiohttp.ClientError, ConnectionError):
            return  # the server went away: the watch has ended, resume from the last revision
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > EVENT_LIMIT:
            raise unavailable(f"a watch event is larger than {EVENT_LIMIT} bytes")
        for line in lines:
            if not line.strip():
                continue
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise unavailable(f"a watch event is not JSON: {error}") from None
            if event["type"] == "ERROR":
                raise ApiError.of(event["object"])
            yield WatchEvent(cast(EventType, event["type"]), event["object"])


def _named(resource: Resource, obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object with its apiVersion; servers want it in every body."""
    return obj if obj.get("apiVersion") else {"apiVersion": resource.api_version, **obj}


def _refused(code: int, content: bytes) -> ApiError:
    with contextlib.suppress(msgspec.MsgspecError):
        status = msgspec.json.decode(content, type=dict[str, Any])
        if status.get("kind") == "Status":
            return ApiError.of(status, code)
    text = content.decode(errors="replace").strip()
    return ApiError(code, _REASONS.get(code, "Unknown"), text or f"the server answered {code}")


def _pause(response: aiohttp.ClientResponse) -> float | None:
    """Seconds after which the server wants the request repeated; None: it does not."""
    if response.status != 429 and response.status < 500:
        return None
    try:
        return max(float(response.headers.get("Retry-After", "")), 0.0)
    except ValueError:
        return None
