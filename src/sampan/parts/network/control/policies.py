"""NetworkPolicies to the kernel's tables: compiled anew when policies, or what they select by, change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object
from sampan.kube.resources import NAMESPACES, NETWORK_POLICIES, PODS
from sampan.parts.network import policy
from sampan.parts.network.policy import Isolation

_ALL = Key("", "policies")

Enforce = Callable[[Mapping[str, Isolation]], Awaitable[None]]


class NetworkPolicies(Controller):
    """Compiles all policies together; a policy that this node cannot keep is told so by an event."""

    name = "network-policy"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._enforce: Enforce | None = None
        self._told: set[str] = set()
        self._enforced = False
        self.isolated = 0
        """Pods that some policy selects."""

    def sources(self) -> list[Source]:
        return [For(NETWORK_POLICIES), Watches(PODS, self._if_any), Watches(NAMESPACES, self._if_any)]

    def _if_any(self, obj: Object) -> Iterable[Key]:
        return (_ALL,) if self._enforced or self.informer(NETWORK_POLICIES).objects() else ()

    def use(self, enforce: Enforce | None) -> None:
        """Enforce by this from now on; None: nothing here can."""
        self._enforce = enforce
        self._enforced = False
        self.queue.add(_ALL)

    async def reconcile(self, key: Key) -> float | None:
        if key != _ALL:
            self.queue.add(_ALL)  # one compilation for however many policies changed
            return None
        policies = self.informer(NETWORK_POLICIES).objects()
        if self._enforce is None:
            self.isolated = 0
            for one in policies:
                self._tell(one)
            return None
        isolated = self.compiled()
        await self._enforce(isolated)
        self._enforced = bool(policies)
        self.isolated = len(isolated)
        return None

    def compiled(self) -> dict[str, Isolation]:
        """What isolated pods may do now."""
        policies = self.informer(NETWORK_POLICIES).objects()
        namespaces = {
            one["metadata"]["name"]: one["metadata"].get("labels") or {} for one in self.informer(NAMESPACES).objects()
        }
        return policy.compile(policies, self.informer(PODS).objects(), namespaces) if policies else {}

    def _tell(self, one: Object) -> None:
        uid = one["metadata"]["uid"]
        if uid in self._told:
            return
        self._told.add(uid)
        self.recorder.event(
            one,
            "Warning",
            "PolicyNotEnforced",
            "pods have no addresses of their own on this node (that needs root, tier T1 or T1n), "
            "so nothing tells their connections apart",
        )
