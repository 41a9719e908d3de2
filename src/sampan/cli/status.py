"""``sampan status``: parts, their state and every listening address; truthful also when nothing runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from sampan.cli import NOT_RUNNING, options
from sampan.kernel.admin import NotRunningError, ask
from sampan.kernel.folder import DataDirectory

PATIENCE = 10.0
"""Seconds the platform has to answer."""
SHOWN = 15
"""Rows of one table at most; ``--all`` and ``--json`` have all of them."""
COLOURS = {
    "ready": "green",
    "Running": "green",
    "Succeeded": "green",
    "failed": "red",
    "Failed": "red",
    "degraded": "yellow",
    "starting": "yellow",
    "Pending": "yellow",
    "Terminating": "yellow",
}
OWNERS = {"gateway": "traffic", "kubelet": "node", "dns": "network"}
"""Parts whose listeners are named after what they are."""
APART = ("urls", "rows")
"""Facts that are shown in a table of their own."""


@click.command("status")
@options.data_dir
@options.as_json
@click.option("--all", "everything", is_flag=True, help="Show everything every part tells, however long.")
def command(data_dir: Path, as_json: bool, everything: bool) -> None:
    """Show the platform's parts with state and ports, its pods, and the URLs that can be opened.

    The exit code is 0 when the platform is ready, 1 when a part is not, and 3 when nothing runs on the data directory.
    """
    status = read(data_dir)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() and not everything else 0
        for line in describe(status, width, SHOWN if not everything else sys.maxsize):
            click.echo(line)
    if status["state"] in ("stopped", "crashed"):
        raise click.exceptions.Exit(NOT_RUNNING)
    if status["state"] != "ready":
        raise click.exceptions.Exit(1)


def read(data_dir: Path) -> dict[str, Any]:
    """The running platform's status, or what can be told of one that does not run."""
    directory = DataDirectory(data_dir)
    try:
        status: dict[str, Any] = ask(directory.run, "GET", "/status", wait=PATIENCE)
        return status
    except NotRunningError:
        pid = directory.holder()
    gone: dict[str, Any] = {"data_dir": str(data_dir), "parts": [], "addresses": {}}
    before = directory.read_state()
    if pid is not None:
        stuck = before is not None and before.ready and before.pid == pid
        return {"state": "unresponsive" if stuck else "starting", "pid": pid, **gone}
    if before is not None:
        # an orderly end takes its state file away
        return {"state": "crashed", "pid": before.pid, **gone}
    return {"state": "stopped", **gone}


def describe(status: dict[str, Any], width: int = 0, shown: int = SHOWN) -> list[str]:
    """A status as lines for a person: of ``width`` columns at most (0: as long as they are), ``shown`` rows of a table."""
    state = status["state"]
    if state == "stopped":
        return [f"no platform is running on {status['data_dir']}; start one with `sampan up`"]
    if state == "unresponsive":
        return [
            f"the platform on {status['data_dir']} (process {status['pid']}) runs but does not answer within "
            f"{PATIENCE:g} s; it is stopped, or overloaded; `sampan down` ends it all the same"
        ]
    if state == "crashed":
        return [
            f"the platform on {status['data_dir']} (process {status['pid']}) ended without being stopped; "
            "`sampan logs` may say why, `sampan up` brings everything back"
        ]
    lines = [
        f"{click.style(state, fg=COLOURS.get(state), bold=True)}  process {status['pid']}  data in {status['data_dir']}"
    ]
    if clock := status.get("clock"):
        lines.append(_clock(clock))
    lines += _parts(status, width)
    for part in status["parts"]:
        for title, rows in part["facts"].get("rows", {}).items():
            if rows:
                lines += ["", _title(title), *_table(rows, shown)]
    urls = {name: url for part in status["parts"] for name, url in part["facts"].get("urls", {}).items()}
    if urls:
        room = max(map(len, urls))
        lines += ["", _title("urls")]
        listed = [f"  {name:<{room}}  {click.style(url, underline=True)}" for name, url in sorted(urls.items())]
        lines += [*listed[:shown], *_further(len(listed), shown)]
    return lines


def _clock(clock: dict[str, Any]) -> str:
    steered = f"  {clock['ahead_seconds']:+.0f} s from the machine's" if abs(clock["ahead_seconds"]) >= 1 else ""
    rate = "" if clock["rate"] == 1 else ("  frozen" if clock["rate"] == 0 else f"  at rate {clock['rate']:g}")
    text = f"clock  {clock['time'][:19].replace('T', ' ')} UTC{steered}{rate}"
    return click.style(text, fg="yellow") if steered or rate else click.style(text, dim=True)


def _parts(status: dict[str, Any], width: int) -> list[str]:
    """A line a part: its state, where it listens, what it tells; then what listens for no part."""
    names = {part["name"] for part in status["parts"]}
    ports: dict[str, list[str]] = {}
    for name, address in status["addresses"].items():
        first, _, rest = name.partition(".")
        owner = first if first in names else OWNERS.get(first, name)
        shown = rest or (first if owner != first else "")
        host, _, port = address.rpartition(":")
        # the usual host is not worth a word on every line
        where = f":{port}" if host == "127.0.0.1" else address
        ports.setdefault(owner, []).append(f"{shown} {where}".strip())
    listed = {name: ", ".join(where) for name, where in ports.items()}
    room = max([10, *map(len, names)]) + 1
    wide = min(44, max((len(listed.get(name, "")) for name in names), default=0))
    lines = ["", _title(f"{'parts':<{room + 2}}{'state':<10}ports on 127.0.0.1")] if names else []
    for part in status["parts"]:
        colour = COLOURS.get(part["state"])
        where = listed.pop(part["name"], "")
        state = click.style(f"{part['state']:<10}", fg=colour)
        line = f"  {part['name']:<{room}}{state}{where:<{wide}}"
        told = [f"process {part['process']}"] if part["process"] not in (0, status["pid"]) else []
        told += [f"{part['restarts']} restarts"] if part["restarts"] else []
        told += [part["error"]] if part["error"] and part["state"] != "ready" else []
        important = len(told)
        told += [f"{name}={_short(value)}" for name, value in part["facts"].items() if name not in APART]
        lines.append(_with(line, told, important, width))
    lines += [f"  {name:<{room}}{'':<10}{where}" for name, where in sorted(listed.items())]
    return lines


def _with(line: str, told: list[str], important: int, width: int) -> str:
    """A line with as many of the words told as there is room for; those that are important in any case."""
    used = len(click.unstyle(line))
    for number, word in enumerate(told):
        used += 2 + len(word)
        if width and used > width and number >= important:
            break
        line += "  " + (word if number < important else click.style(word, dim=True))
    return line.rstrip()


def _short(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _title(text: str) -> str:
    return click.style(text.upper() if text.islower() else text, bold=True)


def _table(rows: list[list[str]], shown: int) -> list[str]:
    """Rows of equal length with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows[:shown]:
        cells = [
            click.style(f"{cell:<{wide}}", fg=COLOURS.get(cell)) for cell, wide in zip(row, widths, strict=True) if wide
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines + _further(len(rows), shown)


def _further(count: int, shown: int) -> list[str]:
    return [f"  and {count - shown} more; `sampan status --all` shows them"] if count > shown else []
