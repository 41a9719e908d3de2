"""Delivering the events of a stream to one subscriber: filter, attempts, reply, dead letter.

A `Subscriber` is the plain description that controllers make of a Trigger or a Subscription; `Dispatcher` keeps one
`Consumer` for each and replaces it when the description changes. Deliveries of one subscriber do not wait for each other (a
poison event occupies no place between its attempts), and an event is acknowledged only when the subscriber, or the
dead-letter sink in its stead, has taken it and its reply is stored.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kernel.telemetry import counter
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.attempts import Attempts
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.consumer import RETRY, Consumer, Slot
from sampan.parts.eventing.delivery import Delivery, Outcome
from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError
from sampan.parts.eventing.filters import Predicate, everything
from sampan.parts.eventing.resources import CLUSTER_DOMAIN
from sampan.parts.eventing.streams import Streams, UnavailableError
from sampan.parts.eventing.tracing import HEADER, Tracing
from sampan.parts.eventing.transport import Answer, Transport

if TYPE_CHECKING:
    from sampan.parts.messaging import Received

log = logging.getLogger(__name__)

TTL = "knativebrokerttl"
"""Extension that counts how often an event may still enter a broker; subscribers do not see it."""
ERROR_BODY = 1024
"""Bytes of an error response that go along to the dead-letter sink."""

Publish = Callable[[Event], Awaitable[None]]
"""Takes a reply event; raises `UnavailableError` when it could not be stored, `MalformedEventError` when it may not enter."""


class Subscriber(msgspec.Struct, frozen=True):
    """Where the events of a topic go."""

    group: str
    topic: str
    url: str
    """The subscriber; empty: events go straight to the reply."""
    namespace: str
    broker: str = ""
    """``namespace/name`` of the broker that replies enter again."""
    reply: str = ""
    """URL that replies are sent to."""
    dead_letter: str = ""
    delivery: Delivery = Delivery()
    filters: str = ""
    """The filter as canonical JSON: what tells whether a description changed."""
    ordered: bool = False
    label: str = ""
    """How metrics and logs name it."""


class _Delivery(msgspec.Struct, eq=False):
    """One event on its way to one subscriber."""

    subscriber: Subscriber
    key: str
    """Names it across restarts."""
    slot: Slot
    failed: list[str] = []
    """Under which names failed attempts are remembered."""


class _Running(msgspec.Struct, eq=False):
    subscriber: Subscriber
    consumer: Consumer


class Dispatcher:
    """All subscribers of the process."""

    def __init__(
        self,
        streams: Streams,
        transport: Transport,
        clock: Clock,
        tasks: Tasks,
        metrics: CollectorRegistry,
        enter: Callable[[str, Event], Awaitable[None]],
        tracing: Tracing,
        attempts: Attempts,
    ) -> None:
        """``enter(broker, event)`` stores an event in a broker given as ``namespace/name``."""
        self._streams = streams
        self._transport = transport
        self._clock = clock
        self._tasks = tasks
        self._enter = enter
        self._tracing = tracing
        self._failed = attempts
        self._running: dict[str, _Running] = {}
        self._attempts = counter(
            metrics,
            "event_dispatch_attempts_total",
            "Attempts to deliver an event, by subscriber and response class",
            ("subscriber", "result"),
        )
        self._dropped = counter(
            metrics, "event_dropped_total", "Events that no subscriber and no dead-letter sink took", ("subscriber",)
        )

    def __len__(self) -> int:
        return len(self._running)

    async def set(self, subscriber: Subscriber, predicate: Predicate = everything) -> None:
        """Deliver to this subscriber from now on; an unchanged description changes nothing."""
        known = self._running.get(subscriber.group)
        if known is not None:
            if known.subscriber == subscriber:
                return
            await known.consumer.close()

        async def handle(message: Received, slot: Slot) -> bool:
            return await self._handle(subscriber, predicate, message, slot)

        consumer = Consumer(
            self._streams.client,
            self._clock,
            self._tasks,
            subscriber.group,
            subscriber.topic,
            handle,
            ordered=subscriber.ordered,
        )
        self._running[subscriber.group] = _Running(subscriber, consumer)
        consumer.start()

    async def remove(self, group: str) -> None:
        """Deliver to this subscriber no longer."""
        known = self._running.pop(group, None)
        if known is not None:
            await known.consumer.close()

    def forget(self, group: str) -> None:
        """This subscriber is gone for good."""
        self._failed.forget_group(group)

    async def close(self) -> None:
        """Stop everything; events in hand are given back."""
        for group in list(self._running):
            await self.remove(group)

    # -- one event

    async def _handle(self, subscriber: Subscriber, predicate: Predicate, message: Received, slot: Slot) -> bool:
        try:
            event = cloudevents.unpack(message.body)
        except MalformedEventError:
            log.exception("%s: a message of %s is not an event; it is skipped", subscriber.label, subscriber.topic)
            return True
        if predicate(event):
            with self._tracing.step(
                event, event.text("type") or "event", subscriber.label.replace("/", " ", 1), "consumer"
            ) as span:
                if span is not None and message.stored_ms:
                    waited = self._clock.time() - message.stored_ms / 1000
                    span.set(waited_ms=round(max(0.0, waited) * 1000, 1), delivery=message.attempt)
                delivery = _Delivery(subscriber, f"{subscriber.group} {message.id}", slot)
                await self.deliver(delivery, event)
                self._failed.forget(*delivery.failed)
        return True

    async def deliver(self, delivery: _Delivery, event: Event) -> None:
        """Bring an event to the subscriber, the answer to where replies go, and a failure to the dead-letter sink."""
        subscriber, slot = delivery.subscriber, delivery.slot
        ttl = event.attributes.get(TTL)
        event = event.without(TTL)
        reply: Event | None = event
        if subscriber.url:
            answer, reply = await self._attempts_at(delivery, subscriber.url, event, reply_wanted=True)
            if not answer.outcome.ok:
                await self._bury(delivery, subscriber.url, event, answer.outcome)
                return
        if reply is None:
            return
        if subscriber.broker:
            await self._again(subscriber, reply if ttl is None else reply.with_attributes(**{TTL: ttl}), slot)
        elif subscriber.reply:
            answer, _ = await self._attempts_at(delivery, subscriber.reply, reply)
            if not answer.outcome.ok:
                await self._bury(delivery, subscriber.reply, reply, answer.outcome)

    async def _attempts_at(
        self, delivery: _Delivery, url: str, event: Event, *, reply_wanted: bool = False
    ) -> tuple[Answer, Event | None]:
        """The last attempt's answer, and the event in it; attempts of a former process count."""
        subscriber, spec = delivery.subscriber, delivery.subscriber.delivery
        key = f"{delivery.key} {url}"
        retried, before = self._failed.of(key)
        if retried:
            delivery.failed.append(key)
            if spec.wait(retried - 1, before) is None:
                return Answer(before), None
        headers, body = cloudevents.encode(event, spec.format)
        headers = {**event.headers, **headers, "Kn-Namespace": subscriber.namespace}
        if reply_wanted:
            headers["Prefer"] = "reply"
        while True:
            with self._tracing.step(event, "POST", _place(url), "client") as span:
                if span is not None:
                    headers[HEADER] = span.context.traceparent()
                answer = await self._transport.post(url, headers, body, timeout=spec.timeout)
                reply = None
                if reply_wanted and answer.outcome.ok and answer.body:
                    answer, reply = _reply(answer, event)
                outcome = answer.outcome
                if span is not None:
                    span.set(url=url, status=outcome.status, attempt=retried + 1)
                    span.error = "" if outcome.ok else str(outcome.status or outcome.reason)
            self._attempts.labels(subscriber.label, f"{outcome.status // 100}xx" if outcome.status else "error").inc()
            wait = spec.wait(retried, outcome)
            if outcome.ok:
                return answer, reply
            retried += 1
            if not delivery.failed or delivery.failed[-1] != key:
                delivery.failed.append(key)
            self._failed.failed(key, retried, outcome)
            if wait is None:
                return answer, reply
            log.debug("%s: attempt %d failed (%s)", subscriber.label, retried, outcome.status or outcome.reason)
            await delivery.slot.pause(wait)

    async def _again(self, subscriber: Subscriber, reply: Event, slot: Slot) -> None:
        """A reply enters the broker; while messaging cannot store it, it waits."""
        delay = RETRY[0]
        while True:
            try:
                await self._enter(subscriber.broker, reply)
            except MalformedEventError as error:
                log.warning("%s: a reply does not enter the broker: %s", subscriber.label, error)
                return
            except UnavailableError as error:
                log.warning("%s: a reply waits: %s", subscriber.label, error)
                await slot.pause(delay)
                delay = min(delay * 2, RETRY[1])
            else:
                return

    async def _bury(self, delivery: _Delivery, url: str, event: Event, outcome: Outcome) -> None:
        subscriber = delivery.subscriber
        said = outcome.status or outcome.reason
        if subscriber.dead_letter:
            letter = dead_letter(event, url, outcome)
            answer, _ = await self._attempts_at(delivery, subscriber.dead_letter, letter)
            if answer.outcome.ok:
                log.info("%s: event %s went to the dead-letter sink: %s", subscriber.label, event.text("id"), said)
                return
            said = f"{said}; the dead-letter sink: {answer.outcome.status or answer.outcome.reason}"
        self._dropped.labels(subscriber.label).inc()
        log.error("%s: event %s of %s is dropped: %s", subscriber.label, event.text("id"), event.text("source"), said)


def _place(url: str) -> str:
    """What a URL leads to, short: the Service and its namespace where it is one of the cluster."""
    parts = urlsplit(url)
    return parts.netloc.removesuffix(f".{CLUSTER_DOMAIN}") + (parts.path if len(parts.path) > 1 else "")


def dead_letter(event: Event, url: str, outcome: Outcome) -> Event:
    """An event as a dead-letter sink gets it: with what the sink at ``url`` said of it last."""
    return event.with_attributes(
        knativeerrordest=url,
        knativeerrorcode=outcome.status or 500,
        knativeerrordata=base64.b64encode(outcome.body[:ERROR_BODY] or outcome.reason.encode()).decode(),
    )


def _reply(answer: Answer, event: Event) -> tuple[Answer, Event | None]:
    """The event in a response; a body that is none makes the attempt a failure."""
    try:
        reply = cloudevents.decode(answer.headers, answer.body)
    except (NotAnEventError, MalformedEventError) as error:
        return Answer(Outcome(502, f"the response is not an event: {error}", answer.body), answer.headers), None
    return answer, Event(reply.attributes, reply.data, reply.mode, event.headers)
