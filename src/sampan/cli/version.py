"""``sampan version``."""

from __future__ import annotations

import json
import platform as machine

import click

from sampan import __version__
from sampan.cli import options


@click.command("version")
@options.as_json
def command(as_json: bool) -> None:
    """Print the version of Sampan and of what it runs on."""
    versions = {"sampan": __version__, "python": machine.python_version(), "system": machine.platform()}
    if as_json:
        click.echo(json.dumps(versions))
    else:
        click.echo(f"sampan {versions['sampan']} (Python {versions['python']}, {versions['system']})")
