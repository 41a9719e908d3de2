"""The system calls a container with ``seccompProfile: RuntimeDefault`` may not make.

Container runtimes list what is allowed; this filter lists what their default profile refuses, so that a call a newer kernel
brings is met by its own permission checks. A call that a granted capability is for is allowed. Refused calls fail with EPERM;
``clone3``, whose flags a filter cannot see, with ENOSYS, upon which C libraries use ``clone``. System calls of another
architecture (32-bit programs) fail with ENOSYS, since their numbers mean something else.

The filter is classic BPF, put together here: x86-64 and 64-bit ARM. It is installed by the process itself, just before it
gives up its capabilities (or, where it has none, after giving up the right to new ones).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Collection

from sampan.parts.node.runtime import syscalls

X86_64, ARM64 = "x86_64", "aarch64"

_ARCHITECTURES = {X86_64: 0xC000003E, ARM64: 0xC00000B7}
"""AUDIT_ARCH_* of a machine."""

_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
"""System call → its number on x86-64 and on 64-bit ARM."""

ALWAYS = [
    "add_key",
    "create_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "nfsservctl",
    "pivot_root",
    "query_module",
    "request_key",
    "swapoff",
    "swapon",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
]
"""Refused whatever the container may do."""
FOR = {
    "SYS_ADMIN": [
        "bpf",
        "fanotify_init",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "quotactl",
        "quotactl_fd",
        "setdomainname",
        "sethostname",
        "setns",
        "syslog",
        "umount2",
        "unshare",
    ],
    "SYS_MODULE": ["delete_module", "finit_module", "init_module"],
    "SYS_PACCT": ["acct"],
    "SYS_TIME": ["adjtimex", "clock_adjtime", "clock_settime", "settimeofday"],
    "SYS_RAWIO": ["ioperm", "iopl"],
    "SYS_BOOT": ["reboot"],
    "SYS_NICE": ["mbind", "migrate_pages", "move_pages", "set_mempolicy"],
    "SYS_TTY_CONFIG": ["vhangup"],
    "DAC_READ_SEARCH": ["open_by_handle_at"],
    "SYSLOG": ["syslog"],
    "BPF": ["bpf"],
    "PERFMON": ["perf_event_open"],
}
"""Capability → the calls that it, or another one that lists them, allows."""
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEW* flags."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_X32 = 0x40000000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def refused(capabilities: Collection[str]) -> set[str]:
    """The calls a container with these capabilities may not make at all."""
    allowed = {call for name in capabilities for call in FOR.get(name, ())}
    return {*ALWAYS, *(call for calls in FOR.values() for call in calls)} - allowed


def program(capabilities: Collection[str], machine: str | None = None) -> bytes:
    """The filter as an array of ``struct sock_filter``.

    Raises:
        KeyError: there is none for this machine.
    """
    machine = {"arm64": ARM64, "amd64": X86_64}.get(machine or platform.machine(), machine or platform.machine())
    column = 0 if machine == X86_64 else 1
    steps: list[tuple[int, int, str, str]] = []
    """Operation, operand, where to go if it holds, and if not ("" is the next step)."""
    steps.append((_LOAD, _ARCHITECTURE, "", ""))
    steps.append((_EQUAL, _ARCHITECTURES[machine], "", "unknown"))
    steps.append((_LOAD, _NUMBER, "", ""))
    if machine == X86_64:
        steps.append((_AT_LEAST, _X32, "unknown", ""))
    for call in sorted(refused(capabilities)):
        number = _NUMBERS[call][column]
        if number is not None:
            steps.append((_EQUAL, number, "refuse", ""))

    def numbered(call: str) -> int:
        number = _NUMBERS[call][column]
        assert number is not None
        return number

    if "SYS_ADMIN" not in capabilities:
        steps.append((_EQUAL, numbered("clone3"), "unknown", ""))
        steps.append((_EQUAL, numbered("clone"), "clone", ""))
    steps.append((_EQUAL, numbered("personality"), "personality", "allow"))
    places: dict[str, int] = {"clone": len(steps)}
    if "SYS_ADMIN" not in capabilities:
        steps.append((_LOAD, _FIRST_ARGUMENT, "", ""))
        steps.append((_ANY_BIT, NEW_NAMESPACES, "refuse", "allow"))
    places["personality"] = len(steps)
    steps.append((_LOAD, _FIRST_ARGUMENT, "", ""))
    steps += [(_EQUAL, value, "allow", "") for value in PERSONALITIES]
    for name, answer in (("refuse", _ERROR | errno.EPERM), ("unknown", _ERROR | errno.ENOSYS), ("allow", _ALLOW)):
        places[name] = len(steps)
        steps.append((_RETURN, answer, "", ""))
    code = b""
    for index, (operation, operand, yes, no) in enumerate(steps):
        jumps = [places[target] - index - 1 if target else 0 for target in (yes, no)]
        code += struct.pack("=HBBI", operation, *jumps, operand)
    return code


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(capabilities: Collection[str]) -> None:
    """Put this process, for good, under the filter. Raises OSError; nothing on a machine there is no filter for."""
    try:
        code = program(capabilities)
    except KeyError:
        return
    loaded = _Program(len(code) // 8, code)
    syscalls.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(loaded))
