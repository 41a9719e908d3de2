"""What the network does on every machine that has pods: Services, policy, names.

`MachineNetwork` is what the platform's own part and that of a joined node (``part`` and ``joined``) share: the settings, the name
server, the data paths with their life, and what ``sampan status`` shows.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec

from sampan.kernel.addresses import advertised
from sampan.kernel.errors import SettingsError
from sampan.kernel.part import Part, PartSettings
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key
from sampan.kube.resources import SERVICES
from sampan.parts.network import loopback_address
from sampan.parts.network.control.attachment import Attachment, is_loopback
from sampan.parts.network.control.policies import NetworkPolicies
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.directory import ClusterDirectory
from sampan.parts.network.dns.server import NameServer
from sampan.parts.network.dns.upstream import Upstream, host_resolvers
from sampan.parts.network.dns.zone import Zone

API_SERVER = Key("default", "kubernetes")
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
        msgspec.Meta(
            description="how pods reach Services; `auto` is eBPF where the node can, else forwarders; pods with network namespaces always have nf_tables"
        ),
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


class NamesAt(NamedTuple):
    """Where a machine's name server is."""

    cluster_address: str
    """Its Service's."""
    host: str
    """What others reach it at."""
    udp: int
    tcp: int


class MachineNetwork(Part[NetworkSettings]):
    """Services, policy and names on one machine."""

    name = "network"
    needs = ("kubernetes",)
    settings_type: ClassVar[type[PartSettings]] = NetworkSettings

    _udp: socket.socket | None = None
    _tcp: socket.socket | None = None
    _names: NameServer | None = None
    _attachment: Attachment | None = None
    _directory: ClusterDirectory
    _proxy: ServiceProxy
    _policies: NetworkPolicies
    _host: ForwardPath
    _host_ports: ForwardPath

    def _bind_names(self) -> None:
        """Take the name server's sockets and find out whom it asks.

        Raises:
            SettingsError: `NetworkSettings.upstream` names no address.
            PortTakenError: somebody else listens there.
        """
        context, settings = self.context, self.context.settings
        self._upstream = resolvers(settings.upstream)
        self._tcp = context.listeners.bind("dns", settings.dns_port, settings.dns_host)
        self._udp = bind_udp(settings.dns_host, self._tcp.getsockname()[1])

    async def _serve_names(self, control: ControlContext) -> NamesAt:
        """Answer names on the sockets that `_bind_names` took."""
        context, settings = self.context, self.context.settings
        self._directory = ClusterDirectory(control.informers, self._shown)
        await self._directory.wait_synced()
        api_server = control.informers.informer(SERVICES).get(API_SERVER)
        assert api_server is not None  # made by the API server before anybody else comes
        address = str(ip_address(api_server["spec"]["clusterIP"]) + DNS_PLACE)
        zone = Zone(self._directory, settings.domain, settings.dns_ttl, address)
        upstream = Upstream(context.clock, self._upstream)
        self._names = NameServer(zone, upstream, context.clock, context.tasks, context.metrics)
        assert self._udp is not None
        assert self._tcp is not None
        await self._names.serve(self._udp, self._tcp)
        udp, tcp = self._udp.getsockname()[1], self._tcp.getsockname()[1]
        return NamesAt(address, advertised(settings.dns_host), udp, tcp)

    def _attach(
        self,
        control: ControlContext,
        proxy: ServiceProxy,
        forwarders: type[ForwardPath],
        changed: Callable[[], None],
        node: str = "",
    ) -> Attachment:
        """Make the data paths of this machine's pods and of the machine itself; their controllers are the caller's to start."""
        context = self.context
        self._proxy, self._policies = proxy, NetworkPolicies(control)
        self._host = ForwardPath(context.clock, context.tasks)
        self._host_ports = ForwardPath(context.clock, context.tasks)
        self._forwarders = forwarders(context.clock, context.tasks, lambda one: (self._shown(one.address), one.port))
        self._attachment = Attachment(
            control, proxy, self._policies, self._forwarders, context.settings.data_path, changed, node
        )
        return self._attachment

    def _shown(self, address: str) -> str:
        """The address of a Service that clients are told: itself, or where its forwarder listens."""
        if self._attachment is None or self._attachment.mode != "forward" or is_loopback(address):
            return address
        return loopback_address(address)

    async def stop(self) -> None:
        """Close the sockets."""
        await self.context.tasks.cancel()
        if self._names is not None:
            self._names.close()
        if self._attachment is not None:
            for path in (self._host, self._host_ports, self._forwarders, self._attachment.kernel):
                if path is not None:
                    path.close()
        for bound in (self._udp, self._tcp):
            if bound is not None:
                bound.close()

    def status(self) -> dict[str, Any]:
        """How Services are reached and how many there are."""
        if self._attachment is None:
            return {}
        mode = self._attachment.mode or "none (no node)"
        facts = {
            "data path": f"{mode} and nft" if self._attachment.packets is not None and mode != "nft" else mode,
            "frontends": len(self._proxy.frontends),
            "isolated pods": self._policies.isolated,
        }
        return facts if self._names is None else {**facts, "names answered": self._names.answered}


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
