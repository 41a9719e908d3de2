"""The log in one SQLite file: the default driver.

On disk, format 1 (``PRAGMA user_version``; ``PRAGMA application_id`` is 0x53414D50, "SAMP"):

======================  ============================================================================================
``log``                 one row a change, never updated
``log.revision``        INTEGER PRIMARY KEY: the change's revision; rows are appended at the table's end
``log.key``             TEXT: ``/registry/<group or core>/<plural>/[<namespace>/]<name>``
``log.created``         INTEGER: revision at which the key came to life
``log.previous``        INTEGER: revision of the row that this one supersedes, 0 for a creation
``log.value``           BLOB: canonical JSON (``kube.objects.encode``); NULL: the key was deleted
``state``               named integers; ``compacted``: history up to this revision is gone
======================  ============================================================================================

There is no secondary index: what lives is worked out in memory while the file is read once, so a write touches the last
page of one table only. Rows superseded at or before ``compacted`` and tombstones up to it have been removed, so reading all
rows means reading what lives plus the retained history.

The file is in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns. While a log is founded (`relax`) it is
not: commits then end in the WAL, whose checksums make what a power cut leaves of it a whole number of commits. Checkpoints (copying the WAL into the
main file) run on a thread and connection of their own; readers from outside, such as the ``sqlite3`` shell, are welcome.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sampan.kernel.errors import DataDirectoryError
from sampan.kernel.files import flush
from sampan.kube.store.interface import FullError, Record, StoreError

log = logging.getLogger(__name__)

FORMAT = 1
"""The newest format this version reads, and the one it writes."""
APPLICATION_ID = 0x53414D50
COMPACT_STEP = 500
"""Rows that one compaction step looks at."""
CHECKPOINT_BYTES = 4 << 20
"""Bytes appended to the WAL at which a checkpoint starts."""
WAL_LIMIT = 64 << 20
"""Bytes of WAL, after a checkpoint, at which the next append empties it."""
PAGE_SIZE = 8192
"""Two or three typical objects a page; with 4 KiB pages nearly half of the file would be slack."""
BUSY_MS = 10_000

_SCHEMA = """
CREATE TABLE log (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    created INTEGER NOT NULL,
    previous INTEGER NOT NULL,
    value BLOB
);
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO state VALUES ('compacted', 0);
"""


class SqliteLog:
    """A log in the SQLite file at ``path`` (its ``-wal`` and ``-shm`` files lie beside it)."""

    blocking = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._checkpointer: _Checkpointer | None = None

    def open(self) -> None:
        """Open the file, or create it readable by its owner only.

        Raises:
            DataDirectoryError: it is of a newer format, not a log, or cannot be opened.
            FullError: there is no room to create it.
        """
        try:
            if not self._path.exists():
                self._create()
            os.close(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))
        except sqlite3.Error as error:
            raise _failure(error) from error
        except OSError as error:
            raise DataDirectoryError(f"cannot open the object log {self._path}: {error.strerror}") from error
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
            _configure(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise _failure(error) from error
            raise DataDirectoryError(f"{self._path} is not an object log: {error}") from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._checkpointer = _Checkpointer(self._path)

    def _create(self) -> None:
        """An empty log, made beside its place: one flush instead of the several that SQLite takes in place."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                self._prepare(connection)
            os.fsync(descriptor)
            Path(temporary).rename(self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise DataDirectoryError(f"{self._path} is an SQLite database, but not an object log of Sampan")
        if version > FORMAT:
            raise DataDirectoryError(
                f"{self._path} is of format {version}, but this version of Sampan reads formats up to {FORMAT}: "
                "use the newer version that wrote it, or another data directory"
            )
        if not tables:
            connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode=WAL")
        if not tables:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; COMMIT;"
            )

    def bounds(self) -> tuple[int, int]:
        """(compacted revision, last revision)."""
        with _failures():
            compacted: int = self._db.execute("SELECT value FROM state WHERE name = 'compacted'").fetchone()[0]
            last: int | None = self._db.execute("SELECT max(revision) FROM log").fetchone()[0]
        return compacted, max(compacted, last or 0)

    def replay(self) -> Iterator[Record]:
        """Every kept row in revision order, read as the caller goes."""
        with _failures(), closing(self._db.cursor()) as cursor:
            cursor.execute("SELECT revision, key, created, previous, value FROM log ORDER BY revision")
            while rows := cursor.fetchmany(500):
                yield from map(Record._make, rows)

    def append(self, records: list[Record]) -> None:
        """Insert a batch in one durable transaction."""
        with self._transaction() as db:
            db.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?)", records)
        assert self._checkpointer is not None
        if self._checkpointer.written(sum(len(record.value or b"") + 256 for record in records)):
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                log.warning("emptying the WAL of %s failed and will be tried again: %s", self._path, error)

    def relax(self) -> None:
        """Let commits end in the WAL without waiting for the disk."""
        self._db.execute("PRAGMA synchronous=OFF")

    def flush(self, *, strict: bool) -> None:
        """Flush the WAL and the folder that names it; ``strict``: commits do so themselves from now on."""
        with _failures():
            if strict:
                self._db.execute("PRAGMA synchronous=FULL")
            try:
                # Not the database itself: closing a descriptor of it would drop the locks that SQLite holds there. It was
                # flushed when it was made, and checkpoints flush it.
                flush(self._path.with_name(self._path.name + "-wal"))
            except FileNotFoundError:
                return  # nothing was written
            except OSError as error:
                raise StoreError(f"the object log cannot be flushed: {error.strerror}") from error

    def compact(self, revision: int) -> bool:
        """Forget up to ``revision``, a few hundred rows a step; True while more remain."""
        with self._transaction() as db:
            done: int = db.execute("SELECT value FROM state WHERE name = 'compacted'").fetchone()[0]
            step: int | None = db.execute(
                "SELECT max(revision) FROM (SELECT revision FROM log WHERE revision > ? AND revision <= ? "
                "ORDER BY revision LIMIT ?)",
                (done, revision, COMPACT_STEP),
            ).fetchone()[0]
            end = revision if step is None else step
            db.execute(
                "DELETE FROM log WHERE revision IN "
                "(SELECT previous FROM log WHERE revision > ? AND revision <= ? AND previous > 0)",
                (done, end),
            )
            # A tombstone may not be the newest row: its revision would be given out again after a restart; it is kept
            # in mind by `bounds`, which counts the compacted revision as well.
            db.execute("DELETE FROM log WHERE revision > ? AND revision <= ? AND value IS NULL", (done, end))
            db.execute("UPDATE state SET value = max(value, ?) WHERE name = 'compacted'", (end,))
        return end < revision

    def close(self) -> None:
        """Checkpoint and close; idempotent."""
        if self._checkpointer is not None:
            self._checkpointer.stop()
            self._checkpointer = None
        if self._connection is not None:
            # closing checkpoints: what ends in the database and no longer in the WAL must be there, also of one never founded
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"the object log {self._path} is not open")
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        with _failures():
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")


class _Checkpointer:
    """Copies the WAL into the main file on a thread of its own, whenever enough was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._bytes = 0
        self._overgrown = False
        self._wanted = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def written(self, size: int) -> bool:
        """Note that ``size`` bytes were appended; True: the caller should empty the WAL, most of which is copied."""
        overgrown, self._overgrown = self._overgrown, False
        self._bytes += size
        if self._bytes < CHECKPOINT_BYTES:
            return overgrown
        self._bytes = 0
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="store-checkpoint", daemon=True)
            self._thread.start()
        self._wanted.set()
        return overgrown

    def stop(self) -> None:
        """End the thread after the checkpoint under way."""
        if self._thread is not None:
            self._stopped = True
            self._wanted.set()
            self._thread.join()

    def _run(self) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            _configure(connection)
            while self._wanted.wait() and not self._stopped:
                self._wanted.clear()
                try:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    # Under unceasing writes a passive checkpoint never sees the WAL's end, and this thread would hardly
                    # ever win the write lock. So the appending thread is asked to copy the little that is left.
                    self._overgrown = self._wal.stat().st_size > WAL_LIMIT
                except (sqlite3.Error, OSError) as error:
                    # Nothing is lost: the WAL holds everything until a later checkpoint succeeds.
                    log.warning("checkpointing %s failed and will be tried again: %s", self._path, error)


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=-512")  # KiB: it is written at its end, and read from its beginning


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _failure(error) from error


def _failure(error: sqlite3.Error) -> StoreError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return FullError("the disk that holds the object log is full; writes are refused until there is room")
    return StoreError(f"the object log failed: {error}")
