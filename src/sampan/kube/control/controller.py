"""The base of every controller: one queue, a few workers, and the subclass's `reconcile`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.control.interface import Informer, Informers, Queue, Recorder, Source
from sampan.kube.objects import Key, Resource


@dataclass(frozen=True)
class ControlContext:
    """What controllers of one process share."""

    client: Client
    informers: Informers
    clock: Clock
    tasks: Tasks


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

    @abstractmethod
    def sources(self) -> list[Source]:
        """What triggers a reconcile."""

    @abstractmethod
    async def reconcile(self, key: Key) -> float | None:
        """Bring one object's world in line; returns seconds after which to look again, or None.

        An exception is logged, counted and retried with backoff (conflicts at once and quietly). The object may be gone:
        then clean up and return.
        """

    def informer(self, resource: Resource) -> Informer:
        """The process's shared informer of a resource."""
        return self.context.informers.informer(resource)

    async def start(self) -> None:
        """Start informers, wait until they are synced, then start the workers in the context's tasks."""
        raise NotImplementedError
