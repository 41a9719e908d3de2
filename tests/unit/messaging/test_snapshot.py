"""A checkpoint's snapshot: packed in slices while the store goes on, and worth what it would be worth at once."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sampan.kernel.clock import Clock
from sampan.parts.messaging import snapshot
from sampan.parts.messaging import store as store_module
from sampan.parts.messaging.storage import checkpoint
from tests.unit.messaging.conftest import Bench, started, state_of


def frozen() -> Clock:
    clock = Clock()
    clock.freeze()
    return clock


@pytest.mark.parametrize("seed", range(12))
async def test_a_checkpoint_that_is_packed_while_much_happens_says_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, clock = random.Random(seed), frozen()
    monkeypatch.setattr(snapshot, "SLICE", 1)
    monkeypatch.setattr(snapshot, "TIMERS_SLICE", 1)
    slices = 0

    async def act(bench: Bench) -> None:
        topic = chance.choice(["a", "b", "c"])
        match chance.randrange(9):
            case 0 | 1 | 2:
                await bench.send(topic, b"x", KEYS=f"k{chance.randrange(9)}")
            case 3 | 4:
                seconds = chance.choice([1, 1, 2, 3600])
                await bench.send(topic, b"later", deliver_at=str(clock.time_ms() + seconds * 1000))
            case 5:
                held.append((topic, await bench.receive(topic, batch=chance.randint(1, 4))))
            case 6 if held:
                name, taken = held.pop()
                await bench.acknowledge(name, taken)
            case 7:
                await bench.jump(chance.choice([0.4, 1.2, 31]))
            case 8 if chance.random() < 0.3:
                bench.core.broker.delete_topic(topic)
                await bench.send(topic, b"anew")

    held: list[tuple[str, Any]] = []
    async with started(tmp_path, clock) as bench:
        store = bench.core.store
        for topic in "abc":
            await bench.send(topic)
        for _ in range(40):
            await act(bench)

        async def slowly(work: Any) -> Any:
            nonlocal slices
            while True:
                try:
                    next(work)
                except StopIteration as finished:
                    return finished.value
                slices += 1
                await act(bench)

        monkeypatch.setattr(store_module, "_in_slices", slowly)
        store._begin_checkpoint(store.log.durable)
        assert store._writing is not None
        await store._writing
        for _ in range(10):
            await act(bench)
        await bench.settle(lambda: store.log.durable >= store.log.end)
        before = state_of(bench)
        assert slices > 8
    assert (tmp_path / "checkpoint").exists()
    async with started(tmp_path, clock) as bench:
        assert state_of(bench) == before
        for name, known in bench.core.store.topics.items():  # and each message is found
            there = sum(queue.maximum - queue.minimum for queue in known.queues)
            assert len(await bench.receive(name, "another", batch=10_000)) == there


async def test_packing_a_checkpoint_says_the_same_however_it_is_sliced(tmp_path: Path) -> None:
    clock = frozen()
    async with started(tmp_path, clock) as bench:
        store = bench.core.store
        for number in range(250):
            await bench.send(f"t{number % 130}", deliver_at=str(clock.time_ms() + 1000 * number))
        for _ in range(250):
            await bench.send("full")
        for group in ("g", "h"):
            for _ in range(8):
                await bench.receive("full", group)
        store.define("user", "ann", {"secret": "s"})
        taken = snapshot.Snapshot(store, store.log.durable)
        state = msgspec.msgpack.decode(snapshot.packed_at_once(taken), type=checkpoint.State)
        assert [one.config.name for one in state.topics] == list(store.topics)
        used = {one.config.name: one.used for one in state.topics}
        queues = store.topics["full"].queues
        assert used["full"] == [(queue.id, queue.maximum, queue.minimum) for queue in queues if queue.maximum]
        assert sum(len(held) for one in state.progress for _, _, held in one.queues) == 500
        assert len(state.timers) == 16 * len(list(store.timers))
        assert ["user", "ann", {"secret": "s"}] in [list(one) for one in state.definitions]


async def test_timers_cancelled_while_they_are_looked_at_hide_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "TIMERS_SLICE", 1)
    async with started(tmp_path, frozen()) as bench:
        store = bench.core.store
        for position in range(1, 21):
            store.timers.set(5_000, position)
        packing = snapshot.Snapshot(store, 1_000).pack()
        left = set(range(1, 21))
        state = None
        while state is None:
            try:
                next(packing)
            except StopIteration as packed:
                state = msgspec.msgpack.decode(packed.value, type=checkpoint.State)
            if left and store.timers.cancel(5_000, first := min(left)) and len(left) > 4:
                left.discard(first)
            store.timers.set(5_000, 2_000)  # younger: its frame comes again
        found = array("q")
        found.frombytes(state.timers)
        assert left <= set(found[1::2]) <= set(range(1, 21))
        assert len(found) == 2 * len(set(found[1::2]))
