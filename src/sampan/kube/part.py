"""The Kubernetes API as a part: store, gates and server put together, and offered to every other part.

What comes up, in order: the object log is opened and its live objects read; the gates (authentication, authorization,
admission) and the verbs are built over it; the listener serves; the objects that every cluster has are made; the kubeconfig
is written to the platform's folder. From then on parts of this process find here a `Client`, the shared `Informers`, a
`ControlContext` for their controllers, the `TypeRegistry` to serve kinds of their own, the `Admission` chain to add
plugins to, and the `ServiceRange`. Parts in other processes get the same over HTTP, with a client certificate of their own (`connect`).
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from sampan.kernel import claims
from sampan.kernel.addresses import advertised
from sampan.kernel.certificates import Authority, KeyPair
from sampan.kernel.errors import SampanError
from sampan.kernel.files import flush, write_private
from sampan.kernel.part import OwnProcesses, Part, PartContext, PartSettings
from sampan.kube.access.interface import APISERVER, MASTER, Admission, Authorizer, ObjectCache
from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.interface import Informers
from sampan.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, PODS
from sampan.kube.types.resource import TypeRegistry

if TYPE_CHECKING:
    import socket
    import ssl

    from sampan.kube.access.control import AccessControl
    from sampan.kube.server.apiserver import ApiServer
    from sampan.kube.store.core import Store
    from sampan.kube.store.measures import StoreMetrics

NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    "::1",
)
"""What the API server's certificate is good for everywhere; its Service address and host are added."""
ADMINISTRATOR = ("kubernetes-admin", ("system:masters",))
"""User and groups of the kubeconfig's certificate."""


KUBELET_CLIENT = ("kube-apiserver-kubelet-client", ("system:masters",))
"""User and groups as which the API server calls kubelets."""
KUBELET_SERVING = "kubelet-serving"
"""The authority apart that signs what joined kubelets serve with."""
FRONT_PROXY = "front-proxy-client"
"""The name under which it vouches for users to aggregated API servers."""


class KubeSettings(PartSettings, kw_only=True):
    """Settings of the Kubernetes API (section ``kubernetes``)."""

    port: Annotated[int, msgspec.Meta(description="port of the API server", ge=0, le=65535)] = 6443
    host: Annotated[str, msgspec.Meta(description="address it listens on; credentials are needed wherever that is")] = (
        "127.0.0.1"
    )
    names: Annotated[
        list[str], msgspec.Meta(description="further DNS names and addresses its certificate is good for")
    ] = msgspec.field(default_factory=list)
    store: Annotated[
        Literal["sqlite", "memory"],
        msgspec.Meta(description="where objects are kept; `memory` forgets them when the platform stops"),
    ] = "sqlite"
    authorization: Annotated[
        Literal["RBAC", "AlwaysAllow"], msgspec.Meta(description="how requests are authorized")
    ] = "RBAC"
    anonymous: Annotated[
        bool, msgspec.Meta(description="let requests without credentials through as `system:anonymous`")
    ] = True
    service_range: Annotated[
        str,
        msgspec.Meta(
            description="addresses of Services; empty: 10.96.0.0/12, or, where pods have no addresses of their own (an "
            "ordinary user, or root without CAP_NET_ADMIN and CAP_SYS_ADMIN), the first of that and "
            "10.112.0.0/16 to 10.127.0.0/16 that no other platform of that user has, the same at the next start"
        ),
    ] = ""


SERVICES = "10.96.0.0/12"
SPARE_SERVICES = tuple(f"10.{number}.0.0/16" for number in range(112, 128))
"""For further platforms of an ordinary user."""


CLAIM_ATTEMPTS = 20
"""How often a range is asked for whose holder may be on its way out; one second in all."""
_NET_ADMIN, _SYS_ADMIN = 1 << 12, 1 << 21


def _pods_may_have_addresses() -> bool:
    """This process has the rights that take (tiers T1 and T1n): it is root of the machine, not only of a container or of a user
    namespace. Reads files."""
    if os.geteuid() != 0:
        return False
    try:
        status, users = Path("/proc/self/status").read_text(), Path("/proc/self/uid_map").read_text()
    except OSError:
        return True
    lines = (line.split() for line in status.splitlines())
    effective = next((int(words[1], 16) for words in lines if words and words[0] == "CapEff:"), 0)
    needed = _NET_ADMIN | _SYS_ADMIN
    return users.split()[:2] == ["0", "0"] and effective & needed == needed


@dataclass(frozen=True)
class ServiceRange:
    """The addresses of this platform's Services, provided to the parts of its own process."""

    cidr: str


class KubePart(Part[KubeSettings]):
    """Serves the Kubernetes API."""

    _claim: int | None = None
    """Holds the range of Services."""

    name = "kubernetes"
    settings_type: ClassVar[type[PartSettings]] = KubeSettings
    remote = "sampan.kube.part:connect"

    _store: Store | None = None
    _measures: StoreMetrics | None = None
    _server: ApiServer | None = None
    _gates: AccessControl | None = None
    _listener: socket.socket | None = None

    async def provision(self) -> None:
        """Open the store, build the gates and the server, bind the listener."""
        from sampan.kube.access.control import access_control
        from sampan.kube.client.inprocess import InProcessClient
        from sampan.kube.control import SharedInformers
        from sampan.kube.control.conversion import WebhookConversions
        from sampan.kube.control.definitions import ServedDefinitions
        from sampan.kube.control.local import LocalFeed
        from sampan.kube.server.apiserver import ApiServer
        from sampan.kube.server.cache import StoreCache
        from sampan.kube.store.core import Store
        from sampan.kube.store.measures import StoreMetrics
        from sampan.kube.types.builtin import builtin_types

        context, settings = self.context, self.context.settings
        services = settings.service_range or await asyncio.to_thread(self._services)
        self._listener = context.listeners.bind("kubernetes", settings.port, settings.host)
        self._store = store = Store(self._driver(), context.clock, founding=True)
        await store.open()
        self._measures = StoreMetrics(store)
        context.metrics.register(self._measures)
        types = TypeRegistry(builtin_types())
        cache = StoreCache(store, types)
        self._gates = gates = access_control(
            cache=cache,
            types=types,
            clock=context.clock,
            directory=context.data_dir,
            metrics=context.metrics,
            authorization=settings.authorization,
            anonymous=settings.anonymous,
        )
        self._server = ApiServer(
            store,
            types,
            context.clock,
            cache=cache,
            authenticator=gates.authenticator,
            authorizer=gates.authorizer,
            admission=gates.admission,
            registry=context.metrics,
            reviews=gates.reviews,
            tokens=gates.tokens,
            service_range=services,
        )
        self._cache = cache
        self._types = types
        self._client = InProcessClient(self._server.api, MASTER)
        self._definitions = ServedDefinitions(types, WebhookConversions(gates.webhooks))
        self._definitions.load(cache.objects(CUSTOM_RESOURCE_DEFINITIONS))
        self._feed = LocalFeed(store, types)
        informers = SharedInformers(self._client, context.clock, context.tasks, self._feed.with_custom())
        self._control = ControlContext(self._client, informers, context.clock, context.tasks, context.metrics)
        context.provide(ServiceRange, ServiceRange(services))
        context.provide(Client, self._client)
        context.provide(Informers, informers)
        context.provide(ControlContext, self._control)
        context.provide(TypeRegistry, types)
        context.provide(ObjectCache, cache)
        context.provide(Admission, gates.admission)
        context.provide(Authorizer, gates.authorizer)

    async def start(self) -> None:
        """Serve, and make what every cluster has."""
        from sampan.kube.access.bootstrap import reconcile
        from sampan.kube.client.inprocess import InProcessClient
        from sampan.kube.controllers import builtin_controllers
        from sampan.kube.server.boot import boot, keep

        assert self._server is not None
        assert self._listener is not None
        assert self._gates is not None
        host, port = self.address
        names = [*NAMES, self._server.api.allocator.address(1), *self.context.settings.names]
        if (outside := advertised(host)) not in names:
            names.append(outside)
        tls = await asyncio.to_thread(self.context.authority.server_context, names, verify_clients=True)
        self._server.identify(*await asyncio.to_thread(_identity, self.context.authority))
        others = self.context.find(OwnProcesses) or ()
        await asyncio.to_thread(lambda: [_certificate_of(self.context.authority, name) for name in others])
        await self._server.start(self._listener, tls)
        pem = self.context.authority.certificate_pem.decode()
        await boot(self._server.api, _reached(host), port, pem)
        api, reached = self._server.api, _reached(host)
        self.context.tasks.keep("own service", lambda: keep(api, reached, port))
        await reconcile(self._cache, InProcessClient(self._server.api, APISERVER))
        controllers = builtin_controllers(
            self._control,
            types=self._types,
            tokens=self._gates.tokens,
            authority=self.context.authority,
            kubelets=self.context.authority.apart(KUBELET_SERVING),
            definitions=self._definitions,
            server=_url(advertised(host), port),
            feed=self._feed,
        )
        await asyncio.gather(*(controller.start() for controller in controllers))
        self._server.booted = True
        config = await asyncio.to_thread(kubeconfig, self.context.authority, host, port)
        # not flushed: every start writes it again
        await asyncio.to_thread(write_private, self.context.root / "kubeconfig", config, durable=False)
        self.context.tasks.start("signing key", self._prepare_tokens())

    async def settle(self) -> None:
        """Have everything that a first start writes on the disk."""
        assert self._store is not None
        if self._store.founding:
            token = asyncio.to_thread(flush, self.context.data_dir / "admin.token")
            await asyncio.gather(self._store.found(), token)

    async def _prepare_tokens(self) -> None:
        """Load the signing key as soon as there is a pod, ahead of its token; before, it is ten megabytes for nothing."""
        assert self._store is not None
        assert self._gates is not None
        kind = self._types.find(PODS)
        assert kind is not None
        pods = kind.prefix()
        if not self._store.count(pods):
            seen = asyncio.Event()
            unsubscribe = self._store.subscribe(pods, lambda _: seen.set())
            try:
                await seen.wait()
            finally:
                unsubscribe()
        await asyncio.to_thread(self._gates.tokens.prepare)

    async def drain(self) -> None:
        """End watches and finish requests."""
        if self._server is not None:
            await self._server.drain()

    async def stop(self) -> None:
        """Close everything, controllers first."""
        await self.context.tasks.cancel()
        if self._server is not None:
            await self._server.stop()
        if self._gates is not None:
            await self._gates.close()
        if self._measures is not None:
            self.context.metrics.unregister(self._measures)
        if self._store is not None:
            await self._store.close()
        if self._listener is not None:
            self._listener.close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _services(self) -> str:
        """A range that no other platform here has, where Services are loopback addresses: those are everybody's."""
        if _pods_may_have_addresses():  # Services exist for them alone
            return SERVICES
        kept, owner = self.context.data_dir / "service-range", str(self.context.root)
        # what began with the usual range before platforms kept theirs has Services there
        spare = () if not kept.exists() and (self.context.data_dir / "objects.db").exists() else SPARE_SERVICES
        found, self._claim = claims.claim_one((SERVICES, *spare), kept, CLAIM_ATTEMPTS, owner)
        if self._claim is None and (other := claims.holder(found)) is not None and other.owner != owner:
            raise SampanError(
                f"the range of Services {found} is the one of another platform of this machine ({other.owner or 'unknown'}, "
                f"process {other.pid}), and both are on the loopback network here: stop that one, or give this one another "
                "with the setting kubernetes.service_range (10.80.0.0/16, say)"
            )
        return found

    def status(self) -> dict[str, Any]:
        """Objects, revision and open watches."""
        if self._store is None or self._server is None:
            return {}
        return {
            "objects": self._store.count("/registry/"),
            "revision": self._store.revision,
            "watches": self._server.api.hub.count,
        }

    @property
    def address(self) -> tuple[str, int]:
        """Where the API server listens."""
        address = self.context.listeners.address("kubernetes")
        assert address is not None
        return address

    def _driver(self) -> Any:
        if self.context.settings.store == "memory":
            from sampan.kube.store.memory import MemoryLog

            return MemoryLog()
        from sampan.kube.store.sqlite import SqliteLog

        return SqliteLog(self.context.data_dir / "objects.db")


async def connect(context: PartContext[Any]) -> None:
    """Provide `Client`, `Informers` and `ControlContext` in another process, over HTTP, as ``system:sampan:<part>``."""
    from sampan.kube.client.http import HttpClient
    from sampan.kube.control import SharedInformers

    address = context.listeners.address("kubernetes")
    if address is None:
        raise SampanError("the Kubernetes API has no address yet; the part must need `kubernetes`")
    authority = context.authority
    pair = await asyncio.to_thread(_certificate_of, authority, context.name)
    client = HttpClient(_url(*address), authority.client_context(pair), field_manager=context.name, clock=context.clock)

    async def close_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await client.close()

    context.tasks.start("kubernetes/client", close_at_the_end())
    informers = SharedInformers(client, context.clock, context.tasks)
    context.provide(Client, client)
    context.provide(Informers, informers)
    context.provide(ControlContext, ControlContext(client, informers, context.clock, context.tasks, context.metrics))


def _certificate_of(authority: Authority, part: str) -> KeyPair:
    """As whom a part in a process of its own comes; made in the core, so that the other need not load what that takes."""
    return authority.client_certificate(f"system:sampan:{part}", ["system:masters"])


def _url(host: str, port: int) -> str:
    reached = _reached(host)
    return f"https://[{reached}]:{port}" if ":" in reached else f"https://{reached}:{port}"


def kubeconfig(authority: Authority, host: str, port: int) -> str:
    """A kubeconfig with administrator rights and everything in it."""
    user, groups = ADMINISTRATOR
    pair = authority.client_certificate(user, groups)
    return _KUBECONFIG.format(
        server=_url(host, port),
        authority=base64.b64encode(authority.certificate_pem).decode(),
        certificate=base64.b64encode(pair.certificate.read_bytes()).decode(),
        key=base64.b64encode(pair.key.read_bytes()).decode(),
    )


def joined_kubelets(authority: Authority) -> ssl.SSLContext:
    """As whom the API server calls the kubelets of nodes that joined, and whom alone it believes to be one. Reads files."""
    return authority.apart(KUBELET_SERVING).client_context(authority.client_certificate(*KUBELET_CLIENT))


def _identity(authority: Authority) -> tuple[ssl.SSLContext, ssl.SSLContext, tuple[str, str]]:
    """As whom the API server calls its own kubelet and others', and the files that vouch for users to aggregated servers."""
    own = authority.client_context(authority.client_certificate(*KUBELET_CLIENT))
    proxy = authority.client_certificate(FRONT_PROXY)
    return own, joined_kubelets(authority), (str(proxy.certificate), str(proxy.key))


def _reached(host: str) -> str:
    """The address under which this machine reaches a listener on ``host``."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104


_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- name: sampan
  cluster:
    server: {server}
    certificate-authority-data: {authority}
users:
- name: sampan
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: sampan
  context:
    cluster: sampan
    user: sampan
    namespace: default
current-context: sampan
"""
