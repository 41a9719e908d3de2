"""Every driver keeps the same log: what goes in comes out, also after compaction and reopening."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.kernel.clock import Clock
from sampan.kernel.errors import DataDirectoryError
from sampan.kube.objects import encode
from sampan.kube.store import MemoryLog, Record, Store, StoreError
from sampan.kube.store import sqlite as sqlite_driver
from sampan.kube.store.sqlite import FORMAT, SqliteLog

ROWS = [
    Record(2, "/a", 2, 0, b"1"),
    Record(3, "/b", 3, 0, b"2"),
    Record(5, "/a", 2, 2, b"3"),
    Record(6, "/b", 3, 3, None),
    Record(9, "/a", 2, 5, b"4"),
]


@pytest.fixture(params=["memory", "sqlite"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], MemoryLog | SqliteLog]:
    if request.param == "sqlite":
        return lambda: SqliteLog(tmp_path / "log.db")
    kept = MemoryLog(keep=True)
    return lambda: kept


def test_rows_come_back_in_order_after_reopening(driver: Callable[[], MemoryLog | SqliteLog]) -> None:
    log = driver()
    log.open()
    assert (list(log.replay()), log.bounds()) == ([], (0, 0))
    log.append(ROWS[:2])
    log.append(ROWS[2:])
    log.close()
    log = driver()
    log.open()
    assert (list(log.replay()), log.bounds()) == (ROWS, (0, 9))
    log.close()


@pytest.mark.parametrize(
    ("target", "left"), [(2, ROWS), (4, ROWS), (5, ROWS[1:]), (6, [ROWS[2], ROWS[4]]), (9, ROWS[4:])]
)
def test_compaction_forgets_only_what_no_later_reader_sees(
    driver: Callable[[], MemoryLog | SqliteLog], target: int, left: list[Record]
) -> None:
    log = driver()
    log.open()
    log.append(ROWS)
    while log.compact(target):
        pass
    assert (list(log.replay()), log.bounds()) == (left, (target, 9))
    log.close()


def test_the_last_revision_survives_when_its_row_is_compacted(driver: Callable[[], MemoryLog | SqliteLog]) -> None:
    log = driver()
    log.open()
    log.append([*ROWS[:2], Record(4, "/b", 3, 3, None)])
    while log.compact(4):
        pass
    assert log.bounds() == (4, 4)
    log.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40), target=st.integers(0, 45))
def test_sqlite_compacts_like_the_memory_log(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, bool]], target: int
) -> None:
    memory, sqlite = MemoryLog(keep=True), SqliteLog(tmp_path_factory.mktemp("log") / "log.db")
    newest: dict[str, Record] = {}
    sqlite.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_driver, "COMPACT_STEP", 3)
        for revision, (key, delete) in enumerate(changes, start=2):
            before = newest.pop(key, None)
            if delete and before is None:
                continue
            created = before.created if before else revision
            record = Record(
                revision, key, created, before.revision if before else 0, None if delete else b"%d" % revision
            )
            if not delete:
                newest[key] = record
            memory.append([record])
            sqlite.append([record])
        target = min(target, memory.bounds()[1])
        memory.compact(target)
        while sqlite.compact(target):
            pass
        assert list(sqlite.replay()) == list(memory.replay())
        assert sqlite.bounds() == memory.bounds()
    sqlite.close()


def test_a_newer_format_is_refused_naming_both(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog(path)
    log.open()
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    connection.close()
    with pytest.raises(DataDirectoryError, match=rf"format {FORMAT + 1}.*up to {FORMAT}"):
        SqliteLog(path).open()


def test_what_is_not_a_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, database = tmp_path / "text", tmp_path / "other.db"
    text.write_bytes(b"precious" * 1000)
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(DataDirectoryError, match="not an object log"):
            SqliteLog(path).open()
        assert path.read_bytes() == before
    with pytest.raises(DataDirectoryError, match="cannot open"):
        SqliteLog(tmp_path / "absent" / "log.db").open()


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    log.open()
    log.append(ROWS)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    log.close()


def test_a_power_cut_while_a_log_is_founded_leaves_whole_commits_in_order(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    log.open()
    log.relax()
    rows = [Record(revision, f"/{revision}", revision, 0, b"x" * 3_000) for revision in range(2, 30)]
    for row in rows:
        log.append([row])
    main, wal = (tmp_path / "log.db").read_bytes(), (tmp_path / "log.db-wal").read_bytes()
    counts = []
    for cut in range(0, len(wal) + 1, len(wal) // 40):
        left = tmp_path / f"cut{cut}.db"
        left.write_bytes(main)
        # what was on its way to the disk when the power went: half of it, and then whatever was there before
        left.with_name(left.name + "-wal").write_bytes(wal[:cut] + b"\xff" * (len(wal) - cut))
        again = SqliteLog(left)
        again.open()
        kept = list(again.replay())
        assert kept == rows[: len(kept)]
        counts.append(len(kept))
        again.append([Record(100, "/after", 100, 0, b"y")])
        again.close()
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 20
    log.flush(strict=True)
    log.append([Record(200, "/last", 200, 0, b"z")])
    log.close()


def test_a_log_that_is_closed_before_it_was_founded_is_flushed_all_the_same(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    log.open()
    log.relax()
    log.append(ROWS)
    statements: list[str] = []
    log._db.set_trace_callback(statements.append)
    log.close()  # which moves everything from the WAL to the database
    assert statements == ["PRAGMA synchronous=FULL"]
    assert not (tmp_path / "log.db-wal").exists()


def test_a_revision_already_in_the_log_fails_the_whole_batch(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    log.open()
    log.append(ROWS[:2])
    with pytest.raises(StoreError):
        log.append([Record(7, "/c", 7, 0, b"x"), ROWS[1]])
    assert list(log.replay()) == ROWS[:2]
    log.append(ROWS[2:])
    assert list(log.replay()) == ROWS
    log.close()


def test_checkpoints_keep_the_wal_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_driver, "CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(sqlite_driver, "WAL_LIMIT", 500_000)
    log = SqliteLog(tmp_path / "log.db")
    log.open()
    wal, sizes = tmp_path / "log.db-wal", [0]
    for revision in range(2, 5_000):
        log.append([Record(revision, f"/{revision}", revision, 0, b"x" * 10_000)])
        sizes.append(wal.stat().st_size)
        if sizes[-1] < sizes[-2]:
            break
    else:
        pytest.fail("the WAL only grew")
    log.close()
    assert not (tmp_path / "log.db-wal").exists()


async def test_a_store_over_sqlite_resumes_where_it_stopped(tmp_path: Path) -> None:
    store = Store(SqliteLog(tmp_path / "log.db"), Clock())
    await store.open()
    for number in range(50):
        await store.put(f"/registry/core/pods/default/{number % 7}", lambda revision: encode({"n": 1}, revision), None)
    await store.delete("/registry/core/pods/default/3", None)
    before = store.range("/"), await store.watch("/", 1).batch(), store.revision
    await store.close()
    again = Store(SqliteLog(tmp_path / "log.db"), Clock())
    await again.open()
    assert (again.range("/"), await again.watch("/", 1).batch(), again.revision) == before
    await again.close()
