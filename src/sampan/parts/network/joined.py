"""The network of a joined node: Services, policy and cluster DNS for its pods.

On a machine of its own the node has everything itself: the data path, a name server (so pods ask nobody far away), node
ports at its address, and the loopback endpoints of the platform's machine are left out, but for two that it knows better: the
API server's, and the name server's. On the platform's own machine the platform serves the machine, and only what belongs to
this node's pods is done here.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from sampan.kube.control.controller import ControlContext
from sampan.kube.joining.interface import Joined
from sampan.kube.objects import Key, Object
from sampan.parts.network.control.host_ports import HostPorts
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.machine import API_SERVER, MachineNetwork
from sampan.parts.network.services import Backends, Frontend, reached

NAME_SERVER = Key("kube-system", "kube-dns")


class JoinedNetworkPart(MachineNetwork):
    """Services, policy and names for the pods of a joined node."""

    async def start(self) -> None:
        """Follow Services, policies and, on a machine of its own, serve names."""
        context = self.context
        joined = context.get(Joined)
        shared = joined.network_control
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks, shared.metrics)
        here: dict[Key, Mapping[str, tuple[str, int]]] = {}
        if not joined.same_machine:
            self._bind_names()
            names = await self._serve_names(control)
            here[NAME_SERVER] = {"UDP": (names.host, names.udp), "TCP": (names.host, names.tcp)}
            here[API_SERVER] = {"TCP": joined.server}
        proxy = JoinedProxy(control, joined, here)
        changed = self._directory.forget if self._names is not None else (lambda: None)
        kind = SharedForwardPath if joined.same_machine else ForwardPath
        attachment = self._attach(control, proxy, kind, changed, joined.node)
        if not joined.same_machine:
            await proxy.use(
                self._host,
                lambda frontend, backends: backends.reach == "node" and frontend.address == proxy.node_addresses[0],
            )
        host_ports = HostPorts(control, self._host_ports, joined.address, lambda: joined.node)
        for controller in (proxy, self._policies, attachment, host_ports):
            await controller.start()


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
