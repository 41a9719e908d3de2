"""Channels and Subscriptions: a topic a channel, a consumer group a subscriber.

A Channel is a name for a backing channel made from its template. A Subscription resolves its subscriber and reply and puts them
into the (backing) channel's ``spec.subscribers``; the InMemoryChannel's controller makes the dispatcher deliver to those and says
so in ``status.subscribers``. Unlike upstream's, an InMemoryChannel here is durable: what it answered 202 for is on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sampan.kube.client.resources import SERVICES
from sampan.kube.control.conditions import ConditionSet, is_ready
from sampan.kube.control.controller import Controller
from sampan.kube.control.indexes import Lookup
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.eventing.control.broker import RETRY_UNAVAILABLE
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.dispatcher import Subscriber
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.names import subscriber_group, topic_of
from sampan.parts.eventing.resources import (
    CHANNELS,
    IN_MEMORY_CHANNELS,
    INGRESS_HOST,
    MESSAGING,
    SUBSCRIPTIONS,
    host_of,
)
from sampan.parts.eventing.streams import UnavailableError

FINALIZER = "subscriptions.messaging.knative.dev"
NOT_CONFIGURED = ("DeadLetterSinkNotConfigured", "No dead letter sink is configured.")
_BY_CHANNEL = Lookup(
    "channel",
    lambda one: [f"{one['metadata']['namespace']}/{name}"] if (name := dig(one, "spec", "channel", "name")) else [],
)
"""Subscriptions by their channel, of whatever kind."""
POLICIES = ("DefaultAuthorizationMode", 'Default authz mode is "Allow-Same-Namespace"')


class InMemoryChannelController(Controller):
    """Makes channels take events and deliver them to their subscribers."""

    name = "inmemorychannel-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._known: dict[Key, tuple[str, frozenset[str]]] = {}

    def sources(self) -> list[Source]:
        return [For(IN_MEMORY_CHANNELS), Owns(SERVICES, "InMemoryChannel")]

    async def reconcile(self, key: Key) -> float | None:
        channel = self.informer(IN_MEMORY_CHANNELS).get(key)
        topic = None if channel is None else topic_of(channel)
        topic_before, groups_before = self._known.get(key, ("", frozenset()))
        if topic_before and topic_before != topic:
            for group in groups_before:
                await self._drop(group)
            await self._shared.streams.delete_topic(topic_before)
            del self._known[key]
            groups_before = frozenset()
        if channel is None or topic is None or channel["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(
            channel,
            (
                "ServiceReady",
                "EndpointsReady",
                "Addressable",
                "ChannelServiceReady",
                "DispatcherReady",
                "DeadLetterSinkResolved",
                "EventPoliciesReady",
            ),
            self.clock.now(),
        )
        for kind in ("ServiceReady", "EndpointsReady", "Addressable"):
            conditions.true(kind)
        conditions.true("EventPoliciesReady", *POLICIES)
        service = f"{key.name}-kn-channel"
        try:
            await ensure(self, SERVICES, channel, _service(service, key.namespace))
            conditions.true("ChannelServiceReady")
        except NotOwnedError as error:
            conditions.false("ChannelServiceReady", "ChannelServiceFailed", str(error))
        dead_letter = ""
        try:
            spec = channel.get("spec") or {}
            dead_letter = await self._shared.dead_letter(spec.get("delivery"), key.namespace, self.queue, key)
            conditions.true("DeadLetterSinkResolved", *(() if dead_letter else NOT_CONFIGURED))
        except UnresolvedError as error:
            conditions.false("DeadLetterSinkResolved", error.reason, str(error))
        subscribers: list[Object] = []
        again: float | None = None
        try:
            subscribers = await self._dispatch(key, channel, topic, dead_letter, groups_before)
            conditions.true("DispatcherReady")
        except UnavailableError as error:
            conditions.false("DispatcherReady", "DispatcherUnavailable", str(error))
            again = RETRY_UNAVAILABLE
        fields = {
            **address(f"http://{host_of(service, key.namespace)}"),
            "deadLetterSinkUri": dead_letter or None,
            "subscribers": subscribers or None,
        }
        await write_status(self, IN_MEMORY_CHANNELS, channel, conditions, fields)
        return again

    async def _dispatch(
        self, key: Key, channel: Object, topic: str, dead_letter: str, before: frozenset[str]
    ) -> list[Object]:
        """Deliver to the subscribers of the spec and to no others; their status."""
        streams, dispatcher = self._shared.streams, self._shared.dispatcher
        if key not in self._known:
            await streams.make_topic(topic)
            self._known[key] = (topic, before)
        rows = []
        wanted: set[str] = set()
        for one in (channel.get("spec") or {}).get("subscribers") or ():
            if not one.get("uid"):  # written by hand: nothing tells it from others
                rows.append({"ready": "False", "message": "the subscriber has no uid"})
                continue
            group = subscriber_group(one["uid"])
            wanted.add(group)
            if group not in before:
                await streams.make_group(group, topic)
            own = one.get("delivery")
            subscriber = Subscriber(
                group=group,
                topic=topic,
                url=one.get("subscriberUri") or "",
                namespace=key.namespace,
                reply=one.get("replyUri") or "",
                dead_letter=dig(own, "deadLetterSink", "uri", default="") or dead_letter,
                delivery=Delivery.of(own or (channel.get("spec") or {}).get("delivery")),
                filters=json.dumps(one.get("generation")),
                label=f"subscription/{key.namespace}/{one.get('name') or one['uid']}",
            )
            await dispatcher.set(subscriber)
            rows.append({"uid": one["uid"], "observedGeneration": one.get("generation", 1), "ready": "True"})
        for group in before - wanted:
            await self._drop(group)
        self._known[key] = (topic, frozenset(wanted))
        return rows

    async def _drop(self, group: str) -> None:
        await self._shared.dispatcher.remove(group)
        self._shared.dispatcher.forget(group)
        await self._shared.streams.delete_group(group)


class ChannelController(Controller):
    """Makes the backing channel and says how it is."""

    name = "channel-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared

    def sources(self) -> list[Source]:
        return [For(CHANNELS), Owns(IN_MEMORY_CHANNELS, "Channel")]

    async def reconcile(self, key: Key) -> float | None:
        channel = self.informer(CHANNELS).get(key)
        if channel is None or channel["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(
            channel,
            ("BackingChannelReady", "Addressable", "DeadLetterSinkResolved", "EventPoliciesReady"),
            self.clock.now(),
        )
        conditions.true("EventPoliciesReady", *POLICIES)
        template = channel["spec"]["channelTemplate"]
        fields: dict[str, Any] = {}
        try:
            resource = self._shared.addressing.resource_of(template)
            wanted = {
                "apiVersion": template["apiVersion"],
                "kind": template["kind"],
                "metadata": {"name": key.name, "namespace": key.namespace},
                "spec": {**copy(template.get("spec") or {}), **_delivery(channel)},
            }
            backing = await ensure(self, resource, channel, wanted, keep=("subscribers",))
            conditions.mirror("BackingChannelReady", backing.get("status"))
            url = dig(backing, "status", "address", "url")
            if url:
                conditions.true("Addressable")
                fields.update(address(url))
            else:
                conditions.unknown("Addressable", "EmptyAddress", "The backing channel has no address yet.")
            conditions.mirror("DeadLetterSinkResolved", backing.get("status"), "DeadLetterSinkResolved")
            fields["channel"] = {
                "apiVersion": template["apiVersion"],
                "kind": template["kind"],
                "name": key.name,
                "namespace": key.namespace,
            }
            for name in ("subscribers", "deadLetterSinkUri"):
                fields[name] = dig(backing, "status", name)
        except (NotOwnedError, UnresolvedError) as error:
            conditions.false("BackingChannelReady", "BackingChannelFailed", str(error))
        await write_status(self, CHANNELS, channel, conditions, fields)
        return None


class SubscriptionController(Controller):
    """Puts subscribers into channels, and takes them out."""

    name = "subscription-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared

    def sources(self) -> list[Source]:
        return [
            For(SUBSCRIPTIONS),
            Watches(IN_MEMORY_CHANNELS, self._subscriptions_of),
            Watches(CHANNELS, self._subscriptions_of),
        ]

    def _subscriptions_of(self, channel: Object) -> Iterable[Key]:
        kind, metadata = channel.get("kind"), channel["metadata"]
        for one in _BY_CHANNEL(self.informer(SUBSCRIPTIONS), f"{metadata['namespace']}/{metadata['name']}"):
            if dig(one, "spec", "channel", "kind") in (kind, "Channel"):
                yield Key.of(one)

    async def reconcile(self, key: Key) -> float | None:
        subscription = self.informer(SUBSCRIPTIONS).get(key)
        if subscription is None:
            return None
        finalizers: list[str] = subscription["metadata"].get("finalizers") or []
        if subscription["metadata"].get("deletionTimestamp"):
            if FINALIZER in finalizers:
                backing = await self._backing(subscription)
                if backing is not None:
                    await self._write(backing, subscription, None)
                await self._finalizers(subscription, [one for one in finalizers if one != FINALIZER])
            return None
        if FINALIZER not in finalizers:
            await self._finalizers(subscription, [*finalizers, FINALIZER])
            return None
        conditions = ConditionSet(
            subscription,
            ("ReferencesResolved", "AddedToChannel", "ChannelReady", "OIDCIdentityCreated"),
            self.clock.now(),
        )
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        physical: dict[str, str] = {}
        try:
            physical = await self._resolve(subscription, key)
            conditions.true("ReferencesResolved")
        except UnresolvedError as error:
            conditions.false("ReferencesResolved", error.reason, str(error))
        backing = await self._backing(subscription)
        if backing is None:
            conditions.false("ChannelReady", "ChannelReferenceFailed", "the channel does not exist")
            conditions.unknown("AddedToChannel", "ChannelMissing")
        else:
            conditions.mirror("ChannelReady", backing.get("status"))
            if is_ready(backing):
                conditions.true("ChannelReady")
            if conditions.is_true("ReferencesResolved"):
                await self._write(backing, subscription, physical)
            uid, generation = subscription["metadata"]["uid"], subscription["metadata"].get("generation", 1)
            rows = dig(backing, "status", "subscribers", default=[])
            if any(row.get("uid") == uid and row.get("observedGeneration") == generation for row in rows):
                conditions.true("AddedToChannel")
            else:
                conditions.unknown(
                    "AddedToChannel", "SubscriptionNotMarkedReadyByChannel", "the channel has not added it yet"
                )
        await write_status(self, SUBSCRIPTIONS, subscription, conditions, {"physicalSubscription": physical or None})
        return None

    async def _finalizers(self, subscription: Object, finalizers: list[str]) -> None:
        changed: Object = copy(subscription)
        changed["metadata"]["finalizers"] = finalizers
        await self.client.update(SUBSCRIPTIONS, changed)

    async def _resolve(self, subscription: Object, key: Key) -> dict[str, str]:
        spec, found = subscription["spec"], {}
        for field, name in (("subscriber", "subscriberUri"), ("reply", "replyUri")):
            if spec.get(field):
                found[name] = await self._shared.addressing.resolve(spec[field], key.namespace, self.queue, key)
        if sink := await self._shared.dead_letter(spec.get("delivery"), key.namespace, self.queue, key):
            found["deadLetterSinkUri"] = sink
        return found

    async def _backing(self, subscription: Object) -> Object | None:
        """The channel whose spec holds the subscribers."""
        reference = subscription["spec"]["channel"]
        key = Key(subscription["metadata"]["namespace"], reference["name"])
        if reference.get("kind") == "Channel" and (reference.get("apiVersion") or "").startswith(f"{MESSAGING}/"):
            channel = self.informer(CHANNELS).get(key)
            if channel is None:
                return None
        return self.informer(IN_MEMORY_CHANNELS).get(key)

    async def _write(self, backing: Object, subscription: Object, physical: dict[str, str] | None) -> None:
        """Bring the channel's list of subscribers in line; None takes this one out."""
        metadata = subscription["metadata"]
        before: list[Object] = dig(backing, "spec", "subscribers", default=[])
        after = [one for one in before if one.get("uid") != metadata["uid"]]
        if physical is not None:
            entry: Object = {
                "uid": metadata["uid"],
                "generation": metadata.get("generation", 1),
                "name": metadata["name"],
            }
            for name in ("subscriberUri", "replyUri"):
                if physical.get(name):
                    entry[name] = physical[name]
            delivery = copy(subscription["spec"].get("delivery") or {})
            if physical.get("deadLetterSinkUri"):
                delivery["deadLetterSink"] = {"uri": physical["deadLetterSinkUri"]}
            if delivery:
                entry["delivery"] = delivery
            after.append(entry)
            after.sort(key=lambda one: str(one.get("uid")))
        if sorted(before, key=lambda one: str(one.get("uid"))) == after:
            return
        changed: Object = copy(backing)
        changed.setdefault("spec", {})["subscribers"] = after
        try:
            await self.client.update(IN_MEMORY_CHANNELS, changed)
        except ApiError as error:
            if not error.not_found:
                raise


def _service(name: str, namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"messaging.knative.dev/role": "in-memory-channel"},
        },
        "spec": {
            "type": "ExternalName",
            "externalName": INGRESS_HOST,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}],
        },
    }


def _delivery(channel: Object) -> Object:
    given = channel["spec"].get("delivery")
    return {"delivery": copy(given)} if given else {}
