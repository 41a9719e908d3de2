"""The network of a joined node: Services, policy and cluster DNS for its pods.

On a machine of its own the node has everything itself: the data path, a name server (so pods ask nobody far away), node
ports at its address, and the loopback endpoints of the platform's machine are left out, but for two that it knows better: the
API server's, and the name server's. On the platform's own machine the platform serves the machine, and only what belongs to
this node's pods is done here.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, ClassVar

from sampan.kernel.addresses import advertised
from sampan.kernel.part import Part, PartSettings
from sampan.kube.control.controller import ControlContext
from sampan.kube.joining.interface import Joined
from sampan.kube.objects import Key, Object
from sampan.kube.resources import SERVICES
from sampan.parts.network import loopback_address
from sampan.parts.network.control.attachment import Attachment, is_loopback
from sampan.parts.network.control.host_ports import HostPorts
from sampan.parts.network.control.policies import NetworkPolicies
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.directory import ClusterDirectory
from sampan.parts.network.dns.server import NameServer
from sampan.parts.network.dns.upstream import Upstream
from sampan.parts.network.dns.zone import Zone
from sampan.parts.network.part import DNS_PLACE, NetworkSettings, bind_udp, resolvers
from sampan.parts.network.services import Backends, Frontend, reached

API_SERVER = Key("default", "kubernetes")
NAME_SERVER = Key("kube-system", "kube-dns")


class JoinedNetworkPart(Part[NetworkSettings]):
    """Services, policy and names for the pods of a joined node."""

    name = "network"
    needs = ("kubernetes",)
    settings_type: ClassVar[type[PartSettings]] = NetworkSettings

    _udp: socket.socket | None = None
    _tcp: socket.socket | None = None
    _names: NameServer | None = None
    _attachment: Attachment | None = None

    async def start(self) -> None:
        """Follow Services, policies and, on a machine of its own, serve names."""
        context, settings = self.context, self.context.settings
        self._joined = joined = context.get(Joined)
        shared = joined.network_control
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks, shared.metrics)
        here: dict[Key, Mapping[str, tuple[str, int]]] = {}
        if not joined.same_machine:
            here[NAME_SERVER] = await self._serve_names(control)
            here[API_SERVER] = {"TCP": joined.server}
        self._proxy = proxy = JoinedProxy(control, joined, here)
        self._policies = policies = NetworkPolicies(control)
        self._host = ForwardPath(context.clock, context.tasks)
        kind = SharedForwardPath if joined.same_machine else ForwardPath
        self._forwarders = kind(context.clock, context.tasks, lambda one: (self._shown(one.address), one.port))
        changed = self._directory.forget if self._names is not None else (lambda: None)
        self._attachment = Attachment(
            control, proxy, policies, self._forwarders, settings.data_path, changed, joined.node
        )
        if not joined.same_machine:
            await proxy.use(self._host, lambda frontend, backends: self._for_host(frontend, backends))
        self._host_ports = ForwardPath(context.clock, context.tasks)
        host_ports = HostPorts(control, self._host_ports, joined.address, lambda: joined.node)
        for controller in (proxy, policies, self._attachment, host_ports):
            await controller.start()

    async def _serve_names(self, control: ControlContext) -> dict[str, tuple[str, int]]:
        """A name server of this machine; where it listens, by protocol."""
        context, settings = self.context, self.context.settings
        self._directory = directory = ClusterDirectory(control.informers, self._shown)
        await directory.wait_synced()
        api_server = control.informers.informer(SERVICES).get(API_SERVER)
        assert api_server is not None  # the API server makes it before anybody can join
        address = str(ip_address(api_server["spec"]["clusterIP"]) + DNS_PLACE)
        self._tcp = context.listeners.bind("dns", settings.dns_port, settings.dns_host)
        self._udp = bind_udp(settings.dns_host, self._tcp.getsockname()[1])
        udp, tcp = self._udp.getsockname()[1], self._tcp.getsockname()[1]
        zone = Zone(directory, settings.domain, settings.dns_ttl, address)
        upstream = Upstream(context.clock, resolvers(settings.upstream))
        self._names = NameServer(zone, upstream, context.clock, context.tasks, context.metrics)
        await self._names.serve(self._udp, self._tcp)
        host = advertised(settings.dns_host)
        return {"UDP": (host, udp), "TCP": (host, tcp)}

    def _for_host(self, frontend: Frontend, backends: Backends) -> bool:
        return backends.reach == "node" and frontend.address == self._proxy.node_addresses[0]

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
            self._host.close()
            self._host_ports.close()
            self._forwarders.close()
            if self._attachment.kernel is not None:
                self._attachment.kernel.close()
        for bound in (self._udp, self._tcp):
            if bound is not None:
                bound.close()

    def status(self) -> dict[str, Any]:
        """How Services are reached and how many there are."""
        if self._attachment is None:
            return {}
        return {
            "data path": self._attachment.mode or "none (no node)",
            "frontends": len(self._proxy.frontends),
            "isolated pods": self._policies.isolated,
        }


class JoinedProxy(ServiceProxy):
    """Services as they are reached from a joined node."""

    def __init__(
        self, context: ControlContext, joined: Joined, here: Mapping[Key, Mapping[str, tuple[str, int]]]
    ) -> None:
        """``here``: the endpoints, by protocol, of Services that this machine reaches in another way."""
        super().__init__(context, joined.node, [joined.address])
        self._here = here
        self._apart = not joined.same_machine

    def _seen(self, key: Key, slices: Sequence[Object]) -> Sequence[Object]:
        if not self._apart:
            return slices
        return [reached(one, self.is_here, self._here.get(key)) for one in slices]

    def is_here(self, node: str) -> bool:
        """What has a loopback address on this node can be reached."""
        return node == self.node


class SharedForwardPath(ForwardPath):
    """Forwarders on a machine where another process of the same platform may have the same ones: one is enough."""

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """See `DataPath`."""
        try:
            await super().put(frontend, backends)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
