"""What every source has: a sink that is resolved, overrides that are added to its events, and attempts at the sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.objects import Key, Object, dig
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.delivery import Delivery, Outcome
from sampan.parts.eventing.errors import UnresolvedError


async def resolve_sink(controller: Controller, shared: Shared, source: Object, conditions: ConditionSet) -> str:
    """The URL of a source's sink, and the condition SinkProvided; empty where there is none."""
    key = Key.of(source)
    sink = (source.get("spec") or {}).get("sink") or {}
    if "kind" in sink:  # the old way: the reference itself
        sink = {"ref": sink}
    try:
        url = await shared.addressing.resolve(sink, key.namespace, controller.queue, key)
    except UnresolvedError as error:
        conditions.false("SinkProvided", "NotFound", str(error))
        return ""
    conditions.true("SinkProvided")
    return url


def overrides(source: Object) -> dict[str, str]:
    """The attributes that a source's ``ceOverrides`` add to every event."""
    found: dict[str, str] = dig(source, "spec", "ceOverrides", "extensions", default={})
    return found


def source_fields(url: str, attributes: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The status fields of a source."""
    listed = [{"type": type, "source": source} for type, source in attributes]
    return {"sinkUri": url or None, "ceAttributes": listed or None}


async def emit(
    shared: Shared,
    url: str,
    event: Event,
    extensions: Mapping[str, str],
    delivery: Delivery,
    namespace: str,
    *,
    origin: str = "source",
    waited: float | None = None,
) -> Outcome:
    """Bring an event of a source to its sink, with as many attempts as ``delivery`` says; the last one's outcome.

    ``origin`` names the source in traces; ``waited``: seconds since what the event tells of.
    """
    with shared.tracing.step(event, event.text("type") or "event", origin, "consumer", begins=True) as span:
        headers, body = cloudevents.encode_binary(event.with_attributes(**extensions))
        headers = {**event.headers, **headers, "Kn-Namespace": namespace}
        retried = 0
        while True:
            answer = await shared.transport.post(url, headers, body, timeout=delivery.timeout)
            wait = delivery.wait(retried, answer.outcome)
            if wait is None:
                break
            retried += 1
            await shared.context.clock.sleep(wait)
        outcome = answer.outcome
        if span is not None:
            span.set(url=url, status=outcome.status, attempts=retried + 1)
            if waited is not None:
                span.set(waited_ms=round(waited * 1000, 1))
            if not outcome.ok:
                span.error = str(outcome.status or outcome.reason)
    return outcome
