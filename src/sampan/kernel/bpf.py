"""A tiny eBPF assembler and loader: maps, programs of a few dozen instructions, attachment to cgroups.

No compiler, libbpf or bpftool is needed. `Assembler` collects instructions with symbolic jump labels and gives the bytes
the kernel verifies; `load`, `attach`, `Map` are the system call. `attached` looks at what is attached to a cgroup already, so
that a restarted process finds its own programs and maps, and one part another's. What the programs do is written where they
are used: the node part for pod addresses, the network part for Services and policy.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

CGROUP_SKB: Final = 8
CGROUP_SOCK: Final = 9
RAW_TRACEPOINT: Final = 17
CGROUP_SOCK_ADDR: Final = 18

BIND4: Final = 8
BIND6: Final = 9
CONNECT4: Final = 10
CONNECT6: Final = 11
POST_BIND4: Final = 12
SENDMSG4: Final = 14
RECVMSG4: Final = 19
RECVMSG6: Final = 20
GETPEERNAME4: Final = 29
GETPEERNAME6: Final = 30
GETSOCKNAME4: Final = 31

HASH: Final = 1
ARRAY: Final = 2
LRU_HASH: Final = 9
LPM_TRIE: Final = 11

MAP_LOOKUP: Final = 1
MAP_UPDATE: Final = 2
MAP_DELETE: Final = 3
MONOTONIC_NS: Final = 5
RANDOM: Final = 7
SOCKET_COOKIE: Final = 46
BIND: Final = 64
PROBE_READ_KERNEL: Final = 113
CURRENT_ANCESTOR_CGROUP: Final = 123
SET_RETVAL: Final = 187

_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT, _PROG_LOAD, _PROG_ATTACH, _PROG_DETACH = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    9,
)
_PROG_RUN, _PROG_BY_ID, _MAP_BY_ID, _INFO, _PROG_QUERY = 10, 13, 14, 15, 16
ALLOW_MULTI: Final = 2
NO_PREALLOC: Final = 1
"""A map flag: memory grows with the entries (an LPM trie insists on it)."""

_SYSTEM_CALL: Final = 280 if platform.machine() in ("aarch64", "arm64") else 321
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_JUMPS = {"==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50}


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2). Raises OSError."""
    buffer = (
        attributes if isinstance(attributes, ctypes.Array) else ctypes.create_string_buffer(attributes, len(attributes))
    )
    result: int = _libc.syscall(_SYSTEM_CALL, command, buffer, len(buffer))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf: {os.strerror(number)}")
    return result


class Map:
    """A kernel map with fixed-size keys and values; it lives while this descriptor or a program holds it."""

    def __init__(
        self,
        kind: int,
        key_size: int,
        value_size: int,
        entries: int,
        *,
        name: str = "",
        flags: int = 0,
        descriptor: int | None = None,
    ) -> None:
        """A new map, or the one behind a ``descriptor``. Raises OSError."""
        self.key_size, self.value_size = key_size, value_size
        if descriptor is None:
            attributes = struct.pack("=7I16s", kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:15])
            descriptor = _bpf(_MAP_CREATE, attributes)
        self.descriptor = descriptor

    @classmethod
    def of(cls, info: MapInfo) -> Self:
        """The existing map that an `attached` program uses. Raises OSError."""
        descriptor = _bpf(_MAP_BY_ID, struct.pack("=3I", info.id, 0, 0))
        return cls(info.kind, info.key_size, info.value_size, info.entries, descriptor=descriptor)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, or None. Raises OSError."""
        attributes, (_, value) = self._pointers(key, bytes(self.value_size))
        try:
            _bpf(_MAP_LOOKUP, attributes)
        except FileNotFoundError:
            return None
        return value.raw

    def __iter__(self) -> Iterator[bytes]:
        """All keys; while others write, some may come twice or not at all."""
        key = ctypes.create_string_buffer(self.key_size)
        following = ctypes.create_string_buffer(self.key_size)
        at = 0
        while True:
            try:
                _bpf(_MAP_NEXT, struct.pack("=IIQQQ", self.descriptor, 0, at, ctypes.addressof(following), 0))
            except FileNotFoundError:
                return
            yield following.raw
            key.raw, at = following.raw, ctypes.addressof(key)

    def _pointers(
        self, key: bytes, value: bytes
    ) -> tuple[bytes, tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]]:
        key_buffer = ctypes.create_string_buffer(key, self.key_size)
        value_buffer = ctypes.create_string_buffer(value, self.value_size)
        attributes = struct.pack(
            "=IIQQQ", self.descriptor, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0
        )
        return attributes, (key_buffer, value_buffer)

    def update(self, key: bytes, value: bytes) -> None:
        """Set an entry. Raises OSError."""
        attributes, _keep = self._pointers(key, value)
        _bpf(_MAP_UPDATE, attributes)

    def delete(self, key: bytes) -> None:
        """Drop an entry; a missing one is fine."""
        buffer = ctypes.create_string_buffer(key, self.key_size)
        try:
            _bpf(_MAP_DELETE, struct.pack("=IIQ", self.descriptor, 0, ctypes.addressof(buffer)))
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

    def divide_rest(self, dst: int, src: int) -> None:
        """dst %= src (32 bits, unsigned; by 0 leaves dst)."""
        self._emit(0x9C, dst, src)

    def subtract(self, dst: int, src: int) -> None:
        """dst -= src (64 bits)."""
        self._emit(0x1F, dst, src)

    def shift_right(self, dst: int, bits: int) -> None:
        """dst >>= bits (32 bits)."""
        self._emit(0x74, dst, 0, 0, bits)

    def jump_if_more(self, dst: int, src: int, label: str) -> None:
        """dst > src, as unsigned 64 bits."""
        self._emit(0x2D, dst, src, label=label)

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
        return _bpf(_PROG_LOAD, attributes(0))
    except PermissionError as error:
        raise OSError(error.errno, f"bpf: program {name} refused: {error}") from error
    except OSError:
        try:
            return _bpf(_PROG_LOAD, attributes(1))
        except OSError as error:
            words = log.value.decode(errors="replace").strip().splitlines()[-6:]
            raise OSError(error.errno, f"bpf: program {name} refused: {' | '.join(words)}") from error


def attach(cgroup: int, program: int, attach_type: int) -> None:
    """Attach a program to a cgroup directory's descriptor, beside others. Raises OSError."""
    _bpf(_PROG_ATTACH, struct.pack("=5I", cgroup, program, attach_type, ALLOW_MULTI, 0))


def detach(cgroup: int, program: int, attach_type: int) -> None:
    """Take a program off a cgroup. Raises OSError."""
    _bpf(_PROG_DETACH, struct.pack("=5I", cgroup, program, attach_type, 0, 0))


class MapInfo(NamedTuple):
    """What the kernel says of a map."""

    id: int
    kind: int
    key_size: int
    value_size: int
    entries: int
    name: str


class Attached(NamedTuple):
    """A program that is attached to a cgroup."""

    id: int
    name: str
    tag: bytes
    """Eight bytes of a hash of its instructions, maps aside: programs with the same tag do the same."""
    maps: tuple[MapInfo, ...]


def attached(cgroup: int, attach_type: int) -> list[Attached]:
    """Programs attached to a cgroup directory's descriptor itself, in the order they run. Raises OSError."""
    ids = (ctypes.c_uint32 * 64)()
    query = ctypes.create_string_buffer(
        struct.pack("=4IQII", cgroup, attach_type, 0, 0, ctypes.addressof(ids), 64, 0), 32
    )
    _bpf(_PROG_QUERY, query)
    (count,) = struct.unpack_from("=I", query, 24)
    found = []
    for identity in ids[:count]:
        descriptor = program(identity)
        try:
            found.append(_program_info(descriptor))
        finally:
            os.close(descriptor)
    return found


def program(identity: int) -> int:
    """A descriptor of the program with this id. Raises OSError."""
    return _bpf(_PROG_BY_ID, struct.pack("=3I", identity, 0, 0))


def _info(descriptor: int, info: ctypes.Array[ctypes.c_char]) -> None:
    _bpf(_INFO, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))


def _program_info(descriptor: int) -> Attached:
    ids = (ctypes.c_uint32 * 64)()
    info = ctypes.create_string_buffer(80)
    struct.pack_into("=IIQ", info, 48, 0, 64, ctypes.addressof(ids))
    _info(descriptor, info)
    identity, tag = struct.unpack_from("=4xI8s", info)
    (count,) = struct.unpack_from("=I", info, 52)
    return Attached(
        identity, info.raw[64:80].split(b"\0")[0].decode(), tag, tuple(_map_info(one) for one in ids[:count])
    )


def _map_info(identity: int) -> MapInfo:
    descriptor = _bpf(_MAP_BY_ID, struct.pack("=3I", identity, 0, 0))
    info = ctypes.create_string_buffer(40)
    try:
        _info(descriptor, info)
    finally:
        os.close(descriptor)
    kind, number, key, value, entries = struct.unpack_from("=5I", info)
    return MapInfo(number, kind, key, value, entries, info.raw[24:40].split(b"\0")[0].decode())


def run(descriptor: int) -> None:
    """Run a raw tracepoint program once, in this thread. Raises OSError."""
    _bpf(_PROG_RUN, struct.pack("=4IQQ4IQQ3I4x", descriptor, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def cgroup_ids(levels: int = 12) -> list[int]:
    """Ids of the cgroups this thread is in, from the hierarchy's root (level 0) down; 0 below its own.

    A cgroup v2 directory's inode number is its id. Inside a cgroup namespace this shows what paths cannot: how deep a
    directory is in the whole hierarchy. Raises OSError.
    """
    ids = Map(ARRAY, 4, 8 * levels, 1)
    try:
        a = Assembler()
        a.store_value(4, FP, -4, 0)
        a.map(R1, ids.descriptor)
        a.move(R2, FP)
        a.add(R2, -4)
        a.call(MAP_LOOKUP)
        a.jump_if_null(R0, "end")
        a.move(R6, R0)
        for level in range(levels):
            a.set(R1, level)
            a.call(CURRENT_ANCESTOR_CGROUP)
            a.store(8, R6, 8 * level, R0)
        a.label("end")
        a.leave(0)
        loaded = load(a.code(), RAW_TRACEPOINT, 0, "cgroup_ids")
        try:
            run(loaded)
        finally:
            os.close(loaded)
        return list(struct.unpack(f"={levels}Q", ids.lookup(bytes(4)) or bytes(8 * levels)))
    finally:
        ids.close()
