"""What the store promises: order, optimistic concurrency, group commit, watches, history, failure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kube.objects import decode, encode
from sampan.kube.store import (
    Change,
    CompactedError,
    ConflictError,
    Entry,
    FullError,
    MemoryLog,
    Record,
    SlowWatchError,
    Store,
    StoreError,
    core,
    history,
)
from sampan.kube.store.keys import KeyIndex, collection_of
from sampan.kube.store.measures import StoreMetrics

PODS = "/registry/core/pods/"
A, B = f"{PODS}default/a", f"{PODS}default/b"


def value(text: str) -> Callable[[int], bytes]:
    return lambda revision: encode({"data": text}, revision)


class GatedLog(MemoryLog):
    """A log that blocks until `gate` is set and fails with `failure` when there is one."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(keep=True)
        self.gate = threading.Event()
        self.failure: Exception | None = None
        self.batches: list[int] = []

    def append(self, records: list[Record]) -> None:
        assert self.gate.wait(10)
        self.batches.append(len(records))
        if self.failure is not None:
            raise self.failure
        super().append(records)


async def opened(log: MemoryLog | None = None, **limits: Any) -> Store:
    store = Store(log or MemoryLog(keep=True), Clock(), **limits)
    await store.open()
    return store


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_put_gives_the_entry_with_its_revision_inside_the_value() -> None:
    store = await opened()
    entry = await store.put(A, value("x"), 0)
    assert entry == store.get(A)
    assert decode(entry.value) == {"metadata": {"resourceVersion": str(entry.revision)}, "data": "x"}
    assert entry.created == entry.revision == store.revision > 1


async def test_an_update_keeps_the_created_revision() -> None:
    store = await opened()
    first = await store.put(A, value("x"), 0)
    second = await store.put(A, value("y"), first.revision)
    assert (second.created, second.revision) == (first.revision, first.revision + 1)


@pytest.mark.parametrize("expected", [0, 7])
async def test_a_put_at_the_wrong_revision_conflicts(expected: int) -> None:
    store = await opened()
    entry = await store.put(A, value("x"), None)
    with pytest.raises(ConflictError) as caught:
        await store.put(A, value("y"), expected)
    assert caught.value.current == entry.revision
    assert store.get(A) == entry


async def test_deleting_what_does_not_exist_conflicts_with_revision_0() -> None:
    store = await opened()
    for expected in (None, 0, 3):
        with pytest.raises(ConflictError) as caught:
            await store.delete(A, expected)
        assert caught.value.current == 0


async def test_a_deletion_shows_the_last_state_at_its_own_revision() -> None:
    store = await opened()
    await store.put(A, value("x"), 0)
    change = await store.delete(A, None)
    assert change.deleted and change.revision == store.revision
    assert change.previous == encode({"data": "x"}, change.revision)
    assert store.get(A) is None


async def test_an_encoder_that_fails_changes_nothing() -> None:
    store = await opened()

    def broken(revision: int) -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError):
        await store.put(A, broken, 0)
    entry = await store.put(A, value("x"), 0)
    assert entry.revision == 2


async def test_range_is_in_key_order_after_a_key_and_limited() -> None:
    store = await opened()
    for name in ("default/c", "default/a", "other/a", "default/b"):
        await store.put(PODS + name, value(name), 0)
    await store.put("/registry/core/podtemplates/default/a", value("t"), 0)
    assert [e.key for e in store.range(PODS)] == [PODS + n for n in ("default/a", "default/b", "default/c", "other/a")]
    assert [e.key for e in store.range(PODS, after=A, limit=1)] == [B]
    assert [e.key for e in store.range(PODS + "other/")] == [PODS + "other/a"]
    assert store.count(PODS + "default/") == 3
    assert store.count("/registry/") == 5
    assert store.range(PODS, after=PODS + "zzz") == []


async def test_range_at_shows_an_earlier_state_in_pages() -> None:
    store = await opened()
    for name in "abc":
        await store.put(f"{PODS}default/{name}", value(name), 0)
    then = store.revision
    expected = store.range(PODS)
    await store.put(A, value("changed"), None)
    await store.delete(B, None)
    await store.put(f"{PODS}default/aa", value("new"), 0)
    assert store.range_at(PODS, then) == expected
    assert store.range_at(PODS, then, after=A, limit=1) == [expected[1]]
    assert store.range_at(PODS, then, after=expected[1].key, limit=5) == [expected[2]]


async def test_writes_queued_during_a_commit_go_as_one_batch() -> None:
    log = GatedLog()
    store = await opened(log)
    first = asyncio.create_task(store.put(A, value("0"), 0))
    await settle()
    rest = [asyncio.create_task(store.put(f"{PODS}default/n{i}", value("n"), 0)) for i in range(20)]
    await settle()
    log.gate.set()
    entries = await asyncio.gather(first, *rest)
    assert log.batches == [1, 20]
    assert [e.revision for e in entries] == list(range(2, 23))
    await store.close()


async def test_nothing_is_visible_before_it_is_durable() -> None:
    log = GatedLog()
    store = await opened(log)
    watch = store.watch(PODS, store.revision)
    seen: list[Change] = []
    store.subscribe(PODS, seen.append)
    writer = asyncio.create_task(store.put(A, value("x"), 0))
    await settle()
    assert store.get(A) is None and store.revision == 1 and watch.progress() == 1 and not seen
    log.gate.set()
    entry = await writer
    assert store.get(A) == entry and [c.revision for c in await watch.batch()] == [2] and len(seen) == 1
    await store.close()


class CountedLog(GatedLog):
    """A log that notes when it was told what."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.set()
        self.told: list[str] = []

    def relax(self) -> None:
        self.told.append("relax")

    def append(self, records: list[Record]) -> None:
        super().append(records)
        self.told.append("append")

    def flush(self, *, strict: bool) -> None:
        self.told.append("strict flush" if strict else "flush")
        if self.failure is not None:
            raise self.failure


async def founded(log: CountedLog) -> Store:
    store = Store(log, Clock(), founding=True)
    await store.open()
    return store


async def test_an_empty_log_is_founded_with_one_flush_however_many_writes_follow_each_other() -> None:
    log = CountedLog()
    store = await founded(log)
    for number in range(30):
        await store.put(f"{PODS}default/{number}", value("x"), 0)
    assert store.founding and log.told == ["relax", *["append"] * 30]
    await store.found()
    await store.found()
    await store.put(A, value("x"), 0)
    await store.flushed()
    assert not store.founding and log.told[31:] == ["strict flush", "append"]
    await store.close()
    again = await founded(log)
    assert not again.founding and "relax" not in log.told[33:]
    await again.close()


async def test_who_answers_an_outside_client_while_a_log_is_founded_has_it_flushed_first() -> None:
    log = CountedLog()
    store = await founded(log)
    await store.put(A, value("x"), 0)
    await store.put(B, value("x"), 0)
    await asyncio.gather(store.flushed(), store.flushed())
    assert log.told == ["relax", "append", "append", "flush"]
    await store.put(A, value("y"), None)
    await store.flushed()
    assert log.told[4:] == ["append", "flush"]
    log.failure = StoreError("the disk failed")
    for flush in (store.flushed, store.found):
        with pytest.raises(StoreError, match="the disk failed"):
            await flush()
    assert store.founding
    await store.close()


async def test_a_write_under_way_counts_for_the_expected_revision() -> None:
    log = GatedLog()
    store = await opened(log)
    first = asyncio.create_task(store.put(A, value("x"), 0))
    await settle()
    with pytest.raises(ConflictError) as caught:
        await store.put(A, value("y"), 0)
    assert caught.value.current == 2
    chained = asyncio.create_task(store.put(A, value("z"), 2))
    deleted = asyncio.create_task(store.delete(A, 3))
    await settle()
    log.gate.set()
    assert (await first).revision == 2 and (await chained).created == 2 and (await deleted).revision == 4
    assert store.get(A) is None and store.count(PODS) == 0
    await store.close()


@pytest.mark.parametrize("failure", [None, FullError("full")])
async def test_a_key_is_settled_once_its_write_is_stored_or_has_failed(failure: Exception | None) -> None:
    log = GatedLog()
    log.failure = failure
    store = await opened(log)
    await store.settled(A)
    writer = asyncio.create_task(store.put(A, value("x"), 0))
    await settle()
    writer.cancel()
    waiting = [asyncio.create_task(store.settled(A)) for _ in range(2)]
    await store.settled(B)
    await settle()
    assert not any(task.done() for task in waiting)
    log.gate.set()
    await asyncio.gather(*waiting)
    assert (store.get(A) is None) == (failure is not None)
    await store.close()


@pytest.mark.parametrize("failure", [FullError("full"), OSError("I/O"), StoreError("closed")])
async def test_a_failed_batch_fails_its_writers_and_those_behind_it_and_changes_nothing(failure: Exception) -> None:
    log = GatedLog()
    store = await opened(log)
    log.gate.set()
    kept = await store.put(A, value("kept"), 0)
    log.gate.clear()
    log.failure = failure
    writers: list[asyncio.Task[Entry | Change]] = [asyncio.create_task(store.put(A, value("1"), kept.revision))]
    await settle()
    writers += [
        asyncio.create_task(store.put(A, value("2"), kept.revision + 1)),
        asyncio.create_task(store.delete(A, None)),
    ]
    await settle()
    log.gate.set()
    errors = await asyncio.gather(*writers, return_exceptions=True)
    assert all(isinstance(e, FullError if isinstance(failure, FullError) else StoreError) for e in errors)
    assert store.get(A) == kept and store.revision == kept.revision
    log.failure = None
    entry = await store.put(A, value("after"), kept.revision)
    assert entry.revision > kept.revision + 3 and store.get(A) == entry
    await store.close()


async def test_a_cancelled_writer_leaves_its_write_to_finish() -> None:
    log = GatedLog()
    store = await opened(log)
    writer = asyncio.create_task(store.put(A, value("x"), 0))
    await settle()
    writer.cancel()
    log.gate.set()
    await store.close()
    assert store.get(A) is not None


async def test_a_closed_store_refuses_writes_and_ends_watches() -> None:
    store = await opened()
    watch = store.watch(PODS, 1)
    await store.close()
    await store.close()
    assert await watch.batch() == []
    with pytest.raises(StoreError):
        await store.put(A, value("x"), 0)


async def test_a_watch_begins_after_its_revision_and_sees_only_its_prefix() -> None:
    store = await opened()
    await store.put(A, value("1"), 0)
    start = store.revision
    await store.put(A, value("2"), None)
    await store.put("/registry/core/secrets/default/a", value("s"), 0)
    watch = store.watch(PODS, start)
    await store.delete(A, None)
    changes = await watch.batch()
    assert [(c.revision, c.created, c.deleted) for c in changes] == [(3, False, False), (5, False, True)]
    assert watch.progress() == store.revision


async def test_watches_share_the_change_and_iterate_until_closed() -> None:
    store = await opened()
    one, two = store.watch(PODS, 1), store.watch(PODS + "default/", 1)
    waiting = asyncio.ensure_future(anext(aiter(one)))
    await settle()
    await store.put(A, value("1"), 0)
    assert (await two.batch())[0] is await waiting
    two.close()
    assert [change async for change in two] == []
    assert store.watches == 1


async def test_progress_stops_before_the_first_unread_change() -> None:
    store = await opened()
    watch = store.watch(PODS, 1)
    await store.put(A, value("1"), 0)
    await store.put(A, value("2"), None)
    assert watch.progress() == 1
    await anext(aiter(watch))
    assert watch.progress() == 2


@pytest.mark.parametrize("limits", [{"backlog_count": 3}, {"backlog_bytes": 180}])
async def test_a_watch_that_does_not_read_is_cut_off_and_the_others_go_on(limits: dict[str, Any]) -> None:
    store = await opened(**limits)
    slow, quick = store.watch(PODS, 1), store.watch(PODS, 1)
    for _ in range(4):
        await store.put(A, value("x"), None)
        assert len(await quick.batch()) == 1
    with pytest.raises(SlowWatchError):
        await slow.batch()
    assert store.watches == 1 and store.cut_off == 1


async def test_what_a_watch_begins_with_does_not_count_as_slowness() -> None:
    store = await opened(backlog_count=2)
    for _ in range(10):
        await store.put(A, value("x"), None)
    watch = store.watch(PODS, 1)
    await store.put(A, value("x"), None)
    assert len(await watch.batch()) == 11


@pytest.mark.parametrize("limits", [{"history_count": 3}, {"history_bytes": 200}])
async def test_history_is_bounded_and_older_revisions_are_compacted(limits: dict[str, Any]) -> None:
    store = await opened(**limits)
    for number in range(10):
        await store.put(A, value(str(number)), None)
    assert 1 < store.compacted < store.revision
    with pytest.raises(CompactedError):
        store.watch(PODS, store.compacted - 1)
    with pytest.raises(CompactedError):
        store.range_at(PODS, store.compacted - 1)
    assert len(await store.watch(PODS, store.compacted).batch()) == store.revision - store.compacted
    assert len(store.range_at(PODS, store.compacted)) == 1


async def test_thousands_of_changes_take_a_tenth_of_their_size_and_are_all_there() -> None:
    store = await opened()
    body = "".join(f"field{number}: value{number}, " for number in range(100))
    for number in range(3_000):
        await store.put(A if number % 3 else B, value(f"{number} {body}"), None)
    assert store.compacted == 1 and store.history_bytes < 3_000 * len(body) / 10 + history.PLAIN_BYTES
    changes = await store.watch(PODS, 1).batch()
    assert [change.revision for change in changes] == [*range(2, 3_002)]
    assert all(f"{change.revision - 2} field0".encode() in (change.value or b"") for change in changes)
    values: dict[str, bytes | None] = {A: None, B: None}
    for change in changes:
        assert change.previous == values[change.key]
        values[change.key] = change.value
    assert values == {entry.key: entry.value for entry in store.range(PODS)}


async def test_what_compresses_well_is_forgotten_before_reading_it_takes_too_much() -> None:
    store = await opened()
    for number in range(600):
        await store.put(A, value(f"{number} " + "the same again, " * 16_000), None)
    assert store.history_bytes < history.HISTORY_BYTES / 4
    changes = await store.watch(PODS, store.compacted).batch()
    assert 100 < len(changes) == store.revision - store.compacted
    assert sum(len(change.previous or b"") for change in changes) <= history.HISTORY_UNPACKED


async def test_an_object_of_a_megabyte_is_kept_as_it_is() -> None:
    store = await opened()
    for number in range(4):
        await store.put(A, value(f"{number}" * (1 << 20)), None)
    changes = await store.watch(PODS, 1).batch()
    assert [(change.value or b"")[-5:-4] for change in changes] == [b"0", b"1", b"2", b"3"]
    assert 2 << 20 < store.history_bytes < 4 << 20


async def test_what_came_long_before_a_restart_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "OPEN_KEEP", 5)
    log = MemoryLog(keep=True)
    store = await opened(log)
    for number in range(20):
        await store.put(A, value(str(number)), None)
    await store.close()
    again = await opened(log)
    assert (again.compacted, again.revision, log.bounds()[0]) == (16, 21, 0)
    assert len(await again.watch(PODS, 16).batch()) == 5
    with pytest.raises(CompactedError):
        again.watch(PODS, 15)
    await again.close()


async def test_compaction_forgets_what_is_two_periods_old_and_more_than_kept() -> None:
    log, clock = MemoryLog(keep=True), Clock()
    store = Store(log, clock, compact_keep=3)
    await store.open()
    for _ in range(10):
        await store.put(A, value("x"), None)
    for expected in (1, 8):
        clock.jump(300)
        await settle()
        await asyncio.sleep(0.001)
        assert (store.compacted, log.bounds()[0]) == (expected, expected)
    assert [record.revision for record in log.replay()] == [8, 9, 10, 11]
    await store.close()


async def test_a_reopened_store_has_entries_history_and_revisions() -> None:
    log = MemoryLog(keep=True)
    store = await opened(log)
    await store.put(A, value("1"), 0)
    await store.put(B, value("1"), 0)
    await store.delete(B, None)
    await store.put(A, value("2"), None)
    before = await store.watch(PODS, 1).batch(), store.range("/"), store.range_at(PODS, 3), store.revision
    await store.close()
    again = await opened(log)
    assert (await again.watch(PODS, 1).batch(), again.range("/"), again.range_at(PODS, 3), again.revision) == before
    assert (await again.put(B, value("3"), 0)).revision == before[3] + 1


async def test_a_listener_hears_before_the_writer_and_its_fault_harms_nobody() -> None:
    store = await opened()
    heard: list[str] = []

    def faulty(change: Change) -> None:
        raise RuntimeError("listener")

    store.subscribe(PODS, faulty)
    unsubscribe = store.subscribe(PODS, lambda change: heard.append(change.key))
    await store.put(A, value("x"), 0)
    assert heard == [A]
    unsubscribe()
    unsubscribe()
    await store.put(B, value("x"), 0)
    assert heard == [A]


async def test_metrics_tell_objects_by_resource_and_writes_by_commit() -> None:
    log = GatedLog()
    store = await opened(log)
    registry = CollectorRegistry()
    registry.register(StoreMetrics(store))
    log.gate.set()
    await asyncio.gather(*(store.put(f"{PODS}default/{n}", value("x"), 0) for n in range(3)))
    await store.put("/registry/apps/deployments/default/a", value("x"), 0)
    log.failure = FullError("full")
    with pytest.raises(FullError):
        await store.put(A, value("x"), 0)
    samples = {(s.name, *s.labels.values()): s.value for metric in registry.collect() for s in metric.samples}
    assert samples["apiserver_storage_objects", "pods"] == 3
    assert samples["apiserver_storage_objects", "deployments.apps"] == 1
    assert (samples["sampan_store_writes_total",], samples["sampan_store_commits_total",]) == (4, 2)
    assert samples["sampan_store_failed_commits_total",] == 1 and samples["sampan_store_revision",] == 5
    await store.close()


@pytest.mark.parametrize(
    ("key", "collection"),
    [
        ("/registry/core/pods/default/a", "/registry/core/pods/"),
        ("/registry/core/nodes/a", "/registry/core/nodes/"),
        ("/registry/core/", "/registry/core/"),
        ("plain", "plain"),
    ],
)
def test_collections_are_the_first_three_segments(key: str, collection: str) -> None:
    assert collection_of(key) == collection


def test_key_index_spans_collections_in_key_order() -> None:
    keys = ["/r/g/c-d/x", "/r/g/c/x", "/r/g/c/a", "/r/h/c/x"]
    index = KeyIndex(keys)
    assert index.range("/r/g/") == sorted(keys[:3])
    assert index.range("/r/", limit=3) == sorted(keys)[:3]
    index.remove("/r/h/c/x")
    assert index.range("/r/h/c/") == [] and index.count("/r/") == 3
