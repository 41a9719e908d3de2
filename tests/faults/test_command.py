"""The command on real processes: what it says and how it ends when things are wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sampan.cli import status as status_command
from sampan.kernel import detached
from sampan.kernel.errors import PortTakenError
from sampan.kernel.folder import DataDirectory
from sampan.kernel.listeners import ListenerBook

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / ("a-folder-whose-name-makes-the-path-of-its-socket-longer-than-a-unix-socket-may-be" * 2)


@pytest.fixture
def sampan(data: Path) -> Iterator[Command]:
    """Runs a command on the data directory; whatever still runs there afterwards is stopped."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SAMPAN_DATA_DIR": str(data), "SAMPAN_PLATFORM_PORTS": "auto"}
        command = [sys.executable, "-m", "sampan", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)

    yield run
    holder = DataDirectory(data).holder()
    if holder:
        psutil.Process(holder).kill()
    detached.end_all(DataDirectory(data).run)


def kubectl(data: Path, *arguments: str) -> str:
    command: list[str | Path] = [
        Path(sysconfig.get_path("scripts")) / "kubectl",
        "--kubeconfig",
        data / "kubeconfig",
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def status(sampan: Command) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(sampan("status", "--json").stdout)
    return parsed


def is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
        return True


def test_up_steer_crash_up_down(sampan: Command, data: Path) -> None:
    up = sampan("up", "--detach")
    assert up.returncode == 0, up.stderr
    first = status(sampan)
    assert first["state"] == "ready"

    again = sampan("up")
    assert again.returncode == 1
    assert f"another platform (process {first['pid']}) is running" in again.stderr
    assert "Traceback" not in again.stderr

    assert "+259200" in sampan("clock", "jump", "3d").stdout
    kubectl(data, "create", "namespace", "kept")
    os.kill(first["pid"], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first["pid"])] if psutil.pid_exists(first["pid"]) else [], timeout=30)
    crashed = sampan("status")
    assert crashed.returncode == 3
    assert "ended without being stopped" in crashed.stdout

    assert sampan("up", "--detach").returncode == 0
    second = status(sampan)
    assert second["clock"]["ahead_seconds"] == pytest.approx(259200, abs=5)
    before, after = first["addresses"], second["addresses"]
    # a program that took a port while nobody had it may keep it
    assert not [name for name in before if after[name] != before[name] and is_free(before[name])]
    assert kubectl(data, "get", "namespace", "kept", "-o", "name") == "namespace/kept\n"
    down = sampan("down")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    stopped = sampan("status")
    assert stopped.returncode == 3
    assert "no platform is running" in stopped.stdout
    assert sampan("down").returncode == 0
    assert sampan("clock").returncode == 3


def test_a_platform_that_hangs_is_called_so_and_ended(
    sampan: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampan("up", "--detach", "--only", "messaging").returncode == 0
    pid = status(sampan)["pid"]
    monkeypatch.setattr(status_command, "PATIENCE", 0.3)
    os.kill(pid, signal.SIGSTOP)
    told = status_command.read(data)
    assert (told["state"], told["pid"]) == ("unresponsive", pid)
    assert "runs but does not answer" in status_command.describe(told)[0]
    down = sampan("down", "--wait", "1")
    assert down.returncode == 0, down.stderr
    assert f"killed process {pid}" in down.stdout
    assert DataDirectory(data).holder() is None


def test_down_ends_the_keeper_that_a_killed_platform_left(sampan: Command, data: Path) -> None:
    assert sampan("up", "--detach", "--only", "node").returncode == 0
    os.kill(status(sampan)["pid"], signal.SIGKILL)
    keeper = detached.living(data / "run", "node-keeper")
    assert keeper is not None
    down = sampan("down")
    assert "node-keeper was left behind" in down.stdout
    assert not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_a_signal_ends_it_in_order(data: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "sampan", "up", "--ports", "auto", "--data-dir", str(data)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    with running.stdout:
        assert running.stdout.readline().startswith("ready; data in")
        running.send_signal(number)
        assert running.wait(60) == 0
    assert DataDirectory(data).holder() is None
    assert DataDirectory(data).read_state() is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["up", "--only", "nothing"], 1, "there is no part named nothing"),
        (["up", "--detach", "--set", "platform.port=auto"], 1, "no setting platform.port; did you mean ports"),
        (["up", "--set", "platform.ready_seconds=soon"], 1, "setting platform.ready_seconds: Expected `float`"),
        (["up", "--ports", "some"], 2, "'some' is not one of"),
        (["kubeconfig"], 1, "there is no kubeconfig"),
        (["logs"], 1, "nothing was logged"),
        (["clock", "jump", "soon"], 2, "soon is not a duration"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(sampan: Command, arguments: list[str], code: int, message: str) -> None:
    result = sampan(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_directory_of_a_newer_format_is_left_alone(sampan: Command, data: Path) -> None:
    data.mkdir(parents=True)
    (data / "format").write_text("sampan 7\n")
    result = sampan("up", "--detach")
    assert result.returncode == 1
    assert "has format 7, this Sampan knows 1" in result.stderr
    assert (data / "format").read_text() == "sampan 7\n"
    assert sampan("doctor").returncode == 1


def test_a_taken_port_ends_the_start_and_names_its_holder(sampan: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        result = sampan("up", "--detach", "--ports", "default", "--set", f"kubernetes.port={port}")
    assert result.returncode == 1
    assert f"kubernetes cannot listen on 127.0.0.1:{port}: the port is in use by process {os.getpid()}" in result.stderr
    assert "--ports auto" in result.stderr
    assert "no platform is running" in sampan("status").stdout


def test_a_taken_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"127.0.0.1:{port}: the port is in use by process {os.getpid()} \("):
            ListenerBook().bind("kubernetes", port)


def test_automatic_ports_are_the_same_again_while_they_are_free() -> None:
    book = ListenerBook(auto=True)
    listener = book.bind("a", 6443)
    address = book.addresses()["a"]
    other = ListenerBook(auto=True, remembered={"a": address}).bind("a", 6443)
    assert other.getsockname()[1] != address[1]
    listener.close()
    again = ListenerBook(auto=True, remembered={"a": address}).bind("a", 6443)
    assert again.getsockname()[1] == address[1]
    other.close()
    again.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_input_or_output_is_nobody(data: Path, closed: str) -> None:
    script = f'exec "$0" -m sampan status --data-dir "$1" {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable, str(data)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_is_no_text_is_refused_at_once(tmp_path: Path) -> None:
    command = [sys.executable.encode(), b"-m", b"sampan", b"up", b"--data-dir", bytes(tmp_path) + b"/x\xff"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"is not in UTF-8" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_machine_without_the_address_says_so_also_for_a_free_port() -> None:
    with pytest.raises(PortTakenError, match=r"kubernetes cannot listen on 192\.0\.2\.77:0: Cannot assign"):
        ListenerBook(auto=True).bind("kubernetes", 6443, "192.0.2.77")
