"""The base of every controller: one queue, a few workers, and the subclass's `reconcile`.

`Controller.start` connects the informers of the sources to the queue, waits until their caches are filled and starts the
workers. From then on a change of a watched object puts keys into the queue, a worker takes one and reconciles it; a failure
brings it back later, a conflict (somebody else wrote first; the cache is about to know) almost at once.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, TypeVar

from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.interface import For, Informer, Informers, Owns, Queue, Recorder, Source, Watches
from sampan.kube.control.measures import ControllerMetrics
from sampan.kube.control.queue import WorkQueue
from sampan.kube.objects import Key, Object, Resource, controller_of
from sampan.kube.status import ApiError

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

QUICK_CONFLICTS = 3
"""Conflicts in a row after which a key is retried at once; further ones back off."""
LASTING_CONFLICTS = 10
"""Conflicts, or objects that are not there, in a row from which on they are logged as a warning."""


@dataclass(frozen=True)
class ControlContext:
    """What controllers of one process share."""

    client: Client
    informers: Informers
    clock: Clock
    tasks: Tasks
    metrics: CollectorRegistry | None = None
    """Where controllers report; None: nowhere."""


class Controller(ABC):
    """A loop that makes the world match the objects it watches.

    ``name`` names its queue, metrics, events (as the reporting component) and tasks.
    """

    name: ClassVar[str]
    workers: ClassVar[int] = 1

    client: Client
    clock: Clock
    queue: Queue
    recorder: Recorder

    def __init__(self, context: ControlContext) -> None:
        self.context = context
        self.client = context.client
        self.clock = context.clock
        self._metrics = None if context.metrics is None else ControllerMetrics(context.metrics, self.name)
        self._queue: WorkQueue[Key] = WorkQueue(context.clock, metrics=self._metrics)
        self.queue = self._queue
        self.recorder = EventRecorder(context.client, context.clock, context.tasks, self.name)

    @abstractmethod
    def sources(self) -> list[Source]:
        """What triggers a reconcile."""

    @abstractmethod
    async def reconcile(self, key: Key) -> float | None:
        """Bring one object's world in line; returns seconds after which to look again, or None.

        An exception is logged, counted and retried with backoff (conflicts at once and quietly). The object may be gone:
        then clean up and return.
        """

    def informer(self, resource: Resource, field_selector: str | None = None) -> Informer:
        """The process's shared informer of a resource (and selector)."""
        if field_selector is None:
            return self.context.informers.informer(resource)
        return self.context.informers.informer(resource, field_selector=field_selector)

    async def start(self) -> None:
        """Start informers, wait until they are synced, then start the workers in the context's tasks."""
        sources = self.sources()
        for source in sources:
            self.informer(source.resource, source.field_selector).on_change(self._listener(source))
        for source in sources:
            await self.informer(source.resource, source.field_selector).wait_synced()
        start_workers(self.name, self.workers, self._queue, self.reconcile, self.context.tasks, self._metrics)

    def _listener(self, source: Source) -> Callable[[Object | None, Object | None], None]:
        keys = _keys_of(source)

        def listener(old: Object | None, new: Object | None) -> None:
            for obj in (old, new):
                if obj is not None:
                    for key in keys(obj):
                        self._queue.add(key)

        return listener


def _keys_of(source: Source) -> Callable[[Object], Iterable[Key]]:
    match source:
        case For():
            return lambda obj: (Key.of(obj),)
        case Watches(keys=keys):
            return keys
        case Owns(owner_kind=kind, namespaced=namespaced):

            def owner(obj: Object) -> Iterable[Key]:
                reference = controller_of(obj)
                if reference is None or reference["kind"] != kind:
                    return ()
                return (Key(obj["metadata"].get("namespace") or "" if namespaced else "", reference["name"]),)

            return owner


def start_workers(
    name: str,
    count: int,
    queue: WorkQueue[K],
    reconcile: Callable[[K], Awaitable[float | None]],
    tasks: Tasks,
    metrics: ControllerMetrics | None = None,
) -> None:
    """Run ``count`` workers over a queue in ``tasks``; for loops whose keys are not plain object keys."""

    async def work() -> None:
        while True:
            await _work(name, queue, reconcile, metrics)

    if metrics is not None:
        metrics.workers.set(count)
    for number in range(count):
        tasks.keep(f"{name}/{number}", work)


async def _work(
    name: str, queue: WorkQueue[K], reconcile: Callable[[K], Awaitable[float | None]], metrics: ControllerMetrics | None
) -> None:
    key = await queue.get()
    began = perf_counter()
    if metrics is not None:
        metrics.active.inc()
    result = ""  # stays so when the worker is cancelled
    try:
        after = await reconcile(key)
        queue.forget(key)
        if after is None:
            result = "success"
        else:
            result = "requeue_after"
            queue.add_after(key, after)
    except ApiError as error:
        if error.conflict and queue.failures(key) < QUICK_CONFLICTS:
            result = "requeue"
            queue.retry_now(key)
        elif error.namespace_terminating:
            result = "success"  # there is nothing left to bring in line
            queue.forget(key)
        else:
            result, delay = "error", queue.retry(key)
            # that somebody else wrote first, or that what is written went away meanwhile, is everyday life; only when it lasts is
            # it news
            common = error.conflict or error.not_found
            level = logging.DEBUG if common and queue.failures(key) < LASTING_CONFLICTS else logging.WARNING
            log.log(level, "%s: %s failed, retrying in %.3g s: %s", name, key, delay, error, extra={"object": str(key)})
    except Exception:
        result, delay = "error", queue.retry(key)
        log.exception("%s: %s failed, retrying in %.3g s", name, key, delay, extra={"object": str(key)})
    finally:
        queue.done(key)
        if metrics is not None:
            metrics.active.dec()
            metrics.seconds.observe(perf_counter() - began)
            if result:
                metrics.result(result)
            if result == "error":
                metrics.errors.inc()
