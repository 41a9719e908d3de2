"""What a keeper takes over at its start: the node's range of addresses, and what is left of a keeper that died."""

from __future__ import annotations

import contextlib
import json
import os
import signal

from sampan.kernel import claims
from sampan.kernel.clock import Clock
from sampan.parts.node.runtime.cgroups import Cgroups
from sampan.parts.node.runtime.interface import ExitRecord
from sampan.parts.node.runtime.keeper.processes import process_start
from sampan.parts.node.runtime.layout import Layout, record_exit, write_atomically

WISHED_ATTEMPTS = 60
"""Attempts at the range this node was given, some 3 s: it cannot be another. The keeper before this one may still be ending,
and a node that joins locks free ranges for a moment."""


def claim_range(wish: str, layout: Layout) -> tuple[str, int]:
    """A pod range no other platform of this machine uses, and the locked file that holds it.

    Raises:
        SystemExit: there is none; the message says which ones were tried.
    """
    wished = [wish] if wish else [f"10.244.{n}.0/24" for n in range(256)]
    remembered = layout.base / "pod-range"
    if not wish and remembered.exists():
        wished.insert(0, remembered.read_text().strip())
    for candidate in wished:
        lock = claims.claim(candidate, WISHED_ATTEMPTS if wish else 1)
        if lock is not None:
            write_atomically(remembered, candidate.encode())
            return candidate, lock
    raise SystemExit(f"the pod range {', '.join(wished[:3])} is used by another platform on this machine")


def end_leftovers(layout: Layout, cgroups: Cgroups, clock: Clock) -> None:
    """End what a keeper before this one left behind: its cgroups, and recorded processes where there are none."""
    for pod in cgroups.pods():
        cgroups.kill(pod)
    for started in layout.pods.glob("*/containers/*/started.json"):
        if (started.parent / "exit.json").exists():
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(started.read_bytes())
            if process_start(record["pid"]) == record["start"]:
                os.killpg(record["pid"], signal.SIGKILL)
        record_exit(started.parent, ExitRecord(137, clock.time(), error="lost"))
    for sandbox in layout.pods.glob("*/sandbox.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(sandbox.read_bytes())
            pid = record["sandbox"]["pid"]
            if pid and process_start(pid) == record["start"]:
                os.kill(pid, signal.SIGKILL)  # the first of its pid namespace: what is left in there ends with it
        sandbox.unlink()
    for pod in cgroups.pods():
        for _ in range(100):
            if cgroups.remove(pod):
                break
            os.sched_yield()
