"""API aggregation: group-versions that another server answers for, by APIService objects.

Every group-version served here has an APIService of its own with no service (reason ``Local``), kept in step with the table of
types. One with a service is checked (service, endpoints, discovery) every `CHECK_INTERVAL` and whenever it changes; its
condition ``Available`` says how that went, its discovery is merged into ours, and requests under its path are passed on over
TLS with the user's identity in ``X-Remote-*`` headers, vouched for by the front proxy's client certificate.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.access.interface import APISERVER, User
from sampan.kube.objects import Object, copy, dig
from sampan.kube.resources import API_SERVICES, ENDPOINT_SLICES, SERVICE_NAME, SERVICES
from sampan.kube.server.call import Call
from sampan.kube.server.discovery import Discovery, Remote
from sampan.kube.server.options import DeleteOptions, WriteOptions
from sampan.kube.server.relay import exact, forwarded, relay
from sampan.kube.server.tunnel import Backend, tunnel, wants_upgrade
from sampan.kube.server.verbs import Api
from sampan.kube.server.writes import timestamp
from sampan.kube.status import ApiError, unavailable
from sampan.kube.store.interface import Change

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

CHECK_INTERVAL = 30.0
"""Seconds between checks of the remote servers."""
CHECK_SECONDS = 5.0
"""Seconds a remote server has to answer a check."""
AUTOMANAGED = "kube-aggregator.kubernetes.io/automanaged"
_PREFIX = "/registry/apiregistration.k8s.io/apiservices/"
_DOCUMENT_LIMIT = 4 * 1024 * 1024


class _Unavailable(Exception):
    """Why a remote API cannot be used: a condition's reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Aggregation:
    """Keeps APIServices, checks the remote ones and passes requests on; implements ``front.Aggregator``."""

    def __init__(self, api: Api, discovery: Discovery, clock: Clock, tasks: Tasks) -> None:
        self._api = api
        self._discovery = discovery
        self._clock = clock
        self._tasks = tasks
        self.certificate: tuple[str, str] | None = None
        """Files of the front proxy's certificate and key."""
        self._services: dict[tuple[str, str], Object] = {}
        self._remotes: dict[tuple[str, str], Remote] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._wake = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Follow APIServices and the table of types."""
        self._unsubscribe = self._api.store.subscribe(_PREFIX, self._changed)
        self._api.types.on_change(self._wake.set)
        self._index()
        self._tasks.keep("apiservices", self._run)

    async def close(self) -> None:
        """Close the connections to remote servers."""
        self._unsubscribe()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def remotes(self) -> Sequence[Remote]:
        """What discovery has to know of the remote group-versions."""
        return list(self._remotes.values())

    # -- keeping the objects

    def _changed(self, change: Change) -> None:
        self._index()
        self._wake.set()

    def _index(self) -> None:
        """The remote APIServices by group and version."""
        found = {}
        for service in self._api.cache.objects(API_SERVICES):
            spec = service.get("spec") or {}
            if spec.get("service"):
                found[spec.get("group") or "", spec.get("version") or ""] = service
        self._services = found
        for gone in [key for key in self._remotes if key not in found]:
            del self._remotes[gone]
            self._discovery.forget()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            await self._keep_local()
            for key, service in list(self._services.items()):
                await self._check(key, service)
            try:
                async with self._clock.timeout(CHECK_INTERVAL if self._services else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _keep_local(self) -> None:
        wanted: dict[str, tuple[str, str]] = {}
        for type in self._api.types.all():
            group, version = type.resource.group, type.resource.version
            if (group, version) not in self._services:
                wanted.setdefault(f"{version}.{group}", (group, version))
        present = {service["metadata"]["name"]: service for service in self._api.cache.objects(API_SERVICES)}
        writes = [
            self._create_local(name, group, version) for name, (group, version) in wanted.items() if name not in present
        ]
        for name, service in present.items():
            labels = service["metadata"].get("labels") or {}
            if AUTOMANAGED in labels and name not in wanted:
                writes.append(self._delete(name))
        await asyncio.gather(*writes)

    async def _create_local(self, name: str, group: str, version: str) -> None:
        spec: Object = {
            "version": version,
            "groupPriorityMinimum": 18000 if not group else 17000,
            "versionPriority": 15,
        }
        if group:
            spec["group"] = group
        wanted: Object = {"metadata": {"name": name, "labels": {AUTOMANAGED: "onstart"}}, "spec": spec}
        try:
            await self._api.create(self._call(""), wanted)
        except ApiError as error:
            if not error.already_exists:
                raise
        await self._condition(name, "True", "Local", "Local APIServices are always available")

    async def _delete(self, name: str) -> None:
        try:
            await self._api.delete(self._call(name), DeleteOptions())
        except ApiError as error:
            if not error.not_found:
                raise

    def _call(self, name: str, subresource: str = "") -> Call:
        options = WriteOptions(manager="kube-apiserver")
        return Call(APISERVER, self._api.type_of(API_SERVICES), "", name, subresource, options)

    async def _condition(self, name: str, status: str, reason: str, message: str) -> None:
        current = self._api.cache.get(API_SERVICES, "", name)
        if current is None:
            return
        conditions = dig(current, "status", "conditions", default=[])
        before: Mapping[str, Any] = next((c for c in conditions if c.get("type") == "Available"), {})
        if (before.get("status"), before.get("reason"), before.get("message")) == (status, reason, message):
            return
        changed = before.get("status") != status
        fresh = {
            "type": "Available",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(self._clock.now()) if changed else before.get("lastTransitionTime"),
        }
        updated: Object = copy(current)
        updated["metadata"].pop("resourceVersion", None)
        others = [condition for condition in conditions if condition.get("type") != "Available"]
        updated.setdefault("status", {})["conditions"] = [*others, fresh]
        try:
            await self._api.update(self._call(name, "status"), updated)
        except ApiError as error:
            if not error.not_found:
                raise

    # -- checking the remote servers

    async def _check(self, key: tuple[str, str], service: Object) -> None:
        name = service["metadata"]["name"]
        try:
            resources = await self._discover(key, service)
        except _Unavailable as problem:
            before = self._remotes.get(key)
            self._remember(key, Remote(*key, before.resources if before else (), available=False))
            await self._condition(name, "False", problem.reason, problem.message)
        else:
            self._remember(key, Remote(*key, resources, available=True))
            await self._condition(name, "True", "Passed", "all checks passed")

    def _remember(self, key: tuple[str, str], remote: Remote) -> None:
        if self._remotes.get(key) != remote:
            self._remotes[key] = remote
            self._discovery.forget()

    async def _discover(self, key: tuple[str, str], service: Object) -> list[Object]:
        group, version = key
        backend = self._backend(service)
        url = f"https://{backend}/apis/{group}/{version}"
        import aiohttp

        try:
            async with (
                self._clock.patience(CHECK_SECONDS),
                self._http().get(
                    exact(url),
                    headers=_identity(APISERVER),
                    ssl=backend.context or False,
                    server_hostname=backend.server_name,
                ) as answer,
            ):
                body = await answer.content.read(_DOCUMENT_LIMIT)
                if answer.status != 200:
                    why = f"failing or missing response from {url}: bad status from {url}: {answer.status}"
                    raise _Unavailable("FailedDiscoveryCheck", why)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f"failing or missing response from {url}: {error or 'timeout'}"
            raise _Unavailable("FailedDiscoveryCheck", why) from None
        try:
            return _aggregated(msgspec.json.decode(body), group, version)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            why = f"failing or missing response from {url}: not an APIResourceList: {error}"
            raise _Unavailable("FailedDiscoveryCheck", why) from None

    def _backend(self, api_service: Object) -> Backend:
        spec = api_service["spec"]
        namespace, name = spec["service"].get("namespace") or "", spec["service"].get("name") or ""
        port = int(spec["service"].get("port") or 443)
        service = self._api.cache.get(SERVICES, namespace, name)
        if service is None:
            raise _Unavailable("ServiceNotFound", f'service/{name} in "{namespace}" is not present')
        host, target = self._target(service, namespace, name, port)
        return Backend(host, target, self._context(spec), f"{name}.{namespace}.svc")

    def _target(self, service: Object, namespace: str, name: str, port: int) -> tuple[str, int]:
        if dig(service, "spec", "type") == "ExternalName":
            return service["spec"]["externalName"], port
        chosen = next((p for p in dig(service, "spec", "ports", default=()) if p["port"] == port), None)
        if chosen is None:
            why = f'service/{name} in "{namespace}" is not listening on port {port}'
            raise _Unavailable("ServicePortError", why)
        for piece in self._api.cache.objects(ENDPOINT_SLICES, namespace):
            if (piece["metadata"].get("labels") or {}).get(SERVICE_NAME) != name:
                continue
            for candidate in piece.get("ports") or ():
                if (candidate.get("name") or "") != (chosen.get("name") or ""):
                    continue
                for endpoint in piece.get("endpoints") or ():
                    if (endpoint.get("conditions") or {}).get("ready") is not False:
                        address = endpoint["addresses"][0]
                        return address, door(address, int(candidate["port"]))
        why = f'endpoints for service/{name} in "{namespace}" have no addresses with port name "{chosen.get("name") or ""}"'
        raise _Unavailable("MissingEndpoints", why)

    def _context(self, spec: Mapping[str, Any]) -> ssl.SSLContext:
        bundle = "" if spec.get("insecureSkipTLSVerify") else spec.get("caBundle") or ""
        context = self._contexts.get(bundle)
        if context is None:
            if bundle:
                try:
                    context = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
                except (ValueError, ssl.SSLError) as error:
                    raise _Unavailable("FailedDiscoveryCheck", f"the caBundle is not usable: {error}") from None
            else:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate is not None:
                context.load_cert_chain(*self.certificate)
            self._contexts[bundle] = context
        return context

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    # -- passing requests on

    def serves(self, group: str, version: str) -> bool:
        """A remote server answers for this group-version."""
        return (group, version) in self._services

    async def serve(self, request: web.BaseRequest, user: User, group: str, version: str) -> web.StreamResponse:
        """Pass a request on.

        Raises:
            ApiError: 503, the remote server cannot be reached.
        """
        try:
            backend = self._backend(self._services[group, version])
        except _Unavailable as problem:
            raise unavailable(f"service unavailable: {problem.message}") from None
        identity = _identity(user)
        if wants_upgrade(request):
            return await tunnel(request, backend, request.raw_path, self._clock, headers=identity)
        import aiohttp

        try:
            async with self._http().request(
                request.method,
                exact(f"https://{backend}{request.raw_path}"),
                headers=[*forwarded(request), *identity],
                data=request.content if request.can_read_body else None,
                ssl=backend.context or False,
                server_hostname=backend.server_name,
                allow_redirects=False,
            ) as answer:
                return await relay(request, answer, {})
        except aiohttp.ClientError as error:
            raise unavailable(f"error trying to reach service: {error}") from None


def _identity(user: User) -> list[tuple[str, str]]:
    """The headers in which the front proxy names a user."""
    headers = [("X-Remote-User", user.name)]
    if user.uid:
        headers.append(("X-Remote-Uid", user.uid))
    headers += [("X-Remote-Group", group) for group in user.groups]
    headers += [
        (f"X-Remote-Extra-{quote(name, safe='')}", value) for name, values in user.extra.items() for value in values
    ]
    return headers


def _aggregated(listed: Object, group: str, version: str) -> list[Object]:
    """The aggregated form of an APIResourceList."""
    found: dict[str, Object] = {}
    for entry in listed.get("resources") or ():
        kind = {"group": entry.get("group") or group, "version": entry.get("version") or version, "kind": entry["kind"]}
        name, slash, sub = entry["name"].partition("/")
        if slash:
            parent = found.get(name)
            if parent is not None:
                below = {"subresource": sub, "responseKind": kind, "verbs": list(entry["verbs"])}
                parent.setdefault("subresources", []).append(below)
            continue
        resource: Object = {
            "resource": name,
            "responseKind": kind,
            "scope": "Namespaced" if entry.get("namespaced") else "Cluster",
            "singularResource": entry.get("singularName") or "",
            "verbs": list(entry["verbs"]),
        }
        for field in ("shortNames", "categories"):
            if entry.get(field):
                resource[field] = list(entry[field])
        found[name] = resource
    return list(found.values())
