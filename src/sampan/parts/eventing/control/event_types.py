"""EventTypes: whether what they refer to is there, and (behind the feature ``eventtype-auto-create``) their making from events."""

from __future__ import annotations

import hashlib
import logging

from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object
from sampan.kube.status import ApiError
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.configmaps import Config
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.errors import UnresolvedError
from sampan.parts.eventing.resources import EVENT_TYPES, EVENTING, MESSAGING

log = logging.getLogger(__name__)

SEEN_LIMIT = 10_000
"""Types remembered as made; with more, making begins to ask the API again."""


class EventTypeController(Controller):
    """Judges EventTypes; makes them for events as they arrive."""

    name = "eventtype-controller"

    def __init__(self, shared: Shared, config: Config) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._config = config
        self._seen: set[str] = set()

    def sources(self) -> list[Source]:
        return [For(EVENT_TYPES)]

    async def reconcile(self, key: Key) -> float | None:
        event_type = self.informer(EVENT_TYPES).get(key)
        if event_type is None or event_type["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(event_type, ("ReferenceExists",), self.clock.now())
        spec = event_type["spec"]
        reference = spec.get("reference")
        if not reference and spec.get("broker"):
            reference = {"apiVersion": f"{EVENTING}/v1", "kind": "Broker", "name": spec["broker"]}
        if not reference:
            conditions.true("ReferenceExists", "ReferenceNotSet")
        else:
            try:
                found = await self._shared.addressing.get(reference, key.namespace, self.queue, key)
                if found is None:
                    conditions.false(
                        "ReferenceExists",
                        "ResourceDoesNotExist",
                        f'{reference["kind"]} "{reference["name"]}" does not exist',
                    )
                else:
                    conditions.true("ReferenceExists")
            except UnresolvedError as error:
                conditions.false("ReferenceExists", error.reason, str(error))
        await write_status(self, EVENT_TYPES, event_type, conditions, {})
        return None

    def observe(self, kind: str, key: Key, event: Event) -> None:
        """An event was accepted by a Broker or an InMemoryChannel."""
        if not self._config.feature("eventtype-auto-create"):
            return
        made = _event_type(kind, key, event)
        name = f"{key.namespace}/{made['metadata']['name']}"
        if name in self._seen:
            return
        if len(self._seen) >= SEEN_LIMIT:
            self._seen.clear()
        self._seen.add(name)
        self.context.tasks.start("event type", self._create(made, key.namespace))

    async def _create(self, made: Object, namespace: str) -> None:
        try:
            await self.client.create(EVENT_TYPES, made, namespace)
        except ApiError as error:
            if not error.already_exists:
                log.warning("an EventType could not be made: %s", error)


def _event_type(kind: str, key: Key, event: Event) -> Object:
    type, source = event.text("type") or "", event.text("source") or ""
    digest = hashlib.md5(f"{type}{source}{key.namespace}{key.name}".encode(), usedforsecurity=False).hexdigest()
    group = EVENTING if kind == "Broker" else MESSAGING
    reference = {"apiVersion": f"{group}/v1", "kind": kind, "name": key.name, "namespace": key.namespace}
    spec = {
        "type": type,
        "source": source,
        "reference": reference,
        "description": "Event Type auto-created by controller",
    }
    if schema := event.text("dataschema"):
        spec["schema"] = schema
    return {
        "apiVersion": EVENT_TYPES.api_version,
        "kind": "EventType",
        "metadata": {"name": f"et-{key.name}-{digest}"[:253]},
        "spec": spec,
    }
