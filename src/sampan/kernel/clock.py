"""The platform's clock: the only source of time in Sampan.

Every timer, lease, delay, backoff, cron and window asks a `Clock`, so all of them move together when the clock is
steered: a three-day delay is tested by jumping three days. The relation between platform time and the machine's own
monotonic time is one small value, a `Timeline`; steering replaces it and re-arms the pending timers. Every process of a
platform follows the same timeline (``kernel.steering`` publishes and keeps it). In tests ``kernel.autojump`` moves the clock
to the next timer whenever nothing else can happen.

Two readings: `Clock.time` is wall time (seconds since the epoch, may jump either way when steered), `Clock.monotonic`
never goes back. Timers are set on the monotonic reading; a forward jump fires what it passes, a backward jump of the wall
reading leaves timers alone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

EPSILON = 1e-6
"""Seconds within which two readings are the same: what adding floats in another order may differ by."""
LONGEST_WAIT = 86400.0
"""Machine seconds the loop timer is set for at most (event loops refuse very long ones)."""
COMPACT_AT = 512
"""Cancelled timers tolerated on the heap before it may be rebuilt."""


def machine_time() -> float:
    """The machine's own wall reading in seconds since the epoch, which nothing steers.

    Only for what outside programs check against their own clock, such as the validity of certificates.
    """
    return time.time()


class Timeline(msgspec.Struct, frozen=True):
    """How platform time follows from the machine's CLOCK_MONOTONIC, which all processes of a machine share.

    platform monotonic = ``base + (machine - origin) * rate``; platform wall = platform monotonic + ``wall_offset``.
    All values are seconds; ``rate`` 0 is a frozen clock.
    """

    origin: float
    base: float
    wall_offset: float
    rate: float = 1.0

    @staticmethod
    def real() -> Timeline:
        """The timeline that agrees with the machine's own clocks."""
        machine = time.monotonic()
        return Timeline(origin=machine, base=machine, wall_offset=time.time() - machine)

    def at(self, machine: float) -> float:
        """Platform monotonic seconds at a machine monotonic reading."""
        return self.base + (machine - self.origin) * self.rate

    def jumped(self, machine: float, seconds: float) -> Timeline:
        """The timeline after a jump: forward moves both readings, backward only the wall reading."""
        if seconds >= 0:
            return Timeline(machine, self.at(machine) + seconds, self.wall_offset, self.rate)
        return Timeline(machine, self.at(machine), self.wall_offset + seconds, self.rate)

    def at_rate(self, machine: float, rate: float) -> Timeline:
        """The timeline running ``rate`` times as fast from now on; 0 freezes it."""
        return Timeline(machine, self.at(machine), self.wall_offset, rate)


class Timer:
    """A pending callback of a clock; `cancel` is idempotent and safe after it fired."""

    __slots__ = ("_args", "_callback", "_clock", "cancelled", "when")

    def __init__(self, clock: Clock, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.cancelled = False
        self._clock: Clock | None = clock
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        """Never fire."""
        if not self.cancelled:
            self.cancelled = True
            self._callback = None
            self._args = ()
            if self._clock is not None:
                self._clock._forget(self)
                self._clock = None

    def fire(self) -> None:
        """Call back once, unless cancelled."""
        callback, args = self._callback, self._args
        self._clock = None  # no longer on its heap
        self.cancel()
        if callback is not None:
            callback(*args)


class Clock:
    """A steerable clock for one event loop.

    All methods that set timers must be called on the event loop's thread; the readings may be called from any thread.
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self._timeline = timeline or Timeline.real()
        self._floor = float("-inf")
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._wakeup: asyncio.TimerHandle | None = None
        self._wakeup_at = float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancelled = 0
        self._holds = 0
        self._followers: list[Callable[[Timeline], object]] = []

    # -- readings

    @property
    def timeline(self) -> Timeline:
        """The timeline in force."""
        return self._timeline

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return max(self._timeline.at(time.monotonic()), self._floor)

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.monotonic() + self._timeline.wall_offset

    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return int(self.time() * 1_000_000_000)

    def time_ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.time() * 1000)

    def now(self) -> datetime:
        """The wall reading as an aware UTC datetime."""
        return datetime.fromtimestamp(self.time(), UTC)

    # -- waiting

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` on the loop once `monotonic` reaches ``when``."""
        timer = Timer(self, when, callback, args)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        if when < self._wakeup_at:
            self._arm()
        return timer

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call ``callback(*args)`` after ``delay`` seconds of platform time."""
        return self.call_at(self.monotonic() + delay, callback, *args)

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` of platform time; 0 or less yields once to the loop."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, _resolve, future)
        try:
            await future
        finally:
            timer.cancel()

    async def sleep_until(self, wall: float) -> None:
        """Wait until `time` reaches ``wall``, also across backward jumps of the wall reading."""
        while (remaining := wall - self.time()) > EPSILON:
            await self.sleep(remaining)

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        """Bound the body to ``seconds`` of platform time (None: unbounded).

        Raises:
            TimeoutError: the body did not finish in time; it was cancelled.
        """
        async with asyncio.timeout(None) as scope:
            timer = None
            if seconds is not None:
                loop = asyncio.get_running_loop()
                timer = self.call_later(seconds, lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()

    def patience(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """A `timeout` for what somebody outside the platform does: a probed program, a webhook, a client.

        They live on the machine's time, and so does this: a clock that runs faster or jumps leaves them no less of it, and
        one that stands still does not have us wait for ever.
        """
        return asyncio.timeout(seconds)

    # -- steering

    def steer(self, timeline: Timeline) -> None:
        """Follow another timeline from now on; the monotonic reading must not go back.

        Raises:
            ValueError: the timeline would move the monotonic reading back.
        """
        self._steer(timeline, time.monotonic())

    def _steer(self, timeline: Timeline, machine: float) -> None:
        current = self._timeline
        begins = max(timeline.origin, current.origin)
        if timeline.at(begins) < current.at(begins) - EPSILON:
            raise ValueError("a clock's monotonic reading cannot go back")
        # a follower hears of a slower timeline a little after it began: its reading then stands still instead of going back
        self._floor = max(self._floor, current.at(machine))
        self._timeline = timeline
        if self._heap:
            self._arm()
        for follow in list(self._followers):
            follow(timeline)

    def on_steer(self, follow: Callable[[Timeline], object]) -> None:
        """Call ``follow(timeline)`` after each steering: how a timeline is published to other processes."""
        self._followers.append(follow)

    def jump(self, seconds: float) -> None:
        """Move the wall reading by ``seconds``; forward jumps fire every timer they pass, in order."""
        # One machine reading for all of it: a clock frozen a few microseconds before its own floor would fall short of
        # the timers it is made to jump to.
        machine = time.monotonic()
        self._steer(self._timeline.jumped(machine, seconds), machine)

    def freeze(self) -> None:
        """Stop the clock; only `jump` moves it until `run`."""
        self.run(rate=0.0)

    def run(self, rate: float = 1.0) -> None:
        """Run ``rate`` times as fast as the machine's clock."""
        machine = time.monotonic()
        self._steer(self._timeline.at_rate(machine, rate), machine)

    def next_timer(self) -> float | None:
        """The monotonic reading at which the earliest pending timer fires, or None."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    # -- work that autojump must wait for

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Work outside the event loop is under way (a thread, another process): autojump waits for the body to end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    @property
    def held(self) -> bool:
        """Whether some `hold` is in force."""
        return self._holds > 0

    # -- the one loop timer behind all platform timers

    def _arm(self) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        self._wakeup_at = float("inf")
        when = self.next_timer()
        if when is None:
            return
        loop = self._loop = self._running_loop()
        reading = self.monotonic()
        if when <= reading + EPSILON:
            self._wakeup = loop.call_later(0, self._fire)
        elif self._timeline.rate > 0:
            # rounded up to the event loops' own resolution: a wakeup a little too early would only spin
            delay = math.ceil((when - reading) / self._timeline.rate * 1000) / 1000
            self._wakeup = loop.call_later(min(delay, LONGEST_WAIT), self._fire)
        else:
            return
        self._wakeup_at = when

    def _forget(self, timer: Timer) -> None:
        """A timer on the heap was cancelled; once they are the majority the heap is rebuilt without them."""
        self._cancelled += 1
        if self._cancelled > COMPACT_AT and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is None:
                raise
            return self._loop

    def _fire(self) -> None:
        self._wakeup, self._wakeup_at = None, float("inf")
        # only what is due and was set before now: a callback that sets a timer at once must not hold the loop forever
        limit = next(self._order)
        try:
            while self.next_timer() is not None:
                when, order, timer = self._heap[0]
                if when > self.monotonic() + EPSILON or order > limit:
                    break
                heapq.heappop(self._heap)
                timer.fire()
        finally:
            self._arm()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
