"""Machines for a test: network namespaces joined by a veth pair, each running its own Sampan process.

What the namespaces share with the real machine: the kernel, the disks, the process table. What they have apart: interfaces,
addresses, routes, ports and loopback; so a server on one's 127.0.0.1 cannot be reached from the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KUBECTL = shutil.which("kubectl", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
PATIENCE = 40.0


def reason_not_to() -> str:
    """Why there can be no such machines here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}"
    if KUBECTL is None:
        return "needs kubectl"
    probe = f"sampan-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return ""


class Machine:
    """One network namespace with an address, and what Sampan runs in it."""

    def __init__(self, name: str, address: str, data: Path) -> None:
        self.name, self.address, self.data = name, address, data
        self.inside = ["nsenter", f"--net=/run/netns/{name}"]
        self.kubeconfig: Path | None = None

    def run(self, *command: str, stdin: str | None = None, code: int | None = 0, env: Any = None) -> str:
        """Run a command there; its output (and errors, where it fails as wanted)."""
        done = subprocess.run(
            [*self.inside, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={**os.environ, **(env or {})},
        )
        told = f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, told
        return done.stdout + (done.stderr if done.returncode else "")

    def sampan(self, *arguments: str, code: int | None = 0) -> str:
        """Run the command line on this machine's data directory."""
        return self.run(sys.executable, "-m", "sampan", "--data-dir", str(self.data), *arguments, code=code)

    def kubectl(self, *arguments: str, stdin: str | None = None, code: int | None = 0) -> str:
        """Run kubectl as the administrator."""
        assert KUBECTL is not None
        assert self.kubeconfig is not None
        return self.run(KUBECTL, *arguments, stdin=stdin, code=code, env={"KUBECONFIG": str(self.kubeconfig)})

    def get(self, *arguments: str) -> Any:
        """``kubectl get -o json``."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """``kubectl apply``."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    @property
    def pid(self) -> int:
        """The process of the platform or node there."""
        return int(json.loads((self.data / "run/state.json").read_text())["pid"])

    def kill(self) -> None:
        """kill -9 that process, and nothing else."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists() or _zombie(pid), "the process goes")


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].startswith(" Z")
    except OSError:
        return True


def until(holds: Any, what: str, seconds: float = PATIENCE) -> Any:
    """Wait for something; what it was at last."""
    deadline = time.monotonic() + seconds
    found = holds()
    while not found:
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
        found = holds()
    return found


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines in one network, 10.77.0.1 and .2; taken apart at the end, with all that runs in them."""
    run = f"sampan-{uuid.uuid4().hex[:6]}"
    first, second = (Machine(f"{run}-{n}", f"10.77.0.{n}", folder / f"machine-{n}") for n in (1, 2))

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        for machine in (first, second):
            ip("netns", "add", machine.name)
            ip("-n", machine.name, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", first.name, "type", "veth", "peer", "eth0", "netns", second.name)
        for machine in (first, second):
            ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            ip("-n", machine.name, "link", "set", "eth0", "up")
        yield first, second
    finally:
        for machine in (second, first):
            if machine.data.exists():
                machine.sampan("down", code=None)
                end_pods(machine)
            subprocess.run(["ip", "netns", "del", machine.name], check=False, capture_output=True)


def end_pods(machine: Machine) -> None:
    """End a keeper that a killed process left behind, and its pods with it."""
    file = machine.data / "parts/node/run/keeper.pid"
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        if "sampan" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGTERM)
