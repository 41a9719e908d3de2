"""kill -9 at random points: what was acknowledged is there, revisions never go back, watches resume."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kube.objects import decode
from sampan.kube.store import Store
from sampan.kube.store.sqlite import SqliteLog

ROUNDS = 50
KEYS = 40

WRITER = """
import asyncio, os, sys
from pathlib import Path
from sampan.kernel.clock import Clock
from sampan.kube.objects import encode
from sampan.kube.store import Store
from sampan.kube.store.sqlite import SqliteLog

async def main():
    path, run = Path(sys.argv[1]), int(sys.argv[2])
    store = Store(SqliteLog(path), Clock(), history_count=500, compact_keep=50, compact_every=0.02)
    await store.open()

    async def writer(number):
        turn = 0
        while True:
            turn += 1
            key = f"/registry/core/configmaps/default/{number}-{turn % 5}"
            if turn % 7 == 0 and store.get(key) is not None:
                change = await store.delete(key, None)
                line = f"{change.revision} {key} -"
            else:
                entry = await store.put(key, lambda revision: encode({"run": run, "turn": turn}, revision), None)
                line = f"{entry.revision} {key} {run}/{turn}"
            os.write(1, (line + "\\n").encode())

    await asyncio.gather(*(writer(number) for number in range(8)))

asyncio.run(main())
"""


def _acknowledged(path: Path, run: int, chance: random.Random) -> list[tuple[int, str, str]]:
    """Start a writer, kill it after a random number of acknowledgements (some at once), return what it acknowledged."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(run)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert writer.stdout is not None
    output = b""
    enough = chance.choice([1, 20, 200, 400])
    while output.count(b"\n") < enough:
        read = os.read(writer.stdout.fileno(), chance.choice([64, 4096]))
        assert read, "the writer died of itself"
        output += read
    writer.send_signal(signal.SIGKILL)
    output += writer.stdout.read()
    writer.stdout.close()
    writer.wait()
    lines = output.decode().splitlines(keepends=True)
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    return [(int(revision), key, what) for revision, key, what in acknowledged]


def test_fifty_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "log.db"
    newest: dict[str, tuple[int, str]] = {}
    highest = 0

    async def check() -> int:
        store = Store(SqliteLog(path), Clock())
        await store.open()
        try:
            assert store.revision >= highest
            for key, (revision, what) in newest.items():
                entry = store.get(key)
                if entry is not None and entry.revision > revision:
                    continue  # a later write that was durable but not yet acknowledged
                if what == "-":
                    assert entry is None, key
                    continue
                later = [c for c in store.history(key, store.compacted) if c.key == key and c.revision > revision]
                if entry is None:
                    assert later and later[-1].deleted, f"{key} lost revision {revision}"
                    continue
                obj = decode(entry.value)
                assert entry.revision == revision and f"{obj['run']}/{obj['turn']}" == what
                assert obj["metadata"]["resourceVersion"] == str(revision)
            resumed = (
                await store.watch("/registry/", store.compacted).batch() if store.compacted < store.revision else []
            )
            assert [c.revision for c in resumed] == sorted({c.revision for c in resumed})
            assert not resumed or resumed[-1].revision == store.revision
            return store.revision
        finally:
            await store.close()

    for run in range(ROUNDS):
        acknowledged = _acknowledged(path, run, chance)
        revisions = [revision for revision, _, _ in acknowledged]
        assert len(set(revisions)) == len(revisions) and min(revisions, default=highest + 1) > highest
        for revision, key, what in acknowledged:
            if revision > newest.get(key, (0, ""))[0]:
                newest[key] = (revision, what)
        highest = max([highest, *revisions])
        highest = asyncio.run(check())
