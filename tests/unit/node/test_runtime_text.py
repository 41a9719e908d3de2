"""The runtime's pieces that need no process: log lines, programs, addresses."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kernel.bpf import R0, Assembler
from sampan.parts.node.runtime import pause
from sampan.parts.node.runtime.addresses import address6, hidden_address
from sampan.parts.node.runtime.cgroups import Cgroups
from sampan.parts.node.runtime.interface import Limits
from sampan.parts.node.runtime.keeper.processes import exit_code
from sampan.parts.node.runtime.launch import find_program
from sampan.parts.node.runtime.logs import LONGEST_PIECE, LineFormatter, LogFile, stamp
from sampan.parts.node.runtime.privileges import LaunchError
from sampan.parts.node.runtime.zygote import recognise

AT = 1_700_000_000_123_456_789


def test_lines_carry_time_stream_and_tag() -> None:
    lines = LineFormatter("stdout")
    assert lines.feed(b"a\nb", AT) == b"2023-11-14T22:13:20.123456789Z stdout F a\n"
    assert lines.feed(b"c\n\n", AT) == stamp(AT) + b" stdout F bc\n" + stamp(AT) + b" stdout F \n"
    assert lines.feed(b"rest", AT) == b""
    assert lines.finish(AT) == stamp(AT) + b" stdout F rest\n"
    assert lines.finish(AT) == b""


@given(st.lists(st.binary(max_size=40)), st.integers(1, 3))
def test_no_byte_of_a_stream_is_lost_however_it_is_cut(chunks: list[bytes], repeat: int) -> None:
    lines = LineFormatter("stderr")
    text = b"".join(chunks) * repeat
    out = b"".join(lines.feed(chunk, AT) for _ in range(repeat) for chunk in chunks) + lines.finish(AT)
    prefix = stamp(AT) + b" stderr F "
    logged = [line.removeprefix(prefix) for line in out.split(b"\n")[:-1]]
    assert b"\n".join(logged) == text.removesuffix(b"\n")


def test_a_line_without_end_is_cut_into_bounded_pieces() -> None:
    lines = LineFormatter("stdout")
    out = lines.feed(b"x" * (LONGEST_PIECE * 2 + 5), AT)
    assert out.count(b" stdout P ") == 2
    assert lines.finish(AT).endswith(b"F xxxxx\n")


def test_a_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "c" / "0.log"), size=100, files=3)
    for number in range(50):
        log.write(b"line %02d ............\n" % number)
    log.close()
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == ["0.log", "0.log.1", "0.log.2"]
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "c").iterdir())
    assert b"line 49" in (tmp_path / "c/0.log").read_bytes()


@pytest.mark.parametrize(("raw", "expected"), [(0, (0, 0)), (3 << 8, (3, 0)), (9, (137, 9)), (15, (143, 15))])
def test_exit_codes_are_those_of_container_runtimes(raw: int, expected: tuple[int, int]) -> None:
    assert exit_code(raw) == expected


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_pause_program_is_a_small_elf_file(machine: str) -> None:
    program = pause.program(machine)
    assert program[:4] == b"\x7fELF"
    assert len(program) < 400


def test_jumps_are_resolved_to_their_labels() -> None:
    a = Assembler()
    a.jump_if(R0, "==", 7, "end")
    a.set(R0, 1)
    a.label("end")
    a.leave(0)
    assert a.code()[2:4] == b"\x01\x00"
    assert len(a.code()) == 8 * 4
    assert a.uses("end")


def test_every_pod_address_has_its_own_loopback_and_ipv6_address() -> None:
    assert hidden_address("10.244.3.9") == "127.7.3.9"
    assert address6("10.244.3.9") == "fd00:7377::af4:309"


def test_limits_go_where_the_controller_is(tmp_path: Path) -> None:
    unified, memory = tmp_path / "unified", tmp_path / "memory"
    groups = Cgroups(unified, frozenset({"pids", "cpu"}), {"memory": memory})
    for tree in (unified, memory):
        (tree / "pod" / "c").mkdir(parents=True)
    groups.limit("pod", "c", Limits(memory=1 << 20, cpu=0.5, cpu_request=0.25, pids=9))
    assert (memory / "pod/c/memory.limit_in_bytes").read_text() == str(1 << 20)
    assert (unified / "pod/c/cpu.max").read_text() == "50000 100000"
    assert (unified / "pod/c/pids.max").read_text() == "9"
    assert int((unified / "pod/c/cpu.weight").read_text()) == 10


def test_a_missing_program_is_reported_in_a_runtimes_words(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    cases = {
        "nope": ("executable file not found in $PATH", 127),
        "/no/such": ("no such file or directory", 127),
        str(tmp_path / "data"): ("permission denied", 126),
        str(tmp_path): ("is a directory", 127),
    }
    for program, (words, code) in cases.items():
        with pytest.raises(LaunchError, match=words.replace("$", r"\$")) as raised:
            find_program(program, str(tmp_path / "empty"))
        assert raised.value.code == code


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("python3", "app.py", "x"), ("script", "app.py", ["app.py", "x"])),
        (("python3", "-u", "-m", "http.server", "80"), ("module", "http.server", ["-m", "80"])),
        (("python3", "-c", "print(1)", "a"), ("text", "print(1)", ["-c", "a"])),
        (("tool", "serve"), ("script", "TOOL", ["TOOL", "serve"])),
        (("python3", "-O", "app.py"), None),
        (("python3",), None),
        (("sh", "-c", "python3 app.py"), None),
    ],
)
def test_python_command_lines_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], expected: tuple[str, str, list[str]] | None
) -> None:
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    for path, text in ((python, "#!x"), (tmp_path / "bin/tool", f"#!{python}\n"), (tmp_path / "bin/sh", "\x7fELF")):
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "app.py").write_text("")
    found = recognise(args, {"PATH": str(tmp_path / "bin")}, str(python), find_program)
    if expected is None:
        assert found is None
        return
    tool = str(tmp_path / "bin/tool")
    assert found is not None
    assert (found.kind, found.target, found.argv) == tuple(
        [tool if word == "TOOL" else word for word in part]
        if isinstance(part, list)
        else tool
        if part == "TOOL"
        else part
        for part in expected
    )
