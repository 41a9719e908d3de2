"""``sampan kubeconfig``: how kubectl and every other client reach the platform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sampan.cli import options
from sampan.kernel.errors import SampanError
from sampan.kernel.files import write_private
from sampan.kernel.folder import DataDirectory


@click.command("kubeconfig")
@options.data_dir
@click.option("--path", "only_path", is_flag=True, help="Print the file's path instead of its content.")
@click.option(
    "--merge",
    is_flag=False,
    flag_value="",
    type=str,
    metavar="[FILE]",
    help="Add it to FILE (default: KUBECONFIG or ~/.kube/config) as cluster, user and context `sampan` and use it.",
)
def command(data_dir: Path, only_path: bool, merge: str | None) -> None:
    """Print a kubeconfig with administrator rights for the platform's Kubernetes API.

    Nothing outside the data directory is changed unless --merge asks for it.
    """
    source = DataDirectory(data_dir).kubeconfig
    if not source.exists():
        raise SampanError(f"there is no kubeconfig in {data_dir} yet; `sampan up` writes it")
    if merge is not None:
        target = Path(merge).expanduser() if merge else _usual(source)
        _merge(source, target)
        click.echo(f"{target} now has the context sampan and uses it")
    elif only_path:
        click.echo(source)
    else:
        click.echo(source.read_text(), nl=False)


def _usual(own: Path) -> Path:
    """Where a user's kubeconfig is; the platform's ``own``, which may be exported just now, is not one to add to."""
    named = [Path(name) for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]
    others = [path for path in named if not (path.exists() and path.samefile(own))]
    return others[0] if others else Path.home() / ".kube" / "config"


def _merge(source: Path, target: Path) -> None:
    import yaml

    ours: dict[str, Any] = yaml.safe_load(source.read_text())
    try:
        theirs: Any = yaml.safe_load(target.read_text()) if target.exists() else {}
    except (OSError, yaml.YAMLError) as error:
        raise SampanError(f"{target} cannot be read: {error}") from None
    theirs = theirs or {"apiVersion": "v1", "kind": "Config"}
    if not isinstance(theirs, dict) or theirs.get("kind", "Config") != "Config":
        raise SampanError(f"{target} is not a kubeconfig")
    for section in ("clusters", "users", "contexts"):
        names = {entry["name"] for entry in ours[section]}
        kept = [entry for entry in theirs.get(section) or [] if entry.get("name") not in names]
        theirs[section] = kept + ours[section]
    theirs["current-context"] = ours["current-context"]
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    write_private(target, yaml.safe_dump(theirs, sort_keys=False))
