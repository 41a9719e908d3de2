"""A disk that fills up: writes are refused with `FullError`, reads go on, and writing resumes when there is room."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from sampan.kernel.clock import Clock
from sampan.kube.objects import encode
from sampan.kube.store import FullError, MemoryLog, Record, Store, StoreError
from sampan.kube.store.sqlite import SqliteLog

KEY = "/registry/core/configmaps/default/"


class SmallDisk(SqliteLog):
    """SQLite's own limit on the file stands for the disk's."""

    def room(self, pages: int) -> None:
        self._db.execute(f"PRAGMA max_page_count={pages}")


async def test_writes_fail_while_the_disk_is_full_and_resume_when_there_is_room(tmp_path: Path) -> None:
    log = SmallDisk(tmp_path / "log.db")
    store = Store(log, Clock())
    await store.open()
    log.room(30)
    written = []
    with pytest.raises(FullError):
        for number in range(1000):
            written.append(
                await store.put(f"{KEY}{number}", lambda revision: encode({"data": "x" * 4000}, revision), 0)
            )
    full = store.revision
    assert len(written) > 10 and written[-1].revision == full
    results = await asyncio.gather(
        *(store.put(f"{KEY}more{n}", lambda revision: encode({"data": "x" * 9000}, revision), 0) for n in range(20)),
        return_exceptions=True,
    )
    assert {type(result) for result in results} == {FullError}
    assert store.range(KEY) == sorted(written) and store.revision == full
    log.room(100_000)
    entry = await store.put(f"{KEY}after", lambda revision: encode({"data": "y" * 9000}, revision), 0)
    assert entry.revision > full
    await store.close()
    again = Store(SqliteLog(tmp_path / "log.db"), Clock())
    await again.open()
    assert again.range(KEY) == sorted([*written, entry])
    await again.close()


FILLER = """
import asyncio, resource, sys
from pathlib import Path
from sampan.kernel.clock import Clock
from sampan.kube.objects import encode
from sampan.kube.store import Store, StoreError
from sampan.kube.store.sqlite import SqliteLog

async def main():
    path = Path(sys.argv[1])
    store = Store(SqliteLog(path), Clock())
    await store.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    value = lambda revision: encode({"data": "x" * 20_000}, revision)
    written = 0
    try:
        while written < 1000:
            await store.put(f"/registry/core/configmaps/default/{written:04}", value, 0)
            written += 1
    except StoreError:
        pass
    assert len(store.range("/")) == written
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.put("/registry/core/configmaps/default/after", value, 0)
    await store.close()
    print(written)

asyncio.run(main())
"""


async def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    written = int(done.stdout)
    assert 10 < written < 1000
    store = Store(SqliteLog(path), Clock())
    await store.open()
    assert store.count(KEY) == written + 1
    await store.close()


class FailingLog(MemoryLog):
    """A log whose device fails now and then."""

    blocking = True
    broken = False

    def append(self, records: list[Record]) -> None:
        if self.broken:
            raise OSError(5, "Input/output error")
        super().append(records)


async def test_a_device_error_is_a_store_error_and_passes() -> None:
    log = FailingLog(keep=True)
    store = Store(log, Clock())
    await store.open()
    first = await store.put(f"{KEY}a", lambda revision: encode({}, revision), 0)
    log.broken = True
    with pytest.raises(StoreError, match="Input/output error"):
        await store.put(f"{KEY}a", lambda revision: encode({}, revision), first.revision)
    assert store.get(f"{KEY}a") == first
    log.broken = False
    second = await store.put(f"{KEY}a", lambda revision: encode({}, revision), first.revision)
    assert second.revision > first.revision
    await store.close()
