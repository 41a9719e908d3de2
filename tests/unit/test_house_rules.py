"""The rules of the house that no linter knows, checked on the source itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sampan.cli

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "sampan"
LONGEST = 1000
"""Lines in a module; most stay well under half of that."""
LONGER: dict[str, int] = {}
"""Modules that may be longer for now, each a debt."""
CLOCK = {"kernel/clock.py", "kernel/autojump.py", "kernel/tasks.py"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}

MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def offences(where: str, source: str) -> Iterator[str]:
    """What the module at ``where`` does that nothing in the house may."""
    tree = ast.parse(source)
    if source.strip() and ast.get_docstring(tree) is None:
        yield "has no docstring that tells its story"
    if Path(where).stem in FORBIDDEN_NAMES:
        yield f"is named {Path(where).stem}, which says nothing"
    length = len(source.splitlines())
    if length > LONGER.get(where, LONGEST):
        yield f"is {length} lines long"
    if where not in CLOCK:
        for call in calls(tree):
            match call.func:
                case ast.Attribute(attr="call_later" | "call_at", value=ast.Name(id="loop")):
                    yield f"line {call.lineno}: sets a timer on the loop; timers are the clock's"
                case ast.Attribute(attr="isdigit"):
                    yield f"line {call.lineno}: isdigit says yes to '²', which int refuses; isdecimal does not"
                case ast.Attribute(attr="create_task", value=ast.Name(id="loop" | "asyncio")):
                    yield f"line {call.lineno}: starts a task without an owner"
                case ast.Attribute(
                    attr="call_later" | "call_at" | "create_task", value=ast.Call(func=ast.Attribute(attr=of))
                ):
                    if of in ("get_running_loop", "get_event_loop"):
                        yield f"line {call.lineno}: sets a timer or starts a task on the loop itself"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            if broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                yield f"line {node.lineno}: swallows every error"


def test_no_module_breaks_a_rule_of_the_house() -> None:
    found = [f"{name(path)} {offence}" for path in MODULES for offence in offences(name(path), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ('"""X."""\nloop.call_later(1, f)', "sets a timer on the loop"),
        ('"""X."""\nasyncio.get_running_loop().create_task(f())', "starts a task on the loop itself"),
        ('"""X."""\ntry:\n    f()\nexcept Exception:\n    pass', "swallows every error"),
        ('"""X."""\nint(x) if x.isdigit() else 0', "isdecimal"),
        ("x = 1", "has no docstring"),
    ],
)
def test_the_check_finds_what_it_looks_for(source: str, offence: str) -> None:
    assert any(offence in found for found in offences("kube/module.py", source))


def test_the_commands_that_the_pages_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    later = {"image", "snapshot", "chaos"}  # named in plans only
    for page in pages:
        for command in re.findall(r"`sampan ([a-z]+)", page.read_text()):
            assert command in sampan.cli.COMMANDS or command in later, f"{page.name} names `sampan {command}`"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names `make {target}`"


def test_every_command_can_be_loaded_and_says_what_it_does() -> None:
    import click

    for command in sampan.cli.COMMANDS:
        loaded = sampan.cli.sampan.get_command(click.Context(sampan.cli.sampan), command)
        assert loaded is not None
        assert loaded.help


def test_the_settings_page_is_what_the_parts_declare() -> None:
    from sampan.cli.settings import page

    assert (ROOT / "docs" / "settings.md").read_text() == page(), "run `sampan settings > docs/settings.md`"


def test_an_installed_sampan_has_every_file_it_reads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed: set[Path] = set()
    for pattern in project["tool"]["setuptools"]["package-data"]["sampan"]:
        packed.update(SOURCE.glob(pattern))
    code = {".py", ".pyi", ".pyc"}
    kept = (path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in code)
    missing = sorted(name(path) for path in kept if path not in packed)
    assert not missing, f"package-data in pyproject.toml leaves out {missing}: an install without -e would lack them"


def test_every_folder_with_modules_is_a_package() -> None:
    lone = {path.parent for path in MODULES if not (path.parent / "__init__.py").exists()}
    assert not lone, f"setuptools finds only packages, these have no __init__.py: {sorted(map(name, lone))}"
