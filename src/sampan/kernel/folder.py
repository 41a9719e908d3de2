"""The data directory: one platform's whole state, held by one process at a time.

::

    format        the layout's version: "sampan 1"
    lock          locked by the running platform (flock), with its process id for people
    sampan.yaml   settings, if the user wrote some
    clock.json    the platform's timeline (``kernel.steering``)
    ports.json    where each listener stood, so that --ports auto chooses the same again
    kubeconfig    how clients reach the Kubernetes API
    pki/          the certificate authority and what it issued
    logs/         one JSON-lines file a process
    run/          what runs now: admin.sock and state.json
    parts/<name>/ each part's own files

A layout of a newer version is refused, never guessed at. The lock goes with the process that holds it, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import msgspec

from sampan.kernel.errors import DataDirectoryError
from sampan.kernel.files import flush, private_folder, write_atomic

FORMAT = 1
SOCKET_FOLDER_LIMIT = 72
"""Bytes in the path of a folder for sockets, so that their own names fit behind it."""


class RunState(msgspec.Struct, kw_only=True):
    """``run/state.json``: what the last platform here was, written at start and when an address is bound."""

    pid: int
    version: str
    started: float
    """Machine time, seconds since the epoch."""
    ready: bool = False
    addresses: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class DataDirectory:
    """Paths of a data directory, and its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._made = False

    @property
    def settings(self) -> Path:
        return self.path / "sampan.yaml"

    @property
    def clock(self) -> Path:
        return self.path / "clock.json"

    @property
    def kubeconfig(self) -> Path:
        return self.path / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.path / "pki"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def sockets(self) -> Path:
        """A folder for Unix sockets, whose paths may hold some hundred bytes only: ``run``, or one with a short path."""
        if len(os.fsencode(self.run)) <= SOCKET_FOLDER_LIMIT:
            return self.run
        return Path(tempfile.gettempdir()) / f"sampan-{os.geteuid()}-{zlib.crc32(os.fsencode(self.path)):08x}"

    def part(self, name: str) -> Path:
        """A part's own folder."""
        return self.path / "parts" / name

    def open(self) -> None:
        """Make the directory on first use, take its lock and check its format.

        Raises:
            DataDirectoryError: it is in use, of a newer format, not ours, or not writable.
        """
        try:
            private_folder(self.path)
            self._take_lock()
            self._check_format()
            for folder in (self.logs, self.run, self.path / "parts", self.sockets):
                private_folder(folder)
            if self.sockets.stat().st_uid != os.geteuid():
                raise DataDirectoryError(
                    f"{self.sockets} belongs to another user; choose a --data-dir with a shorter path"
                )
        except OSError as error:
            self.close()
            raise DataDirectoryError(
                f"the data directory {self.path} cannot be used: {error.strerror}; choose another with --data-dir"
            ) from error
        except DataDirectoryError:
            self.close()
            raise

    def settle(self) -> None:
        """Flush a format file that was made by `open` to the disk.

        Raises:
            OSError: the disk failed.
        """
        if self._made:
            flush(self.path / "format")
            self._made = False

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            if self.sockets != self.run:
                shutil.rmtree(self.sockets, ignore_errors=True)
            for place in self.run.glob("*.sock") if self.run.is_dir() else ():
                place.unlink(missing_ok=True)  # what nobody listens on any more
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """The process that holds the lock, or None when nobody does."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return int(os.read(descriptor, 32) or 0)
        finally:
            os.close(descriptor)
        return None

    def read_state(self) -> RunState | None:
        """What the last platform here wrote, or None."""
        try:
            return msgspec.json.decode((self.run / "state.json").read_bytes(), type=RunState)
        except (OSError, msgspec.MsgspecError):
            return None

    def read_ports(self) -> dict[str, tuple[str, int]]:
        """Where listeners stood when a platform here was last ready."""
        try:
            return msgspec.json.decode((self.path / "ports.json").read_bytes(), type=dict[str, tuple[str, int]])
        except (OSError, msgspec.MsgspecError):
            return {}

    def write_ports(self, addresses: dict[str, tuple[str, int]]) -> None:
        """Remember where the listeners stand, for the next platform here."""
        write_atomic(self.path / "ports.json", msgspec.json.encode(addresses), durable=False)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def write_state(self, state: RunState) -> None:
        """Say what runs here; not flushed to the disk, for a crashed platform does not run."""
        write_atomic(self.run / "state.json", msgspec.json.encode(state), mode=0o600, durable=False)

    def _take_lock(self) -> None:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 32).decode().strip() or "unknown"
            os.close(lock)
            raise DataDirectoryError(
                f"another platform (process {pid}) is running on {self.path}; "
                "stop it with `sampan down`, or start this one with another --data-dir and --ports auto"
            ) from None
        self._lock = lock
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())

    def _check_format(self) -> None:
        file = self.path / "format"
        if not file.exists() or not file.stat().st_size:  # empty: what a power cut leaves of one that was not flushed
            write_atomic(file, f"sampan {FORMAT}\n", durable=False)
            self._made = True
            return
        name, _, version = file.read_text(errors="replace").strip().partition(" ")
        if name != "sampan" or not version.isdecimal():
            raise DataDirectoryError(f"{file} is not Sampan's; choose another directory with --data-dir")
        if int(version) > FORMAT:
            raise DataDirectoryError(
                f"the data directory {self.path} has format {version}, this Sampan knows {FORMAT}; "
                "use the newer Sampan that wrote it, or choose another directory with --data-dir"
            )
