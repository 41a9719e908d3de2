"""What happens between fork and exec: a process enters its pod and gets its own root.

Runs in freshly forked, single-threaded children of the keeper or the zygote only. There are two steps, because joining a pid
namespace takes effect at the next fork::

    keeper or zygote ── fork ──> entry: joins cgroups and the sandbox's namespaces, forks, reports the pid, ends
                                   └─ fork ──> the container: builds its root (`roots`), drops privileges (`privileges`), becomes the program

The entry's end hands the container to the keeper, the nearest subreaper, whoever forked it; so its exit status reaches the
keeper even when a zygote that forked it has been killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import socket
import stat
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from sampan.parts.node.runtime import notification, syscalls
from sampan.parts.node.runtime.interface import ContainerSpec, Limits, Mount, Root, SandboxSpec
from sampan.parts.node.runtime.privileges import LaunchError, confine, drop_privileges, soft_limits
from sampan.parts.node.runtime.roots import build_root

_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a process goes: what the entry step joins."""

    cgroups: tuple[str, ...] = ()
    """``cgroup.procs`` files to write 0 to."""
    join: int = 0
    """A process whose namespaces to join; 0: none."""
    namespaces: int = 0
    """CLONE_NEW* flags of the namespaces to join."""


def enter(entry: Entry, status: int, child: Callable[[], NoReturn], through: type[BaseException] | None = None) -> None:
    """The entry step, in a forked process: join, fork the container, report ``pid`` on the status pipe, end.

    Returns only in the container's process, and only where its ``child`` raised ``through``.
    """
    try:
        for path in entry.cgroups:
            with open(path, "w") as file:
                file.write("0")
        if entry.join:
            descriptor = os.pidfd_open(entry.join)
            syscalls.setns(descriptor, entry.namespaces)
            os.close(descriptor)
        pid = os.fork()
    except OSError as error:
        report(status, error=f"cannot enter the pod: {error}", code=128)
        os._exit(1)
    if pid:
        report(status, pid=pid)
        os._exit(0)
    try:
        child()
    except LaunchError as error:
        report(status, error=str(error), code=error.code)
        os._exit(error.code)
    except OSError as error:
        report(status, error=str(error), code=128)
        os._exit(128)
    except BaseException as error:
        if through is not None and isinstance(error, through):
            return
        report(status, error=f"{type(error).__name__}: {error}", code=128)
        os._exit(128)


def read_container(path: str) -> ContainerSpec:
    """A container's spec from its file. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        fields: dict[str, Any] = json.loads(file.read())
    root = fields["root"]
    fields["root"] = Root(**{**root, "layers": tuple(root["layers"]), "extra": tuple(root["extra"])})
    fields["limits"] = Limits(**fields["limits"])
    fields["mounts"] = tuple(Mount(**mount) for mount in fields["mounts"])
    for name in ("args", "groups", "capabilities_add", "capabilities_drop"):
        fields[name] = tuple(fields[name])
    return ContainerSpec(**fields)


def report(status: int, **facts: object) -> None:
    """One message of a start's report."""
    line = json.dumps({name: value[:3000] if isinstance(value, str) else value for name, value in facts.items()})
    os.write(status, line.encode() + b"\n")


def standard_streams(stdin: int, stdout: int, stderr: int, *, tty: bool) -> None:
    """Make these descriptors 0, 1, 2 of a new session, with the terminal as its controlling one."""
    os.setsid()
    if tty:
        fcntl.ioctl(stdin, termios.TIOCSCTTY, 0)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def reset_signals() -> None:
    """Default handlers and an empty mask, as a program expects to be started."""
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # reserved by the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


# -- the sandbox


def become_sandbox(spec: SandboxSpec, device_directory: str, *, privileged: bool) -> None:
    """In the process that will hold the sandbox's namespaces: its host name, devices and memory file systems."""
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    if spec.network != "host":
        syscalls.sethostname(spec.hostname[:63])
    for memory in spec.memory:
        size = f"size={memory.size}," if memory.size else ""
        syscalls.mount("tmpfs", memory.path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"{size}mode=1777")
    syscalls.mount("tmpfs", device_directory, "tmpfs", syscalls.MS_NOSUID, "mode=755,size=64k")
    old = os.umask(0)
    for name, minor in _DEVICES.items():
        _device(f"{device_directory}/{name}", f"/dev/{name}", 1, minor, privileged)
    _device(f"{device_directory}/tty", "/dev/tty", 5, 0, privileged)
    os.umask(old)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        os.symlink(target, f"{device_directory}/{name}")
    os.mkdir(f"{device_directory}/pts")
    options = "newinstance,ptmxmode=0666,mode=0620" + (",gid=5" if privileged else "")
    syscalls.mount("devpts", f"{device_directory}/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, options)
    os.mkdir(f"{device_directory}/shm")
    os.mkdir(f"{device_directory}/mqueue")
    if spec.host_ipc:
        syscalls.bind("/dev/shm", f"{device_directory}/shm")
    else:
        syscalls.mount(
            "shm", f"{device_directory}/shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777,size=64m"
        )


def _device(path: str, host: str, major: int, minor: int, privileged: bool) -> None:
    if privileged:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        return
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
    syscalls.bind(host, path, recursive=False)


# -- becoming the program


def settle(spec: ContainerSpec, request: Mapping[str, Any], status: int) -> None:
    """The container's root, sockets and privileges, as far as the tier gives them. Raises OSError or LaunchError."""
    spec = replace(spec, own_network=request["own_network"])
    if request["mounts"]:
        build_root(spec, request["directory"], request["skeleton"], request["devices"])
    if request["sockets"]:
        hand_over_sockets(status)
    confine(spec, root=request["root"])
    if request["root"]:
        drop_privileges(spec)
    if request["rlimits"]:
        soft_limits(spec.limits.pids)


def hand_over_sockets(status: int) -> None:
    """From now on the keeper decides where sockets are bound and connected. Raises OSError."""
    try:
        listener = notification.listen()
    except PermissionError:
        notification.promise()
        listener = notification.listen()
    with socket.socket(fileno=os.dup(status)) as report_socket:
        socket.send_fds(report_socket, [b"{}"], [listener])
    os.close(listener)


def start_container(directory: str, request: Mapping[str, Any], streams: tuple[int, int, int], status: int) -> NoReturn:
    """The container's process, by exec. Raises OSError or LaunchError."""
    spec = read_container(f"{directory}/spec.json")
    standard_streams(*streams, tty=spec.tty)
    reset_signals()
    settle(spec, request, status)
    env = prepare_environment(spec)
    change_directory(spec.cwd)
    execute(spec.args, env)


@dataclass(frozen=True, slots=True)
class Execution:
    """A further process of a container."""

    spec: ContainerSpec
    args: tuple[str, ...]
    tty: bool
    root: bool
    sockets: bool


def start_exec(process: Execution, streams: tuple[int, int, int], status: int) -> NoReturn:
    """A further process in a container, by exec. Raises OSError or LaunchError."""
    spec = process.spec
    standard_streams(*streams, tty=process.tty)
    reset_signals()
    if process.sockets:
        hand_over_sockets(status)
    confine(spec, root=process.root)
    if process.root:
        drop_privileges(spec)
    env = prepare_environment(spec)
    if process.tty:
        env.setdefault("TERM", "xterm")
    change_directory(spec.cwd)
    execute(process.args, env)


def prepare_environment(spec: ContainerSpec) -> dict[str, str]:
    """The environment with HOME and PATH filled in where the image sets none."""
    env = dict(spec.env)
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if "HOME" not in env:
        try:
            env["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            env["HOME"] = "/"
    return env


def change_directory(path: str) -> None:
    """chdir. Raises LaunchError."""
    try:
        os.chdir(path or "/")
    except OSError as error:
        raise LaunchError(f"working directory {path}: {error.strerror}") from error


def find_program(program: str, path: str) -> str:
    """The file that a command names. Raises LaunchError with a runtime's usual words."""
    if "/" in program:
        candidates = [program]
    else:
        candidates = [os.path.join(directory or ".", program) for directory in path.split(":")]
    found = None
    for candidate in candidates:
        if os.path.isfile(candidate):
            found = candidate
            if os.access(candidate, os.X_OK):
                return candidate
    start = "unable to start container process: exec: "
    if found:
        raise LaunchError(f'{start}"{program}": permission denied', 126)
    if "/" in program:
        kind = "is a directory" if os.path.isdir(program) else "no such file or directory"
        raise LaunchError(f'{start}"{program}": stat {program}: {kind}', 127)
    raise LaunchError(f'{start}"{program}": executable file not found in $PATH', 127)


def execute(args: tuple[str, ...], env: dict[str, str]) -> NoReturn:
    """Become the program. Raises LaunchError."""
    if not args:
        raise LaunchError("no command specified")
    program = find_program(args[0], env.get("PATH", ""))
    try:
        os.execve(program, args, env)
    except OSError as error:
        words = "exec format error" if error.errno == 8 else (error.strerror or str(error)).lower()
        raise LaunchError(f'unable to start container process: exec: "{args[0]}": {words}', 126) from error
