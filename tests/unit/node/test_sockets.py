"""What the keeper does with a call that its filter has stopped; the kernel's part is played."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sampan.parts.node.runtime import notification
from sampan.parts.node.runtime.keeper import sockets
from sampan.parts.node.runtime.notification import Notice
from sampan.parts.node.runtime.placing import PodPlaces

ADDRESS = struct.pack("=H", socket.AF_INET) + struct.pack(">H", 8080) + bytes([127, 0, 0, 1]) + bytes(8)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int | None]]:
    """Has one call with the descriptor decided on; what it was answered."""

    def decide(descriptor: int) -> list[int | None]:
        notice = Notice(1, os.getpid(), notification.CONNECT, descriptor, 0, len(ADDRESS))
        answers: list[int | None] = []
        monkeypatch.setattr(notification, "receive", lambda listener: notice)
        monkeypatch.setattr(notification, "read_address", lambda notice: ADDRESS)
        monkeypatch.setattr(notification, "take_socket", lambda notice: os.dup(notice.descriptor))
        monkeypatch.setattr(notification, "waits", lambda listener, notice: True)
        monkeypatch.setattr(notification, "answer", lambda listener, notice, error: answers.append(error))
        sockets.decide(PodPlaces("127.64.1.2"), -1, lambda *_: False)
        return answers

    return decide


def descriptors(name: str) -> list[str]:
    """The descriptors of this process that lead to a file or socket."""
    found = []
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself, which is closed by now
            if str(one.readlink()) == name:
                found.append(one.name)
    return found


def test_connecting_what_is_no_socket_leaves_no_descriptor_behind(
    stopped: Callable[[int], list[int | None]], tmp_path: Path
) -> None:
    path = tmp_path.resolve() / "file"
    with path.open("w") as file:
        for _ in range(3):
            assert stopped(file.fileno()) == [None]  # the kernel says what is wrong
        assert descriptors(str(path)) == [str(file.fileno())]


def test_a_socket_is_let_go_after_the_answer(stopped: Callable[[int], list[int | None]]) -> None:
    with socket.socket() as one:
        assert stopped(one.fileno()) == [None]
        name = str(Path(f"/proc/self/fd/{one.fileno()}").readlink())
        assert descriptors(name) == [str(one.fileno())]


def test_connects_of_killed_callers_are_let_go_and_those_of_others_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "CONNECTING", 3)
    with selectors.DefaultSelector() as selector, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        held = sockets.Sockets(selector)
        full = [socket.create_connection(server.getsockname())]  # nobody accepts: further ones wait
        waiting: set[int] = set()

        def connect(number: int) -> bool:
            one = socket.socket()
            one.setblocking(False)
            full.append(one)
            with contextlib.suppress(BlockingIOError):
                one.connect(server.getsockname())
            waiting.add(number)
            return held._later(one, lambda: None, lambda: number in waiting)

        assert [connect(number) for number in range(5)] == [True, True, True, False, False]
        waiting -= {0, 1}  # killed
        assert connect(5)
        assert [one.fileno() < 0 for one in full] == [False, True, True, False, False, False, False]
        assert len(selector.get_map()) == 2
        for one in full:
            one.close()
