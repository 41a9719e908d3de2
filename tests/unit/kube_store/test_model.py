"""The store against a model: a dict, a list of changes, and the rules in words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sampan.kernel.clock import Clock
from sampan.kube.objects import encode
from sampan.kube.store import Change, CompactedError, ConflictError, Entry, LogDriver, MemoryLog, Store, history
from sampan.kube.store.fanout import StoreWatch
from sampan.kube.store.sqlite import SqliteLog

KEYS = [f"/registry/core/{plural}/{space}/{name}" for plural in ("pods", "secrets") for space in "xy" for name in "abc"]
PREFIXES = ["/registry/", "/registry/core/pods/", "/registry/core/pods/x/", "/registry/core/secrets/y/b"]


class StoreMachine(RuleBasedStateMachine):
    """Random writes, watches, compactions and restarts, checked against what a reader must see."""

    block = 1
    """The history is dropped by so many changes at once."""

    def driver(self) -> LogDriver:
        return self.memory

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.memory = MemoryLog(keep=True)
        self.live: dict[str, Entry] = {}
        self.states: dict[int, dict[str, Entry]] = {1: {}}
        self.changes: list[Change] = []
        self.watches: list[tuple[StoreWatch, str, int, list[Change]]] = []
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.clock = Clock()
        self.store = Store(self.driver(), self.clock, history_count=12, compact_keep=4)
        await self.store.open()

    def _note(self, change: Change, entry: Entry | None) -> None:
        self.changes.append(change)
        self.live = {key: old for key, old in self.live.items() if key != change.key}
        if entry is not None:
            self.live[change.key] = entry
        self.states[change.revision] = self.live

    @rule(
        key=st.sampled_from(KEYS), text=st.text(max_size=5), guess=st.sampled_from(["none", "right", "wrong", "absent"])
    )
    def put(self, key: str, text: str, guess: str) -> None:
        current = self.live[key].revision if key in self.live else 0
        expected = {"none": None, "right": current, "wrong": current + 1, "absent": 0}[guess]
        try:
            entry = self.runner.run(self.store.put(key, lambda revision: encode({"t": text}, revision), expected))
        except ConflictError as error:
            assert expected is not None and expected != current and error.current == current
            return
        assert expected in (None, current)
        old = self.live.get(key)
        assert entry.created == (old.created if old else entry.revision)
        assert entry.revision > max(self.states) and entry.value == encode({"t": text}, entry.revision)
        self._note(Change(entry.revision, key, entry.value, old.value if old else None), entry)

    @rule(key=st.sampled_from(KEYS), exact=st.booleans())
    def delete(self, key: str, exact: bool) -> None:
        old = self.live.get(key)
        try:
            change = self.runner.run(self.store.delete(key, old.revision if exact and old else None))
        except ConflictError as error:
            assert old is None and error.current == 0
            return
        assert old is not None and change.key == key and change.deleted and change.revision > max(self.states)
        self._note(change, None)

    @rule(prefix=st.sampled_from(PREFIXES), back=st.integers(0, 20))
    def watch(self, prefix: str, back: int) -> None:
        after = max(1, self.store.revision - back)
        try:
            watch = self.runner.run(self._watch(prefix, after))
        except CompactedError:
            assert after < self.store.compacted
            return
        self.watches.append((watch, prefix, after, []))

    async def _watch(self, prefix: str, after: int) -> StoreWatch:
        return self.store.watch(prefix, after)

    @rule()
    def read_watches(self) -> None:
        for watch, prefix, after, seen in self.watches:
            expected = [c for c in self.changes if c.revision > after and c.key.startswith(prefix)]
            if len(expected) > len(seen):
                seen += self.runner.run(watch.batch())
            assert seen == expected
            assert watch.progress() == self.store.revision

    @rule(
        prefix=st.sampled_from(PREFIXES),
        back=st.integers(0, 20),
        after=st.sampled_from(["", *KEYS]),
        limit=st.integers(0, 4),
    )
    def range_at(self, prefix: str, back: int, after: str, limit: int) -> None:
        revision = max(1, self.store.revision - back)
        try:
            found = self.store.range_at(prefix, revision, after, limit)
        except CompactedError:
            assert revision < self.store.compacted
            return
        state = self.states[max(known for known in self.states if known <= revision)]
        expected = [state[key] for key in sorted(state) if key.startswith(prefix) and key > after]
        assert found == (expected[:limit] if limit else expected)

    @rule()
    def compact(self) -> None:
        async def periods() -> None:
            for _ in range(2):
                self.clock.jump(300)
                await asyncio.sleep(0.001)

        self.runner.run(periods())
        assert self.store.compacted <= self.store.revision

    @rule()
    def restart(self) -> None:
        compacted = self.store.compacted
        self.runner.run(self.store.close())
        for watch, prefix, after, seen in self.watches:
            expected = [c for c in self.changes if c.revision > after and c.key.startswith(prefix)]
            assert expected[: len(seen)] == seen and watch.progress() <= self.store.revision
        self.watches.clear()
        self.runner.run(self._open())
        # What the history had dropped but the log not yet compacted comes back within the history's bounds.
        assert sum(compacted < c.revision <= self.store.compacted for c in self.changes) < self.block

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.range("/") == [self.live[key] for key in sorted(self.live)]
        for prefix in PREFIXES:
            assert self.store.count(prefix) == sum(key.startswith(prefix) for key in self.live)
        assert self.store.revision == max(self.states)
        newest = [c.revision for c in self.changes[-4:]]
        assert not newest or self.store.compacted < newest[0]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
            self.runner.close()


class PackedStoreMachine(StoreMachine):
    """The same with a history that packs what is only a little old."""

    block = 3

    @initialize()
    def begin(self) -> None:
        self.small = patch.multiple(history, PLAIN_COUNT=2, BLOCK_COUNT=self.block, INCOMPRESSIBLE=400)
        self.small.start()
        super().begin()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "small"):
            self.small.stop()


class SqliteStoreMachine(StoreMachine):
    """The same with the log on disk."""

    def driver(self) -> LogDriver:
        if not hasattr(self, "folder"):
            self.folder = TemporaryDirectory()
        return SqliteLog(Path(self.folder.name) / "log.db")

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestPackedStore = PackedStoreMachine.TestCase
TestPackedStore.settings = TestStore.settings
TestSqliteStore = SqliteStoreMachine.TestCase
TestSqliteStore.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
