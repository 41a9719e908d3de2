"""Triggers: a consumer group each, reading the broker's topic for one subscriber.

A Trigger is ready only when its group exists, so that every event accepted after that reaches it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from sampan.kube.control.conditions import ConditionSet, is_ready
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object
from sampan.parts.eventing import filters
from sampan.parts.eventing.control.broker import RETRY_UNAVAILABLE
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.dispatcher import Subscriber
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.names import group_of, topic_of
from sampan.parts.eventing.resources import BROKERS, TRIGGERS
from sampan.parts.eventing.streams import UnavailableError

DEPENDENTS = (
    "BrokerReady",
    "SubscriptionReady",
    "DependencyReady",
    "SubscriberResolved",
    "DeadLetterSinkResolved",
    "OIDCIdentityCreated",
)
DEPENDENCY = "knative.dev/dependency"
ORDER = "kafka.eventing.knative.dev/delivery.order"
BY_BROKER = "eventing/broker"


def broker_key(trigger: Object) -> Key:
    """The broker of a Trigger."""
    spec = trigger.get("spec") or {}
    reference = spec.get("brokerRef") or {}
    namespace = trigger["metadata"]["namespace"]
    return Key(reference.get("namespace") or namespace, reference.get("name") or spec.get("broker") or "default")


class TriggerController(Controller):
    """Makes Triggers ready, and the dispatcher deliver for them."""

    name = "trigger-controller"
    workers = 2

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._groups: dict[Key, str] = {}
        self.informer(TRIGGERS).add_index(BY_BROKER, lambda trigger: [str(broker_key(trigger))])

    def sources(self) -> list[Source]:
        return [For(TRIGGERS), Watches(BROKERS, self._triggers_of)]

    def _triggers_of(self, broker: Object) -> Iterable[Key]:
        return [Key.of(one) for one in self.informer(TRIGGERS).indexed(BY_BROKER, str(Key.of(broker)))]

    async def reconcile(self, key: Key) -> float | None:
        trigger = self.informer(TRIGGERS).get(key)
        group = None if trigger is None else group_of(trigger)
        known = self._groups.get(key)
        if known is not None and known != group:
            await self._shared.dispatcher.remove(known)
            self._shared.dispatcher.forget(known)
            await self._shared.streams.delete_group(known)
            del self._groups[key]
        if trigger is None or group is None or trigger["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(trigger, DEPENDENTS, self.clock.now())
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        broker = self._broker(trigger, conditions)
        subscriber = await self._resolve(trigger, conditions)
        delivery, dead_letter = await self._delivery(trigger, broker, conditions)
        await self._dependency(trigger, key, conditions)
        again: float | None = None
        if broker is not None and subscriber:
            again = await self._deliver(trigger, broker, group, subscriber, delivery, dead_letter, conditions)
        else:
            await self._shared.dispatcher.remove(group)
            conditions.unknown(
                "SubscriptionReady", "SubscriptionNotConfigured", "Subscription has not yet been reconciled."
            )
        fields = {"subscriberUri": subscriber or None, "deadLetterSinkUri": dead_letter or None}
        await write_status(self, TRIGGERS, trigger, conditions, fields)
        return again

    def _broker(self, trigger: Object, conditions: ConditionSet) -> Object | None:
        key = broker_key(trigger)
        broker = self.informer(BROKERS).get(key)
        if broker is None or broker["metadata"].get("deletionTimestamp"):
            conditions.false("BrokerReady", "BrokerDoesNotExist", f'Broker "{key.name}" does not exist')
            return None
        if is_ready(broker):
            conditions.true("BrokerReady")
        else:
            conditions.mirror("BrokerReady", broker.get("status"))
        return broker

    async def _resolve(self, trigger: Object, conditions: ConditionSet) -> str:
        key = Key.of(trigger)
        try:
            url = await self._shared.addressing.resolve(
                (trigger.get("spec") or {}).get("subscriber"), key.namespace, self.queue, key
            )
        except UnresolvedError as error:
            conditions.false("SubscriberResolved", f"Unable to get the Subscriber's URI ({error.reason})", str(error))
            return ""
        conditions.true("SubscriberResolved")
        return url

    async def _delivery(self, trigger: Object, broker: Object | None, conditions: ConditionSet) -> tuple[Delivery, str]:
        """The trigger's own delivery spec as a whole, else the broker's; the dead-letter sink likewise."""
        key = Key.of(trigger)
        own = (trigger.get("spec") or {}).get("delivery")
        inherited = ((broker or {}).get("spec") or {}).get("delivery")
        dead_letter = ""
        try:
            dead_letter = await self._shared.dead_letter(own, key.namespace, self.queue, key)
            if not dead_letter and broker is not None:
                dead_letter = await self._shared.dead_letter(
                    inherited, broker["metadata"]["namespace"], self.queue, key
                )
            if dead_letter:
                conditions.true("DeadLetterSinkResolved")
            else:
                conditions.true(
                    "DeadLetterSinkResolved", "DeadLetterSinkNotConfigured", "No dead letter sink is configured."
                )
        except UnresolvedError as error:
            conditions.false("DeadLetterSinkResolved", error.reason, str(error))
        return Delivery.of(own or inherited), dead_letter

    async def _dependency(self, trigger: Object, key: Key, conditions: ConditionSet) -> None:
        given = (trigger["metadata"].get("annotations") or {}).get(DEPENDENCY)
        if not given:
            conditions.true("DependencyReady")
            return
        try:
            reference = json.loads(given)
            source = await self._shared.addressing.get(reference, key.namespace, self.queue, key)
        except (ValueError, UnresolvedError) as error:
            conditions.false("DependencyReady", "DependencyDoesNotExist", f"Dependency does not exist: {error}")
            return
        if source is None:
            conditions.false("DependencyReady", "DependencyDoesNotExist", "Dependency does not exist")
        elif is_ready(source):
            conditions.true("DependencyReady")
        else:
            conditions.mirror("DependencyReady", source.get("status"))

    async def _deliver(
        self,
        trigger: Object,
        broker: Object,
        group: str,
        url: str,
        delivery: Delivery,
        dead_letter: str,
        conditions: ConditionSet,
    ) -> float | None:
        key, spec = Key.of(trigger), trigger.get("spec") or {}
        topic = topic_of(broker)
        try:
            if key not in self._groups:
                await self._shared.streams.make_topic(topic)
                await self._shared.streams.make_group(group, topic)
                self._groups[key] = group
        except UnavailableError as error:
            conditions.false("SubscriptionReady", "ChannelUnavailable", str(error))
            return RETRY_UNAVAILABLE
        given = {"filter": spec.get("filter"), "filters": spec.get("filters")}
        subscriber = Subscriber(
            group=group,
            topic=topic,
            url=url,
            namespace=key.namespace,
            broker=str(Key.of(broker)),
            dead_letter=dead_letter,
            delivery=delivery,
            filters=json.dumps(given, sort_keys=True),
            ordered=(trigger["metadata"].get("annotations") or {}).get(ORDER) == "ordered",
            label=f"trigger/{key}",
        )
        await self._shared.dispatcher.set(subscriber, filters.of_trigger(spec))
        conditions.true("SubscriptionReady")
        return None
