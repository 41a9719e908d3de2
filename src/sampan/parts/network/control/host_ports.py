"""Ports of the node that lead to pods (``hostPort``): a forwarder each, for as long as the pod runs.

The scheduler lets no two pods of a node have the same one; where a program of the machine has it, an event on the pod says so and
it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import PODS
from sampan.parts.network.control.proxy import RETRY_SECONDS, explained
from sampan.parts.network.datapath.forward import ForwardPath
from sampan.parts.network.services import Backends, Frontend


class HostPorts(Controller):
    """Listens at the node's ports that its pods ask for."""

    name = "host-ports"

    def __init__(self, context: ControlContext, path: ForwardPath, host: str, node: Callable[[], str]) -> None:
        """``host`` is where ports of the node are; ``node`` gives this node's name once it is known."""
        super().__init__(context)
        self._path = path
        self._host = host
        self._node = node
        self._held: dict[Key, dict[Frontend, Backends]] = {}
        self._told: dict[Key, str] = {}

    def sources(self) -> list[Source]:
        return [For(PODS)]

    async def reconcile(self, key: Key) -> float | None:
        pod = self.informer(PODS).get(key)
        new = host_ports(pod, self._host) if pod is not None else {}
        if new and not self._node():
            return 1.0
        if pod is None or pod["spec"].get("nodeName") != self._node():
            new = {}
        old = self._held.pop(key, {})
        for frontend in old.keys() - new.keys():
            await self._path.drop(frontend)
        failures = []
        for frontend, backends in new.items():
            if any(frontend in other for other in self._held.values()):
                continue  # of a pod that has not gone yet; this one is looked at again
            try:
                await self._path.put(frontend, backends)
            except OSError as error:
                failures.append(explained(frontend, error))
            else:
                self._held.setdefault(key, {})[frontend] = backends
        told = self._told.pop(key, "")
        if failures and pod is not None:
            self._told[key] = "; ".join(failures)
            if self._told[key] != told:
                self.recorder.event(pod, "Warning", "FailedToListen", self._told[key])
        return RETRY_SECONDS if failures else 1.0 if len(self._held.get(key, {})) < len(new) else None


def host_ports(pod: Object, host: str) -> dict[Frontend, Backends]:
    """The node's ports that lead to a pod, while it runs. Pure."""
    address, spec = dig(pod, "status", "podIP"), pod["spec"]
    if not address or spec.get("hostNetwork") or dig(pod, "status", "phase") in ("Succeeded", "Failed"):
        return {}
    sidecars = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    return {
        Frontend(_listened(port, host), port["hostPort"], port.get("protocol") or "TCP"): Backends(
            ((address, port["containerPort"]),), reach="node", name=port.get("name") or ""
        )
        for container in [*spec["containers"], *sidecars]
        for port in container.get("ports") or ()
        if port.get("hostPort") and (port.get("protocol") or "TCP") != "SCTP"
    }


def _listened(port: Object, host: str) -> str:
    asked = port.get("hostIP")
    return host if asked in (None, "", "0.0.0.0") else str(asked)  # noqa: S104 - read, not bound
