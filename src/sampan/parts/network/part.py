"""The network part: cluster DNS, Services and NetworkPolicy.

Read this first. Three functions decide: ``records`` what DNS says of a Service, ``services`` what can be connected to and where
that leads, ``policy`` which pods may speak. ``dns`` answers names. ``control.proxy`` puts frontends on data paths
(``datapath``): pods of a node with eBPF get the kernel's, everyone else forwarders in user space; ``control.attachment`` finds
out which. Node ports and load balancers are forwarders on the host in every tier.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from sampan.kernel.addresses import is_own
from sampan.kernel.errors import SettingsError
from sampan.kernel.part import Part, PartSettings
from sampan.kernel.telemetry import gauge
from sampan.kube.control.controller import ControlContext
from sampan.kube.joining.interface import JOINED
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NODES, SERVICES
from sampan.parts.network import loopback_address
from sampan.parts.network.control import dns_service
from sampan.parts.network.control.attachment import Attachment, is_loopback
from sampan.parts.network.control.balancer import LoadBalancers
from sampan.parts.network.control.health import HealthChecks
from sampan.parts.network.control.host_ports import HostPorts
from sampan.parts.network.control.mirroring import EndpointMirror
from sampan.parts.network.control.policies import NetworkPolicies
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.directory import ClusterDirectory
from sampan.parts.network.dns.server import NameServer
from sampan.parts.network.dns.upstream import Upstream, host_resolvers
from sampan.parts.network.dns.zone import Zone
from sampan.parts.network.services import Backends, Frontend, reached

DNS_PLACE = 9
"""How far the name server's address is behind that of the API server's Service: the tenth address by convention."""


class NetworkSettings(PartSettings, kw_only=True):
    """Settings of the network (section ``network``)."""

    dns_host: Annotated[str, msgspec.Meta(description="address the cluster's name server listens on")] = "127.0.0.1"
    dns_port: Annotated[
        int, msgspec.Meta(description="its port, UDP and TCP; pods reach it at port 53 of `kube-dns`", ge=0, le=65535)
    ] = 9053
    domain: Annotated[str, msgspec.Meta(description="the cluster's domain")] = "cluster.local"
    dns_ttl: Annotated[int, msgspec.Meta(description="seconds clients may keep the cluster's names", ge=0)] = 5
    upstream: Annotated[
        list[str],
        msgspec.Meta(description="addresses of name servers for other names; those of /etc/resolv.conf where empty"),
    ] = msgspec.field(default_factory=list)
    data_path: Annotated[
        Literal["auto", "ebpf", "forward"],
        msgspec.Meta(description="how pods reach Services; `auto` is eBPF where the node can, else forwarders"),
    ] = "auto"
    node_port_host: Annotated[str, msgspec.Meta(description="address of this machine that node ports are on")] = (
        "127.0.0.1"
    )
    load_balancer_range: Annotated[
        str,
        msgspec.Meta(
            description="addresses of load balancers; empty: a /24 of 127.64.0.0/12 that follows from the platform"
        ),
    ] = ""


class NetworkPart(Part[NetworkSettings]):
    """Cluster DNS, Services, NetworkPolicy."""

    name = "network"
    needs = ("kubernetes",)
    settings_type: ClassVar[type[PartSettings]] = NetworkSettings

    _udp: socket.socket | None = None
    _tcp: socket.socket | None = None
    _names: NameServer | None = None
    _attachment: Attachment | None = None

    async def provision(self) -> None:
        """Bind the name server's sockets."""
        self._upstream = resolvers(self.context.settings.upstream)
        context, settings = self.context, self.context.settings
        self._tcp = context.listeners.bind("dns", settings.dns_port, settings.dns_host)
        self._udp = bind_udp(settings.dns_host, self._tcp.getsockname()[1])

    async def start(self) -> None:
        """Serve names and announce where."""
        context, settings = self.context, self.context.settings
        shared = context.get(ControlContext)
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks, shared.metrics)
        directory = ClusterDirectory(control.informers, self._shown)
        await directory.wait_synced()
        api_server = control.informers.informer(SERVICES).get(Key("default", "kubernetes"))
        assert api_server is not None  # made by the API server before it is ready
        address = str(ip_address(api_server["spec"]["clusterIP"]) + DNS_PLACE)
        zone = Zone(directory, settings.domain, settings.dns_ttl, address)
        upstream = Upstream(context.clock, self._upstream)
        self._names = NameServer(zone, upstream, context.clock, context.tasks, context.metrics)
        assert self._udp is not None
        assert self._tcp is not None
        udp, tcp = self._udp.getsockname()[1], self._tcp.getsockname()[1]
        await self._names.serve(self._udp, self._tcp)
        host = "127.0.0.1" if settings.dns_host == "0.0.0.0" else settings.dns_host  # noqa: S104
        await dns_service.announce(control.client, address, host, udp, tcp)
        await self._start_services(control, directory)

    async def _start_services(self, control: ControlContext, directory: ClusterDirectory) -> None:
        context, settings = self.context, self.context.settings
        self._proxy = proxy = PlatformProxy(control, "", [settings.node_port_host])
        self._policies = policies = NetworkPolicies(control)
        self._host = ForwardPath(context.clock, context.tasks)
        self._forwarders = ForwardPath(context.clock, context.tasks, lambda one: (self._shown(one.address), one.port))
        self._attachment = attachment = Attachment(
            control, proxy, policies, self._forwarders, settings.data_path, directory.forget
        )
        balancers = LoadBalancers(control, settings.load_balancer_range or self._own_range())

        def for_host(frontend: Frontend, backends: Backends) -> bool:
            if backends.reach == "node":
                return frontend.address == settings.node_port_host
            return backends.reach == "external" and is_loopback(frontend.address)

        await proxy.use(self._host, for_host)
        self._health = HealthChecks(control, settings.node_port_host, lambda: proxy.node)
        self._host_ports = ForwardPath(context.clock, context.tasks)
        host_ports = HostPorts(control, self._host_ports, settings.node_port_host, lambda: proxy.node)
        mirror = EndpointMirror(control)
        for controller in (proxy, policies, balancers, mirror, attachment, self._health, host_ports):
            await controller.start()
        count = gauge(context.metrics, "sampan_network_frontends", "Addresses and ports of Services.", ())
        count.set_function(lambda: len(proxy.frontends))
        isolated = gauge(context.metrics, "sampan_network_isolated_pods", "Pods that a policy selects.", ())
        isolated.set_function(lambda: policies.isolated)

    def _shown(self, address: str) -> str:
        """The address of a Service that clients are told: itself, or where its forwarder listens."""
        if self._attachment is None or self._attachment.mode != "forward" or is_loopback(address):
            return address
        return loopback_address(address)

    def _own_range(self) -> str:
        """Platforms side by side must not take each other's addresses."""
        high, low = hashlib.sha256(str(self.context.root).encode()).digest()[:2]
        return f"127.{64 + high % 16}.{low}.0/24"

    async def stop(self) -> None:
        """Close the sockets."""
        await self.context.tasks.cancel()
        if self._names is not None:
            self._names.close()
        if self._attachment is not None:
            self._host.close()
            self._host_ports.close()
            self._health.close()
            self._forwarders.close()
            if self._attachment.kernel is not None:
                self._attachment.kernel.close()
        for bound in (self._udp, self._tcp):
            if bound is not None:
                bound.close()

    def status(self) -> dict[str, Any]:
        """How Services are reached and how many there are."""
        if self._attachment is None or self._names is None:
            return {}
        return {
            "data path": self._attachment.mode or "none (no node)",
            "frontends": len(self._proxy.frontends),
            "isolated pods": self._policies.isolated,
            "names answered": self._names.answered,
        }


class PlatformProxy(ServiceProxy):
    """Services as they are reached from the platform's machine."""

    def _seen(self, key: Key, slices: Sequence[Object]) -> Sequence[Object]:
        return [reached(one, self.is_here) for one in slices]

    def is_here(self, node: str) -> bool:
        """What has a loopback address on this node can be reached: it did not join from another machine."""
        found = self.informer(NODES).get(Key("", node)) if node else None
        if found is None or JOINED not in (found["metadata"].get("annotations") or {}):
            return True
        addresses = [one["address"] for one in dig(found, "status", "addresses", default=())]
        return any(is_own(address) for address in addresses if address[:1].isdecimal())


def resolvers(given: Sequence[str]) -> list[tuple[str, int]]:
    """The name servers to ask for outside names: those given, else the machine's own.

    Raises:
        SettingsError: one of them is not an address.
    """
    if not given:
        return host_resolvers()
    found = []
    for one in given:
        host, _, port = one.rpartition(":") if one.count(":") == 1 else (one, "", "53")
        try:
            found.append((str(ip_address(host)), int(port)))
        except ValueError:
            raise SettingsError(f"network.upstream: {one} is not an address; give 10.0.0.2 or 10.0.0.2:53") from None
    return found


def bind_udp(host: str, port: int) -> socket.socket:
    """A UDP socket at a port, or any other where that one is taken (pods find it through the Service)."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    bound.setblocking(False)
    with contextlib.suppress(OSError):
        bound.bind((host, port))
        return bound
    bound.bind((host, 0))
    return bound
