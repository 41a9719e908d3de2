"""Load balancers for Services that ask for one: each gets a loopback address of its own, on which the host reaches it.

Services of another ``loadBalancerClass`` are left to their own controller.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import SERVICES

CLASS = "sampan.dev/loopback"
"""The ``loadBalancerClass`` that asks for this controller; Services without a class get it, too."""


def is_ours(service: Object) -> bool:
    """The Service wants a load balancer, and of us."""
    spec = service["spec"]
    wants = spec.get("type") == "LoadBalancer" and not service["metadata"].get("deletionTimestamp")
    return wants and spec.get("loadBalancerClass") in (None, CLASS)


def addresses_of(service: Object) -> list[str]:
    """The addresses a Service has been given."""
    return [one["ip"] for one in dig(service, "status", "loadBalancer", "ingress", default=()) if one.get("ip")]


class LoadBalancers(Controller):
    """Gives addresses out of a range, and takes them back."""

    name = "service-lb-controller"

    def __init__(self, context: ControlContext, network: str) -> None:
        super().__init__(context)
        self._range = IPv4Network(network)
        self._given: dict[Key, str] = {}

    def sources(self) -> list[Source]:
        return [For(SERVICES)]

    def _in_range(self, address: str) -> bool:
        return IPv4Address(address) in self._range

    async def reconcile(self, key: Key) -> float | None:
        service = self.informer(SERVICES).get(key)
        if service is None:
            self._given.pop(key, None)
            return None
        current = addresses_of(service)
        if not is_ours(service):
            self._given.pop(key, None)
            if service["spec"].get("type") != "LoadBalancer" and current:
                await self._write(service, [])
            return None
        if key in self._given or (current and all(self._in_range(one) for one in current)):
            self._given.setdefault(key, current[0] if current else "")
            if current and self._given[key] == current[0]:
                return None
        address = self._given.get(key) or self._choose(service)
        if address is None:
            self.recorder.event(
                service,
                "Warning",
                "SyncLoadBalancerFailed",
                f"no address of {self._range} is free for the load balancer",
            )
            return 30.0
        self._given[key] = address
        ports = [{"port": port["port"], "protocol": port.get("protocol") or "TCP"} for port in service["spec"]["ports"]]
        self.recorder.event(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        await self._write(service, [{"ip": address, "ipMode": "VIP", "ports": ports}])
        self.recorder.event(service, "Normal", "EnsuredLoadBalancer", f"Ensured load balancer at {address}")
        return None

    def _choose(self, service: Object) -> str | None:
        taken = set(self._given.values())
        for other in self.informer(SERVICES).objects():
            if other["metadata"]["uid"] != service["metadata"]["uid"]:
                taken.update(addresses_of(other))
        wished = service["spec"].get("loadBalancerIP")
        if wished and self._in_range(wished) and wished not in taken:
            return str(wished)
        return next((str(one) for one in self._range.hosts() if str(one) not in taken), None)

    async def _write(self, service: Object, ingress: list[Any]) -> None:
        metadata = service["metadata"]
        await self.client.patch(
            SERVICES,
            metadata["name"],
            {"status": {"loadBalancer": {"ingress": ingress or None}}},
            metadata["namespace"],
            subresource="status",
        )
