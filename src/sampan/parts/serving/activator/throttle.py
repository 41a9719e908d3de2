"""Who may pass to a revision's pods, without I/O.

A `Throttle` knows the revision's reachable pods and how many requests each may have at once. A request that finds no free place
waits in line, first come first served; the line has an end. With a limit every request is given a pod and holds a place on
it until it is done; without one, requests only wait for the first pod.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

QUEUE_DEPTH = 10_000
"""Requests that may wait for one revision."""
FIRST_AVAILABLE = 3
"""Up to this limit pods are filled in order; above it they take turns."""


class QueueFullError(Exception):
    """The line is as long as it may be."""


class DismissedError(Exception):
    """Waiting has become pointless."""


class Slot(NamedTuple):
    """A place on a pod; ``limited``: it must be given back."""

    pod: str
    limited: bool


@dataclass(slots=True)
class Throttle:
    """One revision's pods and line."""

    limit: int
    """Requests a pod may have at once; 0: any number."""
    in_flight: dict[str, int] = field(default_factory=dict)
    """Requests on each reachable pod (``address:port``)."""
    held_back: bool = False
    """Give no places yet: what is under way is not known."""
    _line: deque[asyncio.Future[Slot]] = field(default_factory=deque)
    _turn: int = 0

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    @property
    def busy(self) -> int:
        """Requests that hold a place."""
        return sum(self.in_flight.values())

    def take(self) -> Slot | None:
        """A place right now, or None."""
        if not self.in_flight:
            return None
        if self.limit <= 0:
            return Slot("", limited=False)
        pod = None if self.held_back else self._choose()
        if pod is None:
            return None
        self.in_flight[pod] += 1
        return Slot(pod, limited=True)

    def wait(self, future: asyncio.Future[Slot]) -> None:
        """Join the line; the future gets the place.

        Raises:
            QueueFullError: the line is full.
        """
        if len(self._line) >= QUEUE_DEPTH:
            raise QueueFullError
        self._line.append(future)

    def leave(self, future: asyncio.Future[Slot]) -> None:
        """A waiting request went away; a place it was given meanwhile goes back."""
        try:
            self._line.remove(future)
        except ValueError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.give_back(future.result().pod)

    def dismiss(self) -> None:
        """Nobody in line will get anywhere: the revision is gone, or the gate closes."""
        while self._line:
            future = self._line.popleft()
            if not future.done():
                future.set_exception(DismissedError("the revision is gone"))

    def give_back(self, pod: str) -> None:
        """A request on a pod is done."""
        if self.in_flight.get(pod, 0) > 0:
            self.in_flight[pod] -= 1
        self.admit()

    def set_pods(self, pods: set[str], occupied: Mapping[str, int] = MappingProxyType({})) -> None:
        """The pods that can be reached now, and how many places of new ones are taken already."""
        for pod in self.in_flight.keys() - pods:
            del self.in_flight[pod]
        for pod in sorted(pods - self.in_flight.keys()):
            self.in_flight[pod] = occupied.get(pod, 0)
        self.admit()

    def forget_requests(self) -> None:
        """Nobody will report the end of what is under way (Envoy died): start counting anew."""
        for pod in self.in_flight:
            self.in_flight[pod] = 0
        self.admit()

    def admit(self) -> None:
        """Let those in line go as far as there are places."""
        while self._line:
            if self._line[0].done():
                self._line.popleft()
                continue
            slot = self.take()
            if slot is None:
                return
            self._line.popleft().set_result(slot)

    def _choose(self) -> str | None:
        pods = list(self.in_flight)
        if self.limit > FIRST_AVAILABLE:
            self._turn = (self._turn + 1) % len(pods)
            pods = pods[self._turn :] + pods[: self._turn]
        return next((pod for pod in pods if self.in_flight[pod] < self.limit), None)
