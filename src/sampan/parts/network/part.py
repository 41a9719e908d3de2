"""The network part: cluster DNS, Services and NetworkPolicy.

Read this first. Three functions decide: ``records`` what DNS says of a Service, ``services`` what can be connected to and where
that leads, ``policy`` which pods may speak. ``dns`` answers names. ``control.proxy`` puts frontends on data paths
(``datapath``): pods of a node with eBPF get the kernel's, everyone else forwarders in user space; ``control.attachment`` finds
out which. Node ports and load balancers are forwarders on the host in every tier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sampan.kernel.addresses import is_own
from sampan.kernel.telemetry import gauge
from sampan.kube.control.controller import ControlContext
from sampan.kube.joining.interface import JOINED
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import NODES
from sampan.parts.network.control import dns_service
from sampan.parts.network.control.attachment import is_loopback
from sampan.parts.network.control.balancer import LoadBalancers
from sampan.parts.network.control.health import HealthChecks
from sampan.parts.network.control.host_ports import HostPorts
from sampan.parts.network.control.mirroring import EndpointMirror
from sampan.parts.network.control.proxy import ServiceProxy
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.machine import MachineNetwork
from sampan.parts.network.services import Backends, Frontend, reached


class NetworkPart(MachineNetwork):
    """Cluster DNS, Services, NetworkPolicy."""

    _health: HealthChecks | None = None

    async def provision(self) -> None:
        """Bind the name server's sockets."""
        self._bind_names()

    async def start(self) -> None:
        """Serve names and announce where."""
        context = self.context
        shared = context.get(ControlContext)
        control = ControlContext(shared.client, shared.informers, shared.clock, context.tasks, shared.metrics)
        names = await self._serve_names(control)
        await dns_service.announce(control.client, *names)
        await self._start_services(control)

    async def _start_services(self, control: ControlContext) -> None:
        context, settings = self.context, self.context.settings
        proxy = PlatformProxy(control, "", [settings.node_port_host])
        attachment = self._attach(control, proxy, ForwardPath, self._directory.forget)
        policies = self._policies
        balancers = LoadBalancers(control, settings.load_balancer_range or self._own_range())

        def for_host(frontend: Frontend, backends: Backends) -> bool:
            if backends.reach == "node":
                return frontend.address == settings.node_port_host
            return backends.reach == "external" and is_loopback(frontend.address)

        await proxy.use(self._host, for_host)
        self._health = HealthChecks(control, settings.node_port_host, lambda: proxy.node)
        host_ports = HostPorts(control, self._host_ports, settings.node_port_host, lambda: proxy.node)
        mirror = EndpointMirror(control)
        for controller in (proxy, policies, balancers, mirror, attachment, self._health, host_ports):
            await controller.start()
        count = gauge(context.metrics, "sampan_network_frontends", "Addresses and ports of Services.", ())
        count.set_function(lambda: len(proxy.frontends))
        isolated = gauge(context.metrics, "sampan_network_isolated_pods", "Pods that a policy selects.", ())
        isolated.set_function(lambda: policies.isolated)

    def _own_range(self) -> str:
        """Platforms side by side must not take each other's addresses."""
        high, low = hashlib.sha256(str(self.context.root).encode()).digest()[:2]
        return f"127.{64 + high % 16}.{low}.0/24"

    async def stop(self) -> None:
        """Close the sockets."""
        await super().stop()
        if self._health is not None:
            self._health.close()


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
