"""Topics and consumer groups as Kubernetes objects, both ways.

An object makes the broker's topic or group so; deleting it deletes that (the finalizer holds the object until it is done). A
topic or group that came otherwise (created on demand, by a client's admin call) gets an object, marked as the broker's, so that
``kubectl get topics`` shows all there is; when the broker loses it, the object goes. System, retry and dead letter topics stay
out. Status tells offsets, lag and rates, refreshed while they move.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, ClassVar

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, Resource
from sampan.kube.status import ApiError
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.errors import MessagingError
from sampan.parts.messaging.resources import BROKER_NAME, CONSUMER_GROUPS, GROUP, TOPICS
from sampan.parts.messaging.topology import (
    DLQ_PREFIX,
    LITE_PREFIX,
    RETRY_DELAYS_MS,
    RETRY_PREFIX,
    SYSTEM_TOPICS,
    Backoff,
    GroupConfig,
    TopicConfig,
)

FINALIZER = f"{GROUP}/broker"
REFRESH = 10.0
"""Seconds between looks at offsets for the status."""
LOOKS = 20
"""Objects looked at a second, at most: ten thousand topics are each looked at less often."""
BY_NAME = "broker-name"
PERMISSIONS = {"ReadWrite": 6, "ReadOnly": 4, "WriteOnly": 2}
_DNS = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_UNITS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


class Mirror(Controller):
    """What the two controllers share: object ↔ thing of the broker."""

    resource: ClassVar[Resource]
    kind: ClassVar[str]
    definition: ClassVar[str]

    def __init__(self, context: ControlContext, core: Core) -> None:
        super().__init__(context)
        self.core = core
        self._rates: dict[str, tuple[float, int]] = {}
        self._named: dict[str, str] = {}
        """Broker names by the object names they would get."""
        self.informer(self.resource).add_index(BY_NAME, lambda obj: [broker_name(obj)])
        core.broker.on_definition.append(self._defined)

    def sources(self) -> list[Source]:
        return [For(self.resource)]

    async def start(self) -> None:
        """Start, then give what the broker has already its objects."""
        await super().start()
        for name in self.names():
            self._defined(self.definition, name)

    def _defined(self, kind: str, name: str) -> None:
        if kind == self.definition and mirrored(name):
            self._named[object_name(name)] = name
            self.queue.add(Key("", self._key_for(name)))

    def _key_for(self, name: str) -> str:
        for obj in self.informer(self.resource).indexed(BY_NAME, name):
            key: str = obj["metadata"]["name"]
            return key
        return object_name(name)

    async def reconcile(self, key: Key) -> float | None:
        obj = self.informer(self.resource).get(key)
        if obj is None:
            missing = self._named.get(key.name, "")
            if self.exists(missing) and self._key_for(missing) == key.name:
                await self._adopt(key.name, missing)
            else:
                self._named.pop(key.name, None)
                self._rates.pop(missing, None)
            return None
        name = broker_name(obj)
        metadata = obj["metadata"]
        if metadata.get("deletionTimestamp"):
            if self.exists(name):
                self.delete(name)
            await self._set_finalizer(obj, present=False)
            return None
        made_by_broker = BROKER_NAME in metadata.get("annotations", {})
        if made_by_broker and not self.exists(name) and metadata.get("finalizers"):
            await self.client.delete(self.resource, key.name, uid=metadata["uid"])
            return None
        if FINALIZER not in metadata.get("finalizers", []):
            obj = await self._set_finalizer(obj, present=True)
        problem = ""
        try:
            self.make(name, obj.get("spec", {}))
        except MessagingError as error:
            problem = str(error)
        await self._report(obj, name, problem)
        return max(REFRESH, len(self.names()) / LOOKS)

    async def _adopt(self, key: str, name: str) -> None:
        """Make the object of something the broker got otherwise."""
        obj = {
            "apiVersion": f"{GROUP}/v1",
            "kind": self.kind,
            "metadata": {"name": key, "annotations": {BROKER_NAME: name}, "finalizers": [FINALIZER]},
            "spec": self.spec(name),
        }
        try:
            await self.client.create(self.resource, obj)
        except ApiError as error:
            if not error.already_exists:
                raise

    async def _set_finalizer(self, obj: Object, *, present: bool) -> Object:
        metadata = obj["metadata"]
        others = [one for one in metadata.get("finalizers", []) if one != FINALIZER]
        patch = {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": [*others, FINALIZER] if present else others,
            }
        }
        try:
            return await self.client.patch(self.resource, metadata["name"], patch)
        except ApiError as error:
            if error.not_found and not present:
                return obj
            raise

    async def _report(self, obj: Object, name: str, problem: str) -> None:
        old = obj.get("status", {})
        generation = obj["metadata"].get("generation", 1)
        previous = next((one for one in old.get("conditions", []) if one["type"] == "Ready"), None)
        changed = previous is None or previous["status"] != ("False" if problem else "True")
        new = {
            **({} if problem else self.status(name)),
            "observedGeneration": generation,
            "conditions": [
                self._condition(
                    obj,
                    "Ready",
                    not problem,
                    "Refused" if problem else "Served",
                    problem or "the broker serves it as declared",
                ),
                *self.conditions(obj, name),
            ],
        }
        if new == old:
            return
        if problem and changed:
            self.recorder.event(obj, "Warning", "Refused", problem)
        try:
            await self.client.patch(self.resource, obj["metadata"]["name"], {"status": new}, subresource="status")
        except ApiError as error:
            if not error.not_found:
                raise

    def _condition(self, obj: Object, type: str, holds: bool, reason: str, message: str) -> dict[str, Any]:
        """A condition, with the time it last changed."""
        status = "True" if holds else "False"
        found = next((one for one in obj.get("status", {}).get("conditions", []) if one["type"] == type), None)
        now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": type,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": found["lastTransitionTime"] if found and found["status"] == status else now,
            "observedGeneration": obj["metadata"].get("generation", 1),
        }

    def conditions(self, obj: Object, name: str) -> list[dict[str, Any]]:
        """Conditions beyond Ready."""
        return []

    def rate(self, name: str, total: int) -> float:
        """Messages a second since the last look."""
        now = self.clock.monotonic()
        before = self._rates.get(name)
        self._rates[name] = now, total
        if before is None or now - before[0] < 1:
            return 0.0
        return round(max(0, total - before[1]) / (now - before[0]), 2)

    # what differs between topics and groups

    def names(self) -> list[str]:
        """Everything of this sort that the broker has."""
        raise NotImplementedError

    def exists(self, name: str) -> bool:
        raise NotImplementedError

    def make(self, name: str, spec: dict[str, Any]) -> None:
        """Make it so in the broker; nothing changes where it is so already. Raises `MessagingError`."""
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError

    def spec(self, name: str) -> dict[str, Any]:
        raise NotImplementedError

    def status(self, name: str) -> dict[str, Any]:
        raise NotImplementedError


class TopicMirror(Mirror):
    """``Topic`` objects."""

    name = "messaging-topics"
    resource = TOPICS
    kind = "Topic"
    definition = "topic"

    def names(self) -> list[str]:
        return list(self.core.store.topics)

    def exists(self, name: str) -> bool:
        return name in self.core.store.topics

    def make(self, name: str, spec: dict[str, Any]) -> None:
        existing = self.core.store.topics.get(name)
        wanted = TopicConfig(
            name,
            spec.get("type", "MIXED"),
            spec.get("queues", self.core.broker.limits.default_queues),
            permission=PERMISSIONS[spec.get("permission", "ReadWrite")],
            attributes=spec.get("attributes", existing.config.attributes if existing is not None else {}),
        )
        if existing is None or existing.config != wanted:
            self.core.broker.create_topic(wanted)

    def delete(self, name: str) -> None:
        self.core.broker.delete_topic(name)

    def spec(self, name: str) -> dict[str, Any]:
        config = self.core.store.topics[name].config
        permission = next((word for word, value in PERMISSIONS.items() if value == config.permission & 6), "ReadWrite")
        spec: dict[str, Any] = {"name": name, "type": config.type, "queues": config.queues, "permission": permission}
        if config.attributes:
            spec["attributes"] = dict(config.attributes)
        return spec

    def status(self, name: str) -> dict[str, Any]:
        topic = self.core.store.topics.get(name)
        if topic is None:
            return {}
        total = self.core.broker.statistics.messages_in.get(name, [0, 0])[0]
        return {
            "messages": sum(queue.maximum - queue.minimum for queue in topic.queues),
            "messagesInTotal": total,
            "messagesInRate": self.rate(name, total),
            "queues": [
                {"queue": queue.id, "minOffset": queue.minimum, "maxOffset": queue.maximum} for queue in topic.queues
            ],
        }


class GroupMirror(Mirror):
    """``ConsumerGroup`` objects."""

    name = "messaging-groups"
    resource = CONSUMER_GROUPS
    kind = "ConsumerGroup"
    definition = "group"

    def names(self) -> list[str]:
        return list(self.core.store.groups)

    def exists(self, name: str) -> bool:
        return name in self.core.store.groups

    def make(self, name: str, spec: dict[str, Any]) -> None:
        existing = self.core.store.groups.get(name)
        wanted = GroupConfig(
            name,
            orderly=spec.get("orderly"),
            max_retries=spec.get("maxRetries", 16),
            backoff=_backoff(spec.get("backoff", {})),
            consume=spec.get("consume", True),
            broadcast=existing.broadcast if existing is not None else True,
            attributes=spec.get("attributes", existing.attributes if existing is not None else {}),
        )
        if existing != wanted:
            self.core.broker.create_group(wanted)

    def delete(self, name: str) -> None:
        self.core.broker.delete_group(name)

    def spec(self, name: str) -> dict[str, Any]:
        config = self.core.store.groups[name]
        spec: dict[str, Any] = {"name": name, "maxRetries": config.max_retries, "consume": config.consume}
        if config.orderly is not None:
            spec["orderly"] = config.orderly
        if config.attributes:
            spec["attributes"] = dict(config.attributes)
        if not config.backoff.delays_ms:
            backoff = config.backoff
            spec["backoff"] = {
                "initial": f"{backoff.initial_ms}ms",
                "max": f"{backoff.max_ms}ms",
                "multiplier": backoff.multiplier,
            }
        elif config.backoff.delays_ms != RETRY_DELAYS_MS:
            spec["backoff"] = {"delays": [f"{delay}ms" for delay in config.backoff.delays_ms]}
        return spec

    def conditions(self, obj: Object, name: str) -> list[dict[str, Any]]:
        """Whether the members subscribe to the same things."""
        differing = self.core.clients.inconsistent.get(name, "")
        reason = "SubscriptionsDiffer" if differing else "SubscriptionsAgree"
        message = differing or "all members subscribe to the same topics with the same filters"
        return [self._condition(obj, "Consistent", not differing, reason, message[:1024])]

    def status(self, name: str) -> dict[str, Any]:
        rows = self.core.broker.lag(name)
        statistics = self.core.broker.statistics
        total = sum(count for (_, group), (count, _) in statistics.messages_out.items() if group == name)
        return {
            "lag": sum(row["lag"] for row in rows),
            "members": len(self.core.clients.consumers(name)),
            "messagesOutTotal": total,
            "messagesOutRate": self.rate(name, total),
            "offsets": [
                {
                    "topic": row["topic"],
                    "queue": row["queue"],
                    "maxOffset": row["maximum"],
                    "committedOffset": row["committed"],
                    "held": row["held"],
                    "lag": row["lag"],
                }
                for row in rows
            ],
        }


def mirrored(name: str) -> bool:
    """Whether a topic or group has an object."""
    return name not in SYSTEM_TOPICS and not name.startswith((RETRY_PREFIX, DLQ_PREFIX, LITE_PREFIX, "RMQ_SYS_"))


def broker_name(obj: Object) -> str:
    """The broker's name of an object's topic or group."""
    name: str = obj.get("spec", {}).get("name") or obj["metadata"]["name"]
    return name


def object_name(name: str) -> str:
    """A Kubernetes name for a broker's: itself where that is one, else made readable and unique by a hash."""
    if _DNS.fullmatch(name) and len(name) <= 253:
        return name
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
    return f"{readable[:200]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _backoff(spec: dict[str, Any]) -> Backoff:
    if spec.get("delays"):
        return Backoff(tuple(_milliseconds(text) for text in spec["delays"]))
    if not spec:
        return Backoff()
    return Backoff(
        (),
        _milliseconds(spec.get("initial", "5s")),
        _milliseconds(spec.get("max", "2h")),
        float(spec.get("multiplier", 2.0)),
    )


def _milliseconds(text: str) -> int:
    return sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)(h|ms|m|s)", text))
