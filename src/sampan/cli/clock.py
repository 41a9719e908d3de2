"""``sampan clock``: read and steer the platform's clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sampan.cli import options
from sampan.kernel.admin import ask
from sampan.kernel.folder import DataDirectory


@click.group("clock", invoke_without_command=True)
@options.data_dir
@click.pass_context
def command(context: click.Context, data_dir: Path) -> None:
    """Show or steer the platform's clock.

    Every timer, lease, delay, backoff, cron and window of the platform follows it.
    """
    context.obj = data_dir
    if context.invoked_subcommand is None:
        _show(ask(DataDirectory(data_dir).run, "GET", "/clock"))


@command.command("show")
@click.pass_obj
def show(data_dir: Path) -> None:
    """Show the clock."""
    _show(ask(DataDirectory(data_dir).run, "GET", "/clock"))


@command.command(
    "jump", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]}
)  # -1h is no help
@click.argument("duration", type=options.Duration())
@click.pass_obj
def jump(data_dir: Path, duration: float) -> None:
    """Jump by DURATION (3d, 1h30m, -2h).

    Forward, everything that would have become due in between becomes due now. Backward, only the time of day changes; nothing
    that waits is put off.
    """
    _show(ask(DataDirectory(data_dir).run, "POST", "/clock", {"jump": duration}))


@command.command("freeze")
@click.pass_obj
def freeze(data_dir: Path) -> None:
    """Stop the clock; only jumps move it until `sampan clock run`."""
    _show(ask(DataDirectory(data_dir).run, "POST", "/clock", {"rate": 0}))


@command.command("run")
@click.option("--rate", default=1.0, show_default=True, help="How many times as fast as the machine's clock.")
@click.pass_obj
def run(data_dir: Path, rate: float) -> None:
    """Let the clock run."""
    _show(ask(DataDirectory(data_dir).run, "POST", "/clock", {"rate": rate}))


def _show(clock: dict[str, Any]) -> None:
    ahead = clock["ahead_seconds"]
    rate = "frozen" if clock["rate"] == 0 else f"rate {clock['rate']:g}"
    click.echo(f"{clock['time']}  {rate}  {ahead:+.3f} s from the machine's clock")
