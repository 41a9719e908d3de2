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
INDENT = 28
"""Columns before what a part tells, where it takes more than a line."""
COLOURS = {"ready": "green", "failed": "red", "degraded": "yellow"}


@click.command("status")
@options.data_dir
@options.as_json
def command(data_dir: Path, as_json: bool) -> None:
    """Show the platform's parts with state and restarts, every listening address by name, and the clock.

    The exit code is 0 when the platform is ready, 1 when a part is not, and 3 when nothing runs on the data directory.
    """
    status = read(data_dir)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        for line in describe(status, width):
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


def describe(status: dict[str, Any], width: int = 0) -> list[str]:
    """A status as lines for a person; what a part tells is broken into lines of ``width`` columns (0: not broken)."""
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
    lines = [f"{click.style(state, fg=COLOURS.get(state))}  process {status['pid']}  data in {status['data_dir']}"]
    clock = status.get("clock")
    if clock:
        steered = f"  {clock['ahead_seconds']:+.0f} s from the machine's" if abs(clock["ahead_seconds"]) >= 1 else ""
        rate = "" if clock["rate"] == 1 else ("  frozen" if clock["rate"] == 0 else f"  at rate {clock['rate']:g}")
        lines.append(f"clock  {clock['time']}{steered}{rate}")
    for part in status["parts"]:
        restarts = f"  {part['restarts']} restarts" if part["restarts"] else ""
        error = f"  {part['error']}" if part["error"] and part["state"] != "ready" else ""
        coloured = click.style(f"{part['state']:<9}", fg=COLOURS.get(part["state"]))
        process = f"  process {part['process']}" if part["process"] not in (0, status["pid"]) else ""
        told = [f"{name}={value}" for name, value in part["facts"].items() if name != "urls"]
        lines.append(f"  {part['name']:<16} {coloured}{process}{restarts}{error}".rstrip())
        used = len(click.unstyle(lines[-1]))
        for fact in told:
            if width and used + 2 + len(fact) > width:
                lines.append(" " * INDENT + fact)
                used = INDENT + len(fact)
            else:
                lines[-1] += f"  {fact}"
                used += 2 + len(fact)
    if status["addresses"]:
        lines.append("listening")
        lines += [f"  {name:<24} {address}" for name, address in status["addresses"].items()]
    urls = {name: url for part in status["parts"] for name, url in part["facts"].get("urls", {}).items()}
    if urls:
        lines.append("applications")
        lines += [f"  {name:<24} {click.style(url, underline=True)}" for name, url in sorted(urls.items())]
    return lines
