"""Sequence and Parallel: flows made of channels and subscriptions, as one would make them by hand."""

from __future__ import annotations

from typing import Any

from sampan.kube.control.conditions import ConditionSet, condition, is_ready
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Owns, Source
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.resources import IN_MEMORY_CHANNELS, MESSAGING, PARALLELS, SEQUENCES, SUBSCRIPTIONS

DEPENDENTS = ("ChannelsReady", "SubscriptionsReady", "Addressable")


class _FlowController(Controller):
    """What both flows share: owned channels and subscriptions, and readiness from theirs."""

    resource: Resource
    kind: str

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared

    def sources(self) -> list[Source]:
        return [For(self.resource), Owns(IN_MEMORY_CHANNELS, self.kind), Owns(SUBSCRIPTIONS, self.kind)]

    async def _channel(self, flow: Object, name: str) -> Object:
        template = flow["spec"]["channelTemplate"]
        wanted = {
            "apiVersion": template["apiVersion"],
            "kind": template["kind"],
            "metadata": {"name": name, "namespace": flow["metadata"]["namespace"]},
            "spec": copy(template.get("spec") or {}),
        }
        return await ensure(self, self._shared.addressing.resource_of(template), flow, wanted, keep=("subscribers",))

    async def _subscription(self, flow: Object, name: str, channel: str, **spec: Any) -> Object:
        template = flow["spec"]["channelTemplate"]
        reference = {"apiVersion": template["apiVersion"], "kind": template["kind"], "name": channel}
        wanted = {
            "apiVersion": f"{MESSAGING}/v1",
            "kind": "Subscription",
            "metadata": {"name": name, "namespace": flow["metadata"]["namespace"]},
            "spec": {"channel": reference, **{field: value for field, value in spec.items() if value}},
        }
        return await ensure(self, SUBSCRIPTIONS, flow, wanted)

    def _to(self, flow: Object, channel: str) -> Object:
        """A Destination: one of the flow's channels."""
        template = flow["spec"]["channelTemplate"]
        namespace = flow["metadata"]["namespace"]
        return {
            "ref": {
                "apiVersion": template["apiVersion"],
                "kind": template["kind"],
                "name": channel,
                "namespace": namespace,
            }
        }

    async def _prune(self, flow: Object, wanted: set[str]) -> None:
        """Delete what earlier steps left behind."""
        template = flow["spec"]["channelTemplate"]
        for resource in (SUBSCRIPTIONS, self._shared.addressing.resource_of(template)):
            for one in self.informer(resource).indexed("owner", flow["metadata"]["uid"]):
                if one["metadata"]["name"] not in wanted:
                    try:
                        await self.client.delete(resource, one["metadata"]["name"], one["metadata"]["namespace"])
                    except ApiError as error:
                        if not error.not_found:
                            raise

    def _judge(
        self, conditions: ConditionSet, channels: list[Object], subscriptions: list[Object], first: Object | None
    ) -> dict[str, Any]:
        for kind, members in (("ChannelsReady", channels), ("SubscriptionsReady", subscriptions)):
            waiting = [one for one in members if not is_ready(one)]
            if members and not waiting:
                conditions.true(kind)
            else:
                names = ", ".join(one["metadata"]["name"] for one in waiting)
                conditions.unknown(kind, f"{kind.removesuffix('Ready')}NotReady", f"waiting for {names}")
        url = dig(first, "status", "address", "url")
        if url:
            conditions.true("Addressable")
            return address(url)
        conditions.unknown("Addressable", "emptyAddress", "the first channel has no address yet")
        return {}


def _reference(obj: Object) -> Object:
    metadata = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": metadata["name"],
        "namespace": metadata["namespace"],
    }


def _ready(obj: Object) -> Object:
    found = condition(obj)
    return dict(found) if found else {"type": "Ready", "status": "Unknown"}


class SequenceController(_FlowController):
    """Each step's answer goes to the next step."""

    name = "sequence-controller"
    resource, kind = SEQUENCES, "Sequence"

    async def reconcile(self, key: Key) -> float | None:
        sequence = self.informer(SEQUENCES).get(key)
        if sequence is None or sequence["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(sequence, DEPENDENTS, self.clock.now())
        steps = sequence["spec"]["steps"]
        names = [f"{key.name}-kn-sequence-{number}" for number in range(len(steps))]
        fields: dict[str, Any] = {}
        try:
            channels = [await self._channel(sequence, name) for name in names]
            subscriptions = []
            for number, step in enumerate(steps):
                following = sequence["spec"].get("reply") if number + 1 == len(steps) else None
                subscriptions.append(
                    await self._subscription(
                        sequence,
                        names[number],
                        names[number],
                        subscriber={field: value for field, value in step.items() if field != "delivery"},
                        reply=copy(following) if number + 1 == len(steps) else self._to(sequence, names[number + 1]),
                        delivery=step.get("delivery"),
                    )
                )
            await self._prune(sequence, set(names))
            fields = self._judge(conditions, channels, subscriptions, channels[0])
            fields["channelStatuses"] = [{"channel": _reference(one), "ready": _ready(one)} for one in channels]
            fields["subscriptionStatuses"] = [
                {"subscription": _reference(one), "ready": _ready(one)} for one in subscriptions
            ]
        except (NotOwnedError, UnresolvedError) as error:
            conditions.false("ChannelsReady", "ChannelsNotReady", str(error))
        await write_status(self, SEQUENCES, sequence, conditions, fields)
        return None


class ParallelController(_FlowController):
    """Every branch gets every event that its filter lets through."""

    name = "parallel-controller"
    resource, kind = PARALLELS, "Parallel"

    async def reconcile(self, key: Key) -> float | None:
        parallel = self.informer(PARALLELS).get(key)
        if parallel is None or parallel["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(parallel, DEPENDENTS, self.clock.now())
        entrance = f"{key.name}-kn-parallel"
        wanted, rows = {entrance}, []
        fields: dict[str, Any] = {}
        try:
            channels = [await self._channel(parallel, entrance)]
            subscriptions: list[Object] = []
            for number, branch in enumerate(parallel["spec"]["branches"]):
                inner, sieve = f"{entrance}-{number}", f"{entrance}-filter-{number}"
                wanted |= {inner, sieve}
                channel = await self._channel(parallel, inner)
                # without a filter the event goes on as it is: a subscription with a reply only
                filtered = await self._subscription(
                    parallel, sieve, entrance, subscriber=branch.get("filter"), reply=self._to(parallel, inner)
                )
                served = await self._subscription(
                    parallel,
                    inner,
                    inner,
                    subscriber=branch["subscriber"],
                    reply=branch.get("reply") or parallel["spec"].get("reply"),
                    delivery=branch.get("delivery"),
                )
                channels.append(channel)
                subscriptions += [filtered, served]
                rows.append(
                    {
                        "filterSubscriptionStatus": {"subscription": _reference(filtered), "ready": _ready(filtered)},
                        "filterChannelStatus": {"channel": _reference(channel), "ready": _ready(channel)},
                        "subscriptionStatus": {"subscription": _reference(served), "ready": _ready(served)},
                    }
                )
            await self._prune(parallel, wanted)
            fields = self._judge(conditions, channels, subscriptions, channels[0])
            fields["ingressChannelStatus"] = {"channel": _reference(channels[0]), "ready": _ready(channels[0])}
            fields["branchStatuses"] = rows
        except (NotOwnedError, UnresolvedError) as error:
            conditions.false("ChannelsReady", "ChannelsNotReady", str(error))
        await write_status(self, PARALLELS, parallel, conditions, fields)
        return None
