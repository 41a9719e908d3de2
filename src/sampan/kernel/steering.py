"""One clock for the whole platform: kept across restarts, followed by every process.

The core process leads. Whenever its clock is steered, the new `Timeline` goes to the child processes at once (they share the
machine's CLOCK_MONOTONIC, so the same timeline gives them the same reading) and to ``clock.json`` in the data directory.

At the next start the platform's time goes on from where it was: never back, and no further ahead than the outage was long.
A clock that was frozen stays frozen at its reading, one that ran at another rate goes on at that rate, but while the platform
was down its time passed at the machine's rate. ``clock.json`` holds the timeline and both wall readings when it was written.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sampan.kernel.clock import Clock, Timeline, machine_time
from sampan.kernel.files import write_atomic

SAVE_EVERY = 10.0
"""Machine seconds between saves while the clock runs faster than the machine's."""


class Saved(msgspec.Struct, frozen=True):
    """``clock.json``: readings in seconds since the epoch, and the rate."""

    platform: float
    machine: float
    rate: float


def restore(path: Path) -> Timeline:
    """The timeline to start with: the machine's own, or the one that was saved, continued."""
    real = Timeline.real()
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=Saved)
    except (OSError, msgspec.MsgspecError):
        return real
    now = machine_time()
    outage = max(0.0, now - saved.machine)
    ahead = saved.platform - saved.machine
    if saved.rate == 1.0 and abs(ahead) < 0.001:
        return real
    wall = saved.platform + outage * min(saved.rate, 1.0)
    return Timeline(real.origin, real.base, wall - real.base, saved.rate)


def save(path: Path, clock: Clock) -> None:
    """Write the clock's present reading and rate; a clock that agrees with the machine's needs no file."""
    saved = Saved(clock.time(), machine_time(), clock.timeline.rate)
    if saved.rate == 1.0 and abs(saved.platform - saved.machine) < 0.001:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, msgspec.json.encode(saved))


def describe(clock: Clock) -> dict[str, object]:
    """The clock's state for people: reading, how far from the machine's, and rate."""
    return {
        "time": clock.now().isoformat(timespec="milliseconds"),
        "ahead_seconds": round(clock.time() - machine_time(), 3),
        "rate": clock.timeline.rate,
        "monotonic": clock.monotonic(),
    }
