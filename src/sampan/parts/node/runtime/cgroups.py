"""Control groups wherever the machine keeps them: version 1 mounts, version 2, or both at once.

Each controller is looked up on its own (`Cgroups.find`): hybrid hosts have v1 controllers beside an empty v2 tree, and both
are used together, v2 for membership, kill and eBPF, v1 for limits. Every group of a node lies under one directory a tree::

    <tree>/sampan-<node>/<pod uid>/<container id>

so that what a dead agent left behind is found and ended by its path alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from sampan.parts.node.runtime.interface import Limits, Usage

_WANTED = ("memory", "pids", "cpu", "cpuacct", "freezer")
PERIOD = 100_000
"""Microseconds of a cpu quota's period."""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else 0


def _stat(path: Path) -> dict[str, int]:
    fields = {}
    for line in _read(path).splitlines():
        name, _, value = line.rpartition(" ")
        if value.isdecimal():
            fields[name] = int(value)
    return fields


class Cgroups:
    """The trees of one node. ``unified`` is its directory in the v2 tree (or None), ``v1`` those of v1 controllers."""

    def __init__(self, unified: Path | None, controllers: frozenset[str], v1: dict[str, Path]) -> None:
        self.unified = unified
        self.controllers = controllers
        """Controllers of the v2 tree that our directory may use."""
        self.v1 = v1

    @staticmethod
    def find(name: str) -> Cgroups:
        """The trees where this process may make a directory ``sampan-<name>``; makes them."""
        own = {}
        for line in _read(Path("/proc/self/cgroup")).splitlines():
            _, subsystems, path = line.split(":", 2)
            for subsystem in subsystems.split(","):
                own[subsystem] = path
        unified: Path | None = None
        controllers: frozenset[str] = frozenset()
        v1: dict[str, Path] = {}
        for line in _read(Path("/proc/self/mounts")).splitlines():
            _, place, kind, options = line.split(" ")[:4]
            mount = Path(place)
            if kind == "cgroup2" and unified is None and (made := _make(mount / f"sampan-{name}")):
                unified = made
                controllers = _delegate(mount, made)
            elif kind == "cgroup":
                for controller in _WANTED:
                    if controller in options.split(",") and controller not in v1:
                        inside = mount / own.get(controller, "/").lstrip("/")
                        base = inside if inside.is_dir() else mount
                        if made := _make(base / f"sampan-{name}"):
                            v1[controller] = made
        return Cgroups(unified, controllers, {name: v1[name] for name in v1 if name not in controllers})

    @property
    def has(self) -> frozenset[str]:
        """All controllers in reach."""
        return self.controllers | frozenset(self.v1)

    def _trees(self) -> Iterator[Path]:
        if self.unified is not None:
            yield self.unified
        yield from dict.fromkeys(self.v1.values())

    def create(self, pod: str, container: str = "", limits: Limits | None = None) -> None:
        """Make the groups of a pod or container and set its limits where a controller can. Raises OSError."""
        for tree in self._trees():
            (tree / pod).mkdir(exist_ok=True)
            if self.unified is tree and self.controllers:
                _enable(tree / pod, self.controllers)
            if container:
                (tree / pod / container).mkdir(exist_ok=True)
        if limits is not None:
            self.limit(pod, container, limits)

    def limit(self, pod: str, container: str, limits: Limits) -> None:
        """Set limits on a group. Raises OSError."""
        if limits.memory:
            if memory := self.v1.get("memory"):
                self._write(memory / pod / container / "memory.limit_in_bytes", str(limits.memory))
            elif self.unified is not None and "memory" in self.controllers:
                group = self.unified / pod / container
                self._write(group / "memory.max", str(limits.memory))
                # as the kubelet does by default: the whole container dies together
                self._write(group / "memory.oom.group", "1")
        if limits.pids:
            base = self.v1.get("pids") or (self.unified if "pids" in self.controllers else None)
            if base is not None:
                self._write(base / pod / container / "pids.max", str(limits.pids))
        if limits.cpu:
            quota = max(1000, int(limits.cpu * PERIOD))
            if cpu := self.v1.get("cpu"):
                self._write(cpu / pod / container / "cpu.cfs_quota_us", str(quota))
            elif self.unified is not None and "cpu" in self.controllers:
                self._write(self.unified / pod / container / "cpu.max", f"{quota} {PERIOD}")
        shares = max(2, int(limits.cpu_request * 1024))
        if cpu := self.v1.get("cpu"):
            self._write(cpu / pod / container / "cpu.shares", str(shares))
        elif self.unified is not None and "cpu" in self.controllers:
            weight = 1 + (min(shares, 262144) - 2) * 9999 // 262142
            self._write(self.unified / pod / container / "cpu.weight", str(weight))

    def members(self, pod: str, container: str) -> list[str]:
        """The ``cgroup.procs`` files a process writes 0 to in order to join."""
        return [str(tree / pod / container / "cgroup.procs") for tree in self._trees()]

    def processes(self, pod: str, container: str = "") -> list[int]:
        """Pids in a group and below it."""
        pids: set[int] = set()
        for tree in self._trees():
            group = tree / pod / container
            for directory in [group, *(entry for entry in _entries(group) if entry.is_dir())]:
                pids.update(int(pid) for pid in _read(directory / "cgroup.procs").split() if pid.isdecimal())
            if self.unified is tree:
                break  # membership in v2 is complete
        return sorted(pid for pid in pids if pid != 0)

    def kill(self, pod: str, container: str = "") -> None:
        """SIGKILL every process of a group and below."""
        if self.unified is not None:
            try:
                (self.unified / pod / container / "cgroup.kill").write_text("1")
                return
            except OSError:
                pass  # an older kernel, or the group is gone: fall through to signals
        for _ in range(20):
            pids = self.processes(pod, container)
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def remove(self, pod: str, container: str = "") -> bool:
        """Remove empty groups; False while something is still in them."""
        gone = True
        for tree in self._trees():
            group = tree / pod / container
            for directory in [*(entry for entry in _entries(group) if entry.is_dir()), group]:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    gone = False
        return gone

    def pods(self) -> list[str]:
        """Pods that have a group."""
        return sorted({entry.name for tree in self._trees() for entry in _entries(tree) if entry.is_dir()})

    def destroy(self) -> None:
        """End every process of the node and remove its directories, as far as they empty out."""
        for pod in self.pods():
            self.kill(pod)
            self.remove(pod)
        for tree in self._trees():
            try:
                tree.rmdir()
            except OSError:
                continue

    def oom_kills(self, pod: str, container: str) -> int:
        """How many processes of the group the kernel killed for memory."""
        if memory := self.v1.get("memory"):
            return _stat(memory / pod / container / "memory.oom_control").get("oom_kill", 0)
        if self.unified is not None:
            return _stat(self.unified / pod / container / "memory.events").get("oom_kill", 0)
        return 0

    def usage(self, pod: str, container: str = "") -> Usage:
        """What a group uses, zeros where no controller tells."""
        cpu = memory = rss = 0
        if group := self.v1.get("cpuacct"):
            cpu = _number(group / pod / container / "cpuacct.usage")
        elif self.unified is not None:
            cpu = _stat(self.unified / pod / container / "cpu.stat").get("usage_usec", 0) * 1000
        if group := self.v1.get("memory"):
            stat = _stat(group / pod / container / "memory.stat")
            used = _number(group / pod / container / "memory.usage_in_bytes")
            memory = max(0, used - stat.get("total_inactive_file", 0))
            rss = stat.get("total_rss", 0)
        elif self.unified is not None and "memory" in self.controllers:
            stat = _stat(self.unified / pod / container / "memory.stat")
            memory = max(0, _number(self.unified / pod / container / "memory.current") - stat.get("inactive_file", 0))
            rss = stat.get("anon", 0)
        return Usage(cpu, memory, rss, len(self.processes(pod, container)))

    def _write(self, path: Path, value: str) -> None:
        path.write_text(value)


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _make(path: Path) -> Path | None:
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        return None
    return path if os.access(path / "cgroup.procs", os.W_OK) else None


def _enable(group: Path, controllers: frozenset[str]) -> frozenset[str]:
    """Hand controllers down to a group's children, each by itself; returns those that worked."""
    enabled = set()
    for controller in controllers:
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
            enabled.add(controller)
        except OSError:
            continue  # not ours to hand down: limits of this kind are not enforced
    return frozenset(enabled)


def _delegate(mount: Path, node: Path) -> frozenset[str]:
    _enable(mount, frozenset(_read(mount / "cgroup.controllers").split()) & frozenset(_WANTED))
    available = frozenset(_read(node / "cgroup.controllers").split()) & frozenset(_WANTED)
    return _enable(node, available)
