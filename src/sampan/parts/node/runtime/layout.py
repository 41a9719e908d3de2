"""Where the node keeps things on disk::

    <node>/keeper.sock                       the keeper's socket
    <node>/keeper.pid                        its pid and start time; locked while it lives
    <node>/skeleton/                         the empty top of every container's root
    <node>/pods/<uid>/sandbox.json           the sandbox: spec, address, pid and start time of its first process
    <node>/pods/<uid>/volumes/<name>/        volumes the agent fills
    <node>/pods/<uid>/memory/<name>/         mount points of tmpfs volumes, /dev and /dev/shm (seen mounted in the sandbox only)
    <node>/pods/<uid>/logs/<container>/<attempt>.log[.<n>]
    <node>/pods/<uid>/containers/<id>/spec.json      the container's spec, written before it starts
    <node>/pods/<uid>/containers/<id>/started.json   pid and start time
    <node>/pods/<uid>/containers/<id>/exit.json      its exit record, written before anybody is told
    <node>/pods/<uid>/containers/<id>/{upper,work,root}  the writable layer and the mount point of its root

Files are replaced atomically by rename. They outlive the processes, not the machine: nothing here is fsynced, because after
a power cut no container is left to speak of.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from sampan.parts.node.runtime.interface import ExitRecord


class Layout:
    """Paths below one node directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.socket = base / "keeper.sock"
        self.pid = base / "keeper.pid"
        self.pods = base / "pods"
        self.skeleton = base / "skeleton"

    def pod(self, uid: str) -> Path:
        return self.pods / uid

    def sandbox(self, uid: str) -> Path:
        return self.pods / uid / "sandbox.json"

    def volume(self, uid: str, name: str) -> Path:
        return self.pods / uid / "volumes" / name

    def memory(self, uid: str, name: str) -> Path:
        return self.pods / uid / "memory" / name

    def log(self, uid: str, container: str, attempt: int) -> Path:
        return self.pods / uid / "logs" / container / f"{attempt}.log"

    def container(self, uid: str, container: str) -> Path:
        return self.pods / uid / "containers" / container


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader sees the old or the new content, whoever is killed when. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def record_exit(directory: Path, record: ExitRecord) -> None:
    """Write down how a container ended, unless its directory is gone. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        write_atomically(directory / "exit.json", json.dumps(asdict(record)).encode())
