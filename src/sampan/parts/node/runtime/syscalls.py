"""The few Linux system calls that Python's ``os`` lacks, through ctypes: mounts, namespaces, capabilities, prctl.

Everything raises ``OSError`` with the call's name and path, so that a failed mount in a container's start reads well.
Numbers are the kernel's UAPI constants; the only per-architecture ones are system call numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2

_ARM = platform.machine() in ("aarch64", "arm64")
_SYS_PIVOT_ROOT: Final = 41 if _ARM else 155
_SYS_CAPSET: Final = 91 if _ARM else 126
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_IN_ROOT: Final = 0x10
_OPEN_ATTEMPTS: Final = 1000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}", path)
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    _check(result, f"mount {kind or 'bind'} {source}", target)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2), lazily by default. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount", target)


def bind(source: str, target: str, *, read_only: bool = False, recursive: bool = True) -> None:
    """Bind-mount ``source`` on ``target``; a read-only bind takes a second call. Raises OSError."""
    depth = MS_REC if recursive else 0
    mount(source, target, "", MS_BIND | depth)
    if read_only:
        remount_read_only(target)


def remount_read_only(target: str) -> None:
    """Make a mount read-only, keeping the flags that a user namespace may not clear. Raises OSError."""
    stat = os.statvfs(target)
    # statvfs gives ST_NOSUID 2, ST_NODEV 4, ST_NOEXEC 8: the same bits as the mount flags
    kept = stat.f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """setns(2) with a namespace descriptor, or a pidfd and the namespaces to join. Raises OSError."""
    _check(_libc.setns(descriptor, flags), "setns")


def sethostname(name: str) -> None:
    """sethostname(2). Raises OSError."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def setdomainname(name: str) -> None:
    """setdomainname(2). Raises OSError."""
    encoded = name.encode()
    _check(_libc.setdomainname(encoded, len(encoded)), "setdomainname")


def pivot(root: str, old: str) -> None:
    """pivot_root(2): ``root`` (a mount point) becomes the root, the old one is seen at ``old`` below it. Raises OSError."""
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(root), os.fsencode(old)), "pivot_root", root)


def open_beneath(directory: int, path: str) -> int:
    """A descriptor (O_PATH) of what ``path`` names below an open directory; no link leads out of it, at any moment.

    Raises:
        OSError: EXDEV where one would.
    """
    return _openat2(directory, path, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)


def open_in_root(directory: int, path: str) -> int:
    """A descriptor (O_PATH) of what ``path`` names where an open directory is the root, for links too. Raises OSError."""
    return _openat2(directory, path, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)


def _openat2(directory: int, path: str, resolve: int) -> int:
    how = struct.pack("=3Q", os.O_PATH | os.O_CLOEXEC, 0, resolve)
    for attempt in range(_OPEN_ATTEMPTS):
        result: int = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, len(how))
        # at a ".." of a link, while anything on the machine is renamed, the kernel cannot tell and has it tried again
        if result >= 0 or ctypes.get_errno() != errno.EAGAIN or attempt == _OPEN_ATTEMPTS - 1:
            break
    return _check(result, "openat2", path)


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2). Raises OSError."""
    _check(_libc.prctl(option, value, third, 0, 0), "prctl")


def sync_file_system(path: str) -> None:
    """Flush everything of the file system that ``path`` lies on. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(descriptor), "syncfs", path)
    finally:
        os.close(descriptor)


def set_name(name: str) -> None:
    """Name the process as ``ps`` shows it (15 bytes)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def set_capabilities(effective: int, inheritable: int) -> None:
    """capset(2) of this process: effective and permitted as given. Raises OSError."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = effective & 0xFFFFFFFF, effective >> 32
    ilow, ihigh = inheritable & 0xFFFFFFFF, inheritable >> 32
    data = struct.pack("=6I", low, low, ilow, high, high, ihigh)
    _check(_libc.syscall(_SYS_CAPSET, header, data), "capset")


def last_capability() -> int:
    """The highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())
