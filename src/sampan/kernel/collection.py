"""When the cyclic garbage collector runs: seldom, and while nobody waits.

What the platform holds (objects of the API, routes, backlogs) are trees that reference counting frees by itself; measured under
load the collector finds no garbage at all among what outlives a call. Yet it looks at everything, at about a microsecond an
object, with the process standing still: with the interpreter's own thresholds 100,000 new objects cost one pause of a
twentieth to a tenth of a second, and a full collection among 5,000 pods several times that.

So after the start everything made until then is set aside for good (`begin`), and from then on only the youngest
objects are collected as they come (`YOUNG`: a millisecond or two). What survived is collected all at once when enough of it has
gathered (`WORTH`) and the process has had nothing to do for a while (`QUIET`), or, should that never come, when it is so
much that cycles might be what fills the memory (`UTMOST`). After that the C library gives back to the system what it holds for later;
by itself it does so only from the end of its heap.
"""

from __future__ import annotations

import gc
import time

from sampan.kernel.clock import Clock, Timer

YOUNG = 2_000
"""New containers, less those freed, at which the youngest generation is collected."""
WORTH = 25
"""Collections of the youngest generation (each left up to `YOUNG` containers) that make a full one worth its pause."""
UTMOST = 500
"""As many of them force a full one, quiet or not."""
BEAT = 5.0
"""Seconds of the machine between two looks at whether it is time; the stretch that has to be quiet."""
QUIET = 0.05
"""Share of a core that a process uses at most while it counts as quiet."""


def due(survived: int, busy: float) -> bool:
    """Whether to collect everything now: after ``survived`` young collections since the last full one, using the share ``busy`` of
    a core."""
    return survived >= WORTH and busy <= QUIET


class Collector:
    """The collector of this process in the platform's way, from `begin` to `end`."""

    def __init__(self) -> None:
        self._clock = Clock()  # of the machine: pauses are real
        self._timer: Timer | None = None
        self._used = 0.0
        self._before: tuple[int, int, int] | None = None
        self.full = 0
        """Full collections so far."""

    def begin(self) -> None:
        """Set aside everything made until now, and collect in the platform's way; needs the running loop."""
        gc.freeze()
        self._before = gc.get_threshold()
        gc.set_threshold(YOUNG, UTMOST, 0)
        gc.enable()
        self._next()

    def end(self) -> None:
        """Leave the collector to the interpreter again; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._before is not None:
            gc.set_threshold(*self._before)
            self._before = None

    def _next(self) -> None:
        self._used = time.process_time()
        self._timer = self._clock.call_later(BEAT, self._look)

    def _look(self) -> None:
        if due(gc.get_count()[1], (time.process_time() - self._used) / BEAT):
            gc.collect()
            _give_back()
            self.full += 1
        self._next()


def _give_back() -> None:
    import ctypes  # not before there is something to give back

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # not every C library has one
        trim(0)
