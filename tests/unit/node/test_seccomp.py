"""The default filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct

import pytest

from sampan.parts.node.runtime.privileges import CAPABILITIES, DEFAULT_CAPABILITIES
from sampan.parts.node.runtime.seccomp import _NUMBERS, ALWAYS, FOR, program, refused

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW = 0x7FFF0000


def run(code: bytes, number: int, architecture: int, argument: int = 0) -> int:
    """What the kernel would answer: 0 to allow, else the errno."""
    data = struct.pack("=IIQQ", number, architecture, 0, argument)
    accumulator = at = 0
    while True:
        operation, yes, no, operand = struct.unpack_from("=HBBI", code, at * 8)
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x06:
                return 0 if operand == ALLOW else operand & 0xFFFF
            case 0x15 | 0x35 | 0x45:
                holds = {
                    0x15: accumulator == operand,
                    0x35: accumulator >= operand,
                    0x45: bool(accumulator & operand),
                }[operation]
                at += yes if holds else no
            case _:
                pytest.fail(f"unknown operation {operation:#x}")
        at += 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_each_refused_call_fails_and_the_usual_ones_go_through(machine: str) -> None:
    code, architecture = program(DEFAULT_CAPABILITIES, machine), ARCHITECTURES[machine]
    column = 0 if machine == "x86_64" else 1
    for call in refused(DEFAULT_CAPABILITIES):
        number = _NUMBERS[call][column]
        if number is not None:
            assert run(code, number, architecture) == errno.EPERM, call
    known = {numbers[column] for numbers in _NUMBERS.values()}
    for number in set(range(440)) - known:
        assert run(code, number, architecture) == 0, number


@pytest.mark.parametrize("capability", sorted(FOR))
def test_a_capability_brings_the_calls_it_is_for(capability: str) -> None:
    code = program({capability}, "x86_64")
    for call in FOR[capability]:
        number = _NUMBERS[call][0]
        assert number is not None
        assert run(code, number, ARCHITECTURES["x86_64"]) == 0, call


def test_namespaces_are_for_who_may_administer() -> None:
    clone, clone3 = _NUMBERS["clone"][0], _NUMBERS["clone3"][0]
    assert clone is not None
    assert clone3 is not None
    architecture = ARCHITECTURES["x86_64"]
    code = program(DEFAULT_CAPABILITIES, "x86_64")
    assert run(code, clone, architecture, 0x01200011) == 0  # what fork uses
    assert run(code, clone, architecture, 0x10000000) == errno.EPERM
    assert run(code, clone3, architecture) == errno.ENOSYS
    code = program(set(CAPABILITIES), "x86_64")
    assert run(code, clone, architecture, 0x10000000) == 0
    assert run(code, clone3, architecture) == 0


def test_calls_of_another_architecture_do_not_exist() -> None:
    code = program(set(), "x86_64")
    assert run(code, 39, 0x40000003) == errno.ENOSYS
    assert run(code, 0x40000000 | 39, ARCHITECTURES["x86_64"]) == errno.ENOSYS


def test_only_harmless_personalities() -> None:
    number = _NUMBERS["personality"][0]
    assert number is not None
    code = program(set(), "x86_64")
    assert [run(code, number, ARCHITECTURES["x86_64"], value) for value in (0, 0xFFFFFFFF, 0x40000)] == [
        0,
        0,
        errno.EPERM,
    ]


def test_every_call_named_has_a_number() -> None:
    assert {*ALWAYS, *(call for calls in FOR.values() for call in calls)} <= _NUMBERS.keys()
