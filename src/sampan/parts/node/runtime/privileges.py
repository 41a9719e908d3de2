"""Who a container's process is and what it may do: user, groups, capabilities, limits."""

from __future__ import annotations

import os
import pwd
import resource

from sampan.parts.node.runtime import seccomp, syscalls
from sampan.parts.node.runtime.interface import ContainerSpec

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
"""Container runtimes' usual set, less NET_RAW, which only pods with a network namespace have: else it would read the host's packets."""


class LaunchError(Exception):
    """A step between fork and exec failed; ``code`` is the exit code runtimes report for it."""

    def __init__(self, message: str, code: int = 128) -> None:
        super().__init__(message)
        self.code = code


def _names(spec: ContainerSpec) -> set[str]:
    """The capabilities a container has. Raises LaunchError."""
    if spec.privileged:
        return set(CAPABILITIES)
    names = set(DEFAULT_CAPABILITIES) | ({"NET_RAW"} if spec.own_network else set())
    add = {name.upper().removeprefix("CAP_") for name in spec.capabilities_add}
    drop = {name.upper().removeprefix("CAP_") for name in spec.capabilities_drop}
    if "ALL" in drop:
        names.clear()
    if "ALL" in add:
        names.update(CAPABILITIES)
    names = (names | (add - {"ALL"})) - (drop - {"ALL"} - add)
    for name in names:
        if name not in CAPABILITIES:
            raise LaunchError(f"unknown capability {name!r}")
    return names


def _capabilities(spec: ContainerSpec) -> int:
    every = (1 << (syscalls.last_capability() + 1)) - 1
    mask = 0
    for name in _names(spec):
        mask |= 1 << CAPABILITIES.index(name)
    return mask & every


def confine(spec: ContainerSpec, *, root: bool) -> None:
    """Put the process under the seccomp filter its spec asks for; before it gives up being root. Raises OSError or LaunchError."""
    if not spec.seccomp:
        return
    if not root:
        # only who can gain nothing by an exec may filter without privileges
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(_names(spec))


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
    if name.isdecimal():
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
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise LaunchError(f"unable to find group {group}: no matching entries in group file") from None
    return uid, gid


def soft_limits(pids: int) -> None:
    """Limits by rlimit, for where no cgroup controller enforces them."""
    if pids:
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, (pids, pids))
        except (OSError, ValueError):
            return  # a lower hard limit is in force already
