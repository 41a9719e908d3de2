"""``sampan settings``: every setting with type, default and meaning, from the parts' own declarations."""

from __future__ import annotations

import click

from sampan.kernel.platform import PlatformSettings, choose
from sampan.kernel.settings import document
from sampan.parts import PARTS

HEAD = """# Settings

Each setting can be written in `sampan.yaml` in the data directory (or the file given with `--config`), in the environment as
`SAMPAN_<PART>_<FIELD>`, or on the command line as `--set part.field=value`; the later overrides the earlier. A setting that
does not exist is an error that names the nearest one that does. This page is written by `sampan settings`.
"""


def page() -> str:
    """``docs/settings.md``."""
    types = {"platform": PlatformSettings} | {n: part.settings_type for n, part in choose(PARTS, (), ()).items()}
    return f"{HEAD}\n{document(types)}".rstrip() + "\n"


@click.command("settings")
def command() -> None:
    """List every setting of every part, as Markdown."""
    click.echo(page(), nl=False)
