"""A tiny eBPF assembler and loader: maps, programs of a few dozen instructions, attachment to cgroups.

No compiler, libbpf or bpftool is needed. `Assembler` collects instructions with symbolic jump labels and gives the bytes
the kernel verifies; `load`, `attach`, `Map` are the system call. What the programs do is written where they are used
(`addresses` for pod addresses; the network part for Services and policy).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from sampan.parts.node.runtime import syscalls

CGROUP_SKB: Final = 8
CGROUP_SOCK: Final = 9
CGROUP_SOCK_ADDR: Final = 18

BIND4: Final = 8
BIND6: Final = 9
CONNECT4: Final = 10
CONNECT6: Final = 11
POST_BIND4: Final = 12
SENDMSG4: Final = 14
RECVMSG4: Final = 19
GETPEERNAME4: Final = 29
GETSOCKNAME4: Final = 31

HASH: Final = 1
LRU_HASH: Final = 9

MAP_LOOKUP: Final = 1
MAP_UPDATE: Final = 2
MAP_DELETE: Final = 3
BIND: Final = 64
PROBE_READ_KERNEL: Final = 113
CURRENT_ANCESTOR_CGROUP: Final = 123

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _PROG_ATTACH = 0, 1, 2, 3, 5, 8
ALLOW_MULTI: Final = 2

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_JUMPS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50}


class Map:
    """A kernel map with fixed-size keys and values; it lives while this descriptor or a program holds it."""

    def __init__(self, kind: int, key_size: int, value_size: int, entries: int) -> None:
        self.key_size, self.value_size = key_size, value_size
        self.descriptor = syscalls.bpf(_MAP_CREATE, struct.pack("=5I", kind, key_size, value_size, entries, 0))

    def _pointers(self, key: bytes, value: bytes) -> tuple[bytes, tuple[object, object]]:
        key_buffer = ctypes.create_string_buffer(key, self.key_size)
        value_buffer = ctypes.create_string_buffer(value, self.value_size)
        attributes = struct.pack(
            "=IIQQQ", self.descriptor, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0
        )
        return attributes, (key_buffer, value_buffer)

    def update(self, key: bytes, value: bytes) -> None:
        """Set an entry. Raises OSError."""
        attributes, _keep = self._pointers(key, value)
        syscalls.bpf(_MAP_UPDATE, attributes)

    def delete(self, key: bytes) -> None:
        """Drop an entry; a missing one is fine."""
        buffer = ctypes.create_string_buffer(key, self.key_size)
        try:
            syscalls.bpf(_MAP_DELETE, struct.pack("=IIQ", self.descriptor, 0, ctypes.addressof(buffer)))
        except FileNotFoundError:
            return

    def close(self) -> None:
        os.close(self.descriptor)


class Assembler:
    """Instructions in order, with labels resolved by `code`."""

    def __init__(self) -> None:
        self._slots: list[tuple[int, int, int, int, str]] = []
        self._labels: dict[str, int] = {}

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, value: int = 0, label: str = "") -> None:
        value = ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        self._slots.append((opcode, dst | src << 4, offset, value, label))

    def label(self, name: str) -> None:
        """Here is ``name``."""
        self._labels[name] = len(self._slots)

    def set(self, dst: int, value: int) -> None:
        """dst = value (32 bits, zero-extended)."""
        self._emit(0xB4, dst, 0, 0, value)

    def move(self, dst: int, src: int) -> None:
        """dst = src (64 bits)."""
        self._emit(0xBF, dst, src)

    def add(self, dst: int, value: int) -> None:
        """dst += value (64 bits)."""
        self._emit(0x07, dst, 0, 0, value)

    def mask(self, dst: int, value: int) -> None:
        """dst &= value (32 bits)."""
        self._emit(0x54, dst, 0, 0, value)

    def shift_left(self, dst: int, bits: int) -> None:
        """dst <<= bits (32 bits)."""
        self._emit(0x64, dst, 0, 0, bits)

    def either(self, dst: int, src: int) -> None:
        """dst |= src (32 bits)."""
        self._emit(0x4C, dst, src)

    def swap16(self, dst: int) -> None:
        """dst = its low 16 bits between network and host order."""
        self._emit(0xDC, dst, 0, 0, 16)

    def load(self, size: int, dst: int, src: int, offset: int) -> None:
        """dst = *(src + offset)."""
        self._emit(0x61 | _SIZES[size], dst, src, offset)

    def store(self, size: int, dst: int, offset: int, src: int) -> None:
        """*(dst + offset) = src."""
        self._emit(0x63 | _SIZES[size], dst, src, offset)

    def store_value(self, size: int, dst: int, offset: int, value: int) -> None:
        """*(dst + offset) = value."""
        self._emit(0x62 | _SIZES[size], dst, 0, offset, value)

    def jump(self, label: str) -> None:
        self._emit(0x05, label=label)

    def jump_if(self, dst: int, test: str, value: int, label: str) -> None:
        """Compare the low 32 bits of dst with a value."""
        self._emit(0x06 | _JUMPS[test], dst, 0, 0, value, label)

    def jump_if_register(self, dst: int, test: str, src: int, label: str) -> None:
        """Compare the low 32 bits of two registers."""
        self._emit(0x0E | _JUMPS[test], dst, src, 0, 0, label)

    def jump_if_null(self, dst: int, label: str) -> None:
        """A map lookup's result is missing."""
        self._emit(0x15, dst, 0, 0, 0, label)

    def jump_if_found(self, dst: int, label: str) -> None:
        """A map lookup found something."""
        self._emit(0x55, dst, 0, 0, 0, label)

    def uses(self, label: str) -> bool:
        """Some jump goes to this label."""
        return any(slot[4] == label for slot in self._slots)

    def call(self, helper: int) -> None:
        self._emit(0x85, 0, 0, 0, helper)

    def map(self, dst: int, descriptor: int) -> None:
        """dst = a map."""
        self._emit(0x18, dst, 1, 0, descriptor)
        self._emit(0)

    def leave(self, value: int) -> None:
        """Return ``value``."""
        self.set(R0, value)
        self._emit(0x95)

    def code(self) -> bytes:
        """The program's bytes."""
        out = bytearray()
        for index, (opcode, registers, offset, value, label) in enumerate(self._slots):
            if label:
                offset = self._labels[label] - index - 1
            out += struct.pack("=BBhi", opcode, registers, offset, value)
        return bytes(out)


def load(code: bytes, kind: int, attach_type: int, name: str) -> int:
    """Have the kernel verify and load a program; returns its descriptor.

    Raises:
        OSError: refused; the verifier's last words are in the message.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)

    def attributes(level: int) -> bytes:
        return struct.pack(
            "=IIQQIIQII16sII",
            kind,
            len(code) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(license_text),
            level,
            len(log) if level else 0,
            ctypes.addressof(log) if level else 0,
            0,
            0,
            name.encode()[:15],
            0,
            attach_type,
        )

    try:
        return syscalls.bpf(_PROG_LOAD, attributes(0))
    except PermissionError as error:
        raise OSError(error.errno, f"bpf: program {name} refused: {error}") from error
    except OSError:
        try:
            return syscalls.bpf(_PROG_LOAD, attributes(1))
        except OSError as error:
            words = log.value.decode(errors="replace").strip().splitlines()[-6:]
            raise OSError(error.errno, f"bpf: program {name} refused: {' | '.join(words)}") from error


def attach(cgroup: int, program: int, attach_type: int) -> None:
    """Attach a program to a cgroup directory's descriptor, beside others. Raises OSError."""
    syscalls.bpf(_PROG_ATTACH, struct.pack("=5I", cgroup, program, attach_type, ALLOW_MULTI, 0))
