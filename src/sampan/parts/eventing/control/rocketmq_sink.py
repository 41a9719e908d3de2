"""RocketMQSink objects: gives each its address; ``fronts.rocketmq_sink`` takes the events."""

from __future__ import annotations

from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.resources import ROCKETMQ_SINKS, TOPIC_HOST


class RocketMQSinkController(Controller):
    """Makes sinks addressable."""

    name = "rocketmqsink-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)

    def sources(self) -> list[Source]:
        return [For(ROCKETMQ_SINKS)]

    async def reconcile(self, key: Key) -> float | None:
        sink = self.informer(ROCKETMQ_SINKS).get(key)
        if sink is None or sink["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(sink, ("Addressable",), self.clock.now())
        conditions.true("Addressable")
        url = f"http://{TOPIC_HOST}/{key.namespace}/{key.name}"
        await write_status(self, ROCKETMQ_SINKS, sink, conditions, address(url))
        return None
