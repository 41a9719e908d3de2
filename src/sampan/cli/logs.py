"""``sampan logs``: the platform's log files as one stream in time order."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from sampan.cli import options
from sampan.kernel.errors import SampanError
from sampan.kernel.folder import DataDirectory
from sampan.kernel.settings import nearest
from sampan.kernel.telemetry import human_line
from sampan.parts import PARTS

LOOKS_A_SECOND = 5

Line = tuple[str, bytes, dict[str, Any]]


@click.command("logs")
@click.argument("part", required=False)
@options.data_dir
@options.as_json
@click.option("--follow", "-f", is_flag=True, help="Go on with what is logged from now on.")
@click.option("--lines", "-n", default=100, show_default=True, help="How many of the last lines to show.")
def command(part: str | None, data_dir: Path, as_json: bool, follow: bool, lines: int) -> None:
    """Show what the platform (or one PART of it) logged, also after it ended."""
    folder = DataDirectory(data_dir).logs
    if not folder.is_dir():
        raise SampanError(f"nothing was logged in {data_dir}; has a platform run there?")
    if part is not None and part not in PARTS and not (folder / f"{part}.jsonl").exists():
        raise SampanError(f"there is no part named {part}{nearest(part, PARTS)}")
    coloured = sys.stdout.isatty()
    positions: dict[Path, int] = {}
    last = deque(_read(folder, positions, part, rotated=True), maxlen=lines)
    try:
        while True:
            for _, raw, fields in last:
                click.echo(raw if as_json else human_line(fields, coloured=coloured))
            if not follow:
                return
            threading.Event().wait(1 / LOOKS_A_SECOND)
            last = deque(_read(folder, positions, part))
    except KeyboardInterrupt:
        return


def _read(folder: Path, positions: dict[Path, int], part: str | None, *, rotated: bool = False) -> list[Line]:
    """The lines since the last call, of all files, in time order."""
    found: list[Line] = []
    for file in sorted(folder.glob("*.jsonl")):
        if rotated:
            older = sorted(folder.glob(f"{file.name}.*"), reverse=True)
            for path in older:
                found += _lines(path.read_bytes(), file.stem, part)
        size = file.stat().st_size
        start = positions.get(file, 0)
        if size < start:  # rotated since
            start = 0
        with file.open("rb") as stream:
            stream.seek(start)
            content = stream.read()
        content = content[: content.rfind(b"\n") + 1]
        positions[file] = start + len(content)
        found += _lines(content, file.stem, part)
    found.sort(key=lambda line: line[0])
    return found


def _lines(content: bytes, process: str, part: str | None) -> Iterator[Line]:
    for raw in content.splitlines():
        try:
            fields: dict[str, Any] = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            continue  # the line a killed process left half written
        logger = str(fields.get("logger", ""))
        if part is None or process == part or part in logger.split("."):
            yield str(fields.get("time", "")), raw, fields
