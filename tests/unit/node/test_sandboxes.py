"""Sandboxes that cannot be made leave nothing behind."""

from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.parts.node.runtime import links
from sampan.parts.node.runtime.cgroups import Cgroups
from sampan.parts.node.runtime.interface import Sandbox, SandboxSpec
from sampan.parts.node.runtime.keeper.blanks import Blank, Blanks
from sampan.parts.node.runtime.keeper.inheritance import end_leftovers
from sampan.parts.node.runtime.keeper.processes import process_start
from sampan.parts.node.runtime.keeper.sandboxes import Sandboxes
from sampan.parts.node.runtime.layout import Layout


class Addresses:
    """Stands for the eBPF programs' table of pods."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def leave_alone(self, cgroup: Path) -> None:
        self.held.add(cgroup.name)

    def remove(self, cgroup: Path) -> None:
        self.held.discard(cgroup.name)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_sandbox_that_cannot_be_connected_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    addresses = Addresses() if grouped else None
    ground = SimpleNamespace(
        isolation="root",
        tier="T1n",
        addresses=addresses,
        links=True,
        cgroups=Cgroups(group if grouped else None, frozenset(), {}),
    )
    owners: dict[int, tuple[str, str]] = {}
    keeper: Any = SimpleNamespace(
        ground=ground, privileged=True, layout=Layout(tmp_path), clock=Clock(), pod_range="10.244.9.0/24", owners=owners
    )
    sandboxes = Sandboxes(keeper)
    first = subprocess.Popen(["sleep", "1000"])

    def fork(spec: SandboxSpec, sandbox: Sandbox, own_net: bool) -> None:
        sandbox.pid = first.pid
        owners[first.pid] = ("sandbox", spec.id)

    def refuse(*_: object) -> None:
        raise OSError("no such setting")

    monkeypatch.setattr(sandboxes, "_fork_sandbox", fork)
    monkeypatch.setattr(links, "connect", refuse)
    try:
        with pytest.raises(OSError, match="no such setting"):
            sandboxes.create({"spec": asdict(SandboxSpec("a", "a", "ns", "a", network="namespace"))}, lambda _: None)
        assert first.wait(30) == -9
    finally:
        first.kill()
    assert not owners
    assert not sandboxes.held
    assert addresses is None or not addresses.held


def test_a_process_that_waited_is_no_sandbox_once_its_number_may_be_anothers() -> None:
    ours, theirs = socket.socketpair()
    blanks = Blanks()
    blanks._blank = Blank(4711, ours)
    blanks.reaped(4712)
    assert theirs.send(b"still there")
    blanks.reaped(4711)
    assert blanks.take(0) is None
    with pytest.raises(OSError, match="Broken pipe"):
        theirs.send(b"?")
    theirs.close()


def test_the_first_process_of_a_keeper_that_was_killed_is_ended(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    left, other = (subprocess.Popen(["sleep", "1000"]) for _ in range(2))
    try:
        for uid, pid, start in (
            ("left", left.pid, process_start(left.pid)),
            ("reused", other.pid, process_start(other.pid) - 1),
            ("none", 0, 0),
        ):
            layout.pod(uid).mkdir(parents=True)
            layout.sandbox(uid).write_text(json.dumps({"sandbox": {"pid": pid}, "start": start}))
        layout.pod("damaged").mkdir()
        layout.sandbox("damaged").write_text("{")
        end_leftovers(layout, Cgroups(None, frozenset(), {}), Clock())
        assert left.wait(30) == -9
        assert other.poll() is None
        assert not list(tmp_path.glob("pods/*/sandbox.json"))
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
