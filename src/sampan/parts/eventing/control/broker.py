"""Brokers: a topic each, and the address under which the ingress takes events for it."""

from __future__ import annotations

from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.names import topic_of
from sampan.parts.eventing.resources import BROKERS, INGRESS_HOST
from sampan.parts.eventing.streams import UnavailableError

DEPENDENTS = (
    "IngressReady",
    "TriggerChannelReady",
    "FilterReady",
    "Addressable",
    "DeadLetterSinkResolved",
    "EventPoliciesReady",
)
RETRY_UNAVAILABLE = 1.0
"""Seconds until messaging is asked again."""


class BrokerController(Controller):
    """Makes brokers ready."""

    name = "broker-controller"
    workers = 2

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._topics: dict[Key, str] = {}

    def sources(self) -> list[Source]:
        return [For(BROKERS)]

    async def reconcile(self, key: Key) -> float | None:
        broker = self.informer(BROKERS).get(key)
        topic = None if broker is None else topic_of(broker)
        known = self._topics.get(key)
        if known is not None and known != topic:
            await self._shared.streams.delete_topic(known)
            del self._topics[key]
        if broker is None or topic is None or broker["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(broker, DEPENDENTS, self.clock.now())
        again: float | None = None
        try:
            if key not in self._topics:
                await self._shared.streams.make_topic(topic)
                self._topics[key] = topic
            conditions.true("TriggerChannelReady")
        except UnavailableError as error:
            conditions.false("TriggerChannelReady", "ChannelUnavailable", str(error))
            again = RETRY_UNAVAILABLE
        for condition in ("IngressReady", "FilterReady", "Addressable"):
            conditions.true(condition)
        conditions.true(
            "EventPoliciesReady", "DefaultAuthorizationMode", 'Default authz mode is "Allow-Same-Namespace"'
        )
        delivery = (broker.get("spec") or {}).get("delivery")
        dead_letter = ""
        try:
            dead_letter = await self._shared.dead_letter(delivery, key.namespace, self.queue, key)
            if dead_letter:
                conditions.true("DeadLetterSinkResolved")
            else:
                conditions.true(
                    "DeadLetterSinkResolved", "DeadLetterSinkNotConfigured", "No dead letter sink is configured."
                )
        except UnresolvedError as error:
            conditions.false("DeadLetterSinkResolved", error.reason, str(error))
        url = f"http://{INGRESS_HOST}/{key.namespace}/{key.name}"
        fields = {**address(url), "deadLetterSinkUri": dead_letter or None}
        await write_status(self, BROKERS, broker, conditions, fields)
        return again
