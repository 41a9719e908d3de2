"""``sampan image``: turn directories into images that manifests can name, and move images about.

These commands work on the data directory itself, so they need no running platform.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from sampan.cli import options
from sampan.kernel.clock import Clock
from sampan.kernel.folder import DataDirectory
from sampan.parts.node.errors import ImageError
from sampan.parts.node.images.store import ImageStore


def _store(data_dir: Path) -> ImageStore:
    return ImageStore(DataDirectory(data_dir).part("node") / "images")


@click.group("image")
@options.data_dir
@click.pass_context
def command(context: click.Context, data_dir: Path) -> None:
    """Build, list, remove, export, import and map images."""
    context.obj = _store(data_dir)


@command.command("build")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("-t", "--tag", required=True, metavar="NAME[:TAG]", help="What to call the image.")
@click.option(
    "--command", "start", metavar="COMMAND", default="", help="How it starts (else Procfile, scripts, app.py)."
)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment; may be repeated.")
@click.pass_obj
def build_command(store: ImageStore, directory: Path, tag: str, start: str, env: tuple[str, ...]) -> None:
    """Build DIRECTORY into an image.

    Its dependencies (requirements.txt, or pyproject.toml) go into an environment that images with the same dependencies
    share.
    """
    from sampan.parts.node.images.build import build

    created = Clock().now().isoformat().replace("+00:00", "Z")
    store.open()
    digest = build(store, directory.resolve(), tag, command=start, env=env, created=created)
    click.echo(digest)


@command.command("list")
@options.as_json
@click.option("--builtin", is_flag=True, help="Also the names the built-in catalogue stands in for.")
@click.pass_obj
def list_command(store: ImageStore, as_json: bool, builtin: bool) -> None:
    """List images."""
    rows = []
    for name, digest in sorted(store.references().items()):
        manifest = store.read(digest)
        size = sum(layer["size"] for layer in manifest["layers"])
        rows.append(
            {"name": name, "digest": digest, "size": size, "created": store.config(digest)[1].get("created", "")}
        )
    if builtin:
        from sampan.parts.node.images.catalogue import ENTRIES

        rows += [
            {"name": name, "digest": "", "size": 0, "created": entry.title} for name, entry in sorted(ENTRIES.items())
        ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(f"{'NAME':<56} {'DIGEST':<20} {'SIZE':>10}  CREATED")
    for row in rows:
        click.echo(
            f"{row['name']:<56} {str(row['digest'])[7:19] or '(built in)':<20} {row['size']:>10}  {row['created']}"
        )


@command.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove_command(store: ImageStore, names: tuple[str, ...]) -> None:
    """Remove images by name (or NAME@sha256:...)."""
    from sampan.parts.node.images.reference import Reference

    for name in names:
        if not store.remove(Reference.parse(name)):
            raise ImageError(f"there is no image {name} here; `sampan image list` shows what is")
        click.echo(f"removed {name}")


@command.command("export")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path))
@click.pass_obj
def export_command(store: ImageStore, name: str, target: Path) -> None:
    """Write an image as an OCI layout: a directory, or an archive when TARGET ends in .tar."""
    from sampan.parts.node.images.transfer import export

    export(store, name, target)
    click.echo(f"wrote {target}")


@command.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-t", "--tag", default="", metavar="NAME[:TAG]", help="What to call the image, if its layout does not say."
)
@click.pass_obj
def import_command(store: ImageStore, source: Path, tag: str) -> None:
    """Take in the images of an OCI layout (directory or tar)."""
    from sampan.parts.node.images.transfer import load

    store.open()
    for name in load(store, source, tag):
        click.echo(f"imported {name}")


@command.command("map")
@click.argument("name")
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Take the mapping back.")
@click.pass_obj
def map_command(store: ImageStore, name: str, target: str | None, remove: bool) -> None:
    """Let manifests that name NAME run TARGET instead."""
    from sampan.parts.node.images.reference import Reference

    if not remove and not target:
        raise click.UsageError("give the image that NAME stands for, or --remove")
    if target and not remove:
        Reference.parse(target)
    store.map(name, None if remove else target)
    click.echo(f"{name} is itself again" if remove else f"{name} is now {target}")
