"""What happens between fork and exec: a process enters its pod and gets its own root.

Runs in freshly forked, single-threaded children of the keeper or the zygote only. There are two steps, because joining a pid
namespace takes effect at the next fork::

    keeper or zygote ── fork ──> entry: joins cgroups and the sandbox's namespaces, forks, reports the pid, ends
                                   └─ fork ──> the container: builds its root, drops privileges, becomes the program

The entry's end hands the container to the keeper, the nearest subreaper, whoever forked it; so its exit status reaches the
keeper even when a zygote that forked it has been killed.

The root of a container without a system of its own: an overlay of the image's layers on an empty skeleton, overlays of the
host's /usr and /etc (private and writable), /proc, /dev, and the mounts of the spec. Nothing else of the host is there:
neither the node's directory nor other pods' files. Both roots are visible while mounts are made (the old one at ``/.node``),
so mount targets resolve inside the container's own symlinks.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import resource
import signal
import stat
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sampan.parts.node.runtime import syscalls
from sampan.parts.node.runtime.interface import ContainerSpec, Limits, Mount, Root, SandboxSpec

_OLD = "/.node"

CAPABILITIES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]
DEFAULT_CAPABILITIES = frozenset(
    [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
)
"""Container runtimes' usual set, less NET_RAW: without a network namespace it would read the host's packets."""

_HOST_DIRECTORIES = ("usr", "etc", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_EMPTY_DIRECTORIES = ("dev", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "var")
_VAR_DIRECTORIES = ("cache", "lib", "local", "log", "mail", "opt", "spool", "tmp")
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


class LaunchError(Exception):
    """A step between fork and exec failed; ``code`` is the exit code runtimes report for it."""

    def __init__(self, message: str, code: int = 128) -> None:
        super().__init__(message)
        self.code = code


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
    """One line on the status pipe (less than PIPE_BUF: atomic)."""
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


# -- the container's root


def make_skeleton(directory: str) -> None:
    """The directories and links at the top of every container's root; idempotent."""
    for name in _HOST_DIRECTORIES:
        host, mine = f"/{name}", f"{directory}/{name}"
        if os.path.lexists(mine):
            continue
        if os.path.islink(host):
            os.symlink(os.readlink(host), mine)
        elif os.path.isdir(host):
            os.makedirs(mine, exist_ok=True)
    for name in _EMPTY_DIRECTORIES:
        os.makedirs(f"{directory}/{name}", exist_ok=True)
    for name in _VAR_DIRECTORIES:
        os.makedirs(f"{directory}/var/{name}", exist_ok=True)
    if not os.path.lexists(f"{directory}/var/run"):
        os.symlink("/run", f"{directory}/var/run")
    os.chmod(f"{directory}/tmp", 0o1777)
    os.chmod(f"{directory}/var/tmp", 0o1777)
    os.chmod(f"{directory}/root", 0o700)


def build_root(spec: ContainerSpec, directory: str, skeleton: str, devices: str) -> None:
    """Give the process the container's own root, in a mount namespace of its own. Raises OSError or LaunchError."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    root = f"{directory}/root"
    scratch = directory
    lower = [*spec.root.layers, *([skeleton] if spec.root.host else [])]
    try:
        _overlay(lower, scratch, "", root)
    except OSError:
        # a writable layer cannot lie on every file system (another overlay, some network ones): keep it in memory
        scratch = f"{directory}/work"
        syscalls.mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
        _overlay(lower, scratch, "", root)
    writable = [root]
    if spec.root.host:
        for name in _HOST_DIRECTORIES:
            if os.path.islink(f"/{name}") or not os.path.isdir(f"/{name}"):
                continue
            below = [layer for layer in (f"{layer}/{name}" for layer in spec.root.layers) if os.path.isdir(layer)]
            _overlay([*below, f"/{name}"], scratch, name, f"{root}/{name}")
            writable.append(f"{root}/{name}")
    os.makedirs(root + _OLD, exist_ok=True)
    _pivot(root, root + _OLD)
    for extra in spec.root.extra:
        if os.path.isdir(_OLD + extra):
            os.makedirs(extra, exist_ok=True)
            syscalls.bind(_OLD + extra, extra, read_only=True)
    _system_mounts(devices, privileged=spec.privileged)
    for mount in sorted(spec.mounts, key=lambda mount: mount.target.count("/")):
        _mount(mount)
    if spec.cwd:
        try:
            os.makedirs(spec.cwd, exist_ok=True)
        except OSError as error:
            raise LaunchError(f"working directory {spec.cwd}: {error.strerror}") from error
    syscalls.umount(_OLD)
    os.rmdir(_OLD)
    if spec.root.read_only:
        syscalls.remount_read_only("/")
        for path in writable[1:]:
            syscalls.remount_read_only(path.removeprefix(root))


def _overlay(lower: list[str], scratch: str, name: str, target: str) -> None:
    upper, work = f"{scratch}/upper-{name}", f"{scratch}/work-{name}"
    os.makedirs(upper, exist_ok=True)
    os.makedirs(work, exist_ok=True)
    # overlayfs wants at least two lower directories or an upper one; colons in paths are escaped
    paths = ":".join(path.replace("\\", "\\\\").replace(":", "\\:") for path in lower)
    data = f"lowerdir={paths},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", target, "overlay", 0, data)


def _pivot(root: str, old: str) -> None:
    os.chdir(root)
    syscalls.pivot(".", old.removeprefix(root + "/"))
    os.chdir("/")


def _system_mounts(devices: str, *, privileged: bool) -> None:
    os.makedirs("/proc", exist_ok=True)
    os.makedirs("/sys", exist_ok=True)
    os.makedirs("/dev", exist_ok=True)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.mount("proc", "/proc", "proc", flags)
    except PermissionError:
        syscalls.bind(f"{_OLD}/proc", "/proc")  # a user namespace under a masked /proc
    if privileged:
        syscalls.bind(f"{_OLD}/sys", "/sys")
        syscalls.bind(f"{_OLD}/dev", "/dev")
        return
    try:
        syscalls.bind(f"{_OLD}/sys", "/sys", read_only=True, recursive=False)
    except OSError:
        syscalls.bind(f"{_OLD}/sys", "/sys", recursive=True)  # a user namespace may not reveal what is mounted over
    syscalls.bind(_OLD + devices, "/dev")


def _mount(mount: Mount) -> None:
    source = _OLD + mount.source
    try:
        if os.path.isdir(source):
            os.makedirs(mount.target, exist_ok=True)
        elif os.path.lexists(source):
            os.makedirs(os.path.dirname(mount.target) or "/", exist_ok=True)
            if not os.path.exists(mount.target):
                os.close(os.open(mount.target, os.O_CREAT | os.O_WRONLY, 0o644))
        else:
            raise LaunchError(f"failed to mount {mount.source} at {mount.target}: no such file or directory")
        syscalls.bind(source, mount.target, read_only=mount.read_only)
    except OSError as error:
        raise LaunchError(f"failed to mount {mount.source} at {mount.target}: {error.strerror}") from error


# -- privileges


def _capabilities(spec: ContainerSpec) -> int:
    every = (1 << (syscalls.last_capability() + 1)) - 1
    if spec.privileged:
        return every
    names = set(DEFAULT_CAPABILITIES)
    add = {name.upper().removeprefix("CAP_") for name in spec.capabilities_add}
    drop = {name.upper().removeprefix("CAP_") for name in spec.capabilities_drop}
    if "ALL" in drop:
        names.clear()
    if "ALL" in add:
        names.update(CAPABILITIES)
    names = (names | (add - {"ALL"})) - (drop - {"ALL"} - add)
    mask = 0
    for name in names:
        if name not in CAPABILITIES:
            raise LaunchError(f"unknown capability {name!r}")
        mask |= 1 << CAPABILITIES.index(name)
    return mask & every


def drop_privileges(spec: ContainerSpec) -> None:
    """User, groups and capabilities of the spec; only called where the launcher is root. Raises OSError or LaunchError."""
    uid, gid, groups = spec.uid, spec.gid, list(spec.groups)
    if spec.user:
        uid, gid = _look_up(spec.user, gid)
    mask = _capabilities(spec)
    for number in range(syscalls.last_capability() + 1):
        if not mask >> number & 1:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(8, 1)  # PR_SET_KEEPCAPS, across the change of user
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid == 0:
        syscalls.set_capabilities(mask, 0)
    else:
        # like a runtime with ip_unprivileged_port_start=0: any user may listen on port 80
        bind_service = mask & (1 << CAPABILITIES.index("NET_BIND_SERVICE"))
        syscalls.set_capabilities(bind_service, bind_service)
        if bind_service:
            syscalls.prctl(
                syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, CAPABILITIES.index("NET_BIND_SERVICE")
            )
    if spec.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def _look_up(user: str, gid: int) -> tuple[int, int]:
    name, _, group = user.partition(":")
    if name.isdigit():
        uid = int(name)
    else:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise LaunchError(f"unable to find user {name}: no matching entries in passwd file") from None
        uid, gid = entry.pw_uid, entry.pw_gid
    if group:
        import grp

        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise LaunchError(f"unable to find group {group}: no matching entries in group file") from None
    return uid, gid


# -- becoming the program


def settle(spec: ContainerSpec, request: Mapping[str, Any]) -> None:
    """The container's root and privileges, as far as the tier gives them. Raises OSError or LaunchError."""
    if request["mounts"]:
        build_root(spec, request["directory"], request["skeleton"], request["devices"])
    if request["root"]:
        drop_privileges(spec)
    if request["rlimits"]:
        soft_limits(spec.limits.pids)


def start_container(directory: str, request: Mapping[str, Any], streams: tuple[int, int, int]) -> NoReturn:
    """The container's process, by exec. Raises OSError or LaunchError."""
    spec = read_container(f"{directory}/spec.json")
    standard_streams(*streams, tty=spec.tty)
    reset_signals()
    settle(spec, request)
    env = prepare_environment(spec)
    change_directory(spec.cwd)
    execute(spec.args, env)


def start_exec(
    spec: ContainerSpec, args: tuple[str, ...], tty: bool, root: bool, streams: tuple[int, int, int]
) -> NoReturn:
    """A further process in a container, by exec. Raises OSError or LaunchError."""
    standard_streams(*streams, tty=tty)
    reset_signals()
    if root:
        drop_privileges(spec)
    env = prepare_environment(spec)
    if tty:
        env.setdefault("TERM", "xterm")
    change_directory(spec.cwd)
    execute(args, env)


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


def soft_limits(pids: int) -> None:
    """Limits by rlimit, for where no cgroup controller enforces them."""
    if pids:
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (pids, pids))
        except (OSError, ValueError):
            return  # a lower hard limit is in force already
