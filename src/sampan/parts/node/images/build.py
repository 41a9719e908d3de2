"""Build an image from a directory: ``sampan image build ./app -t name``.

The directory becomes one layer under ``/app``, made so that the same files give the same digest. How it starts is taken
from, in this order: ``--command``; the ``web`` (or only) line of a ``Procfile``; the only entry of ``[project.scripts]``;
``app.py``, ``main.py`` or ``__main__.py``. Dependencies come from ``requirements.txt``, else ``[project.dependencies]``; a
directory with none of these and no Python files is a plain application for the host's programs.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import shlex
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from sampan.parts.node.errors import BuildError
from sampan.parts.node.images.environment import base_interpreter, requirement_lines
from sampan.parts.node.images.image import HOST_BASE, PYTHON, REQUIREMENTS, ImageConfig
from sampan.parts.node.images.reference import Reference
from sampan.parts.node.images.store import ImageStore, sha256

ALWAYS_IGNORED = (".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", ".mypy_cache", ".pytest_cache")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build(
    store: ImageStore, directory: Path, name: str, *, command: str = "", env: Sequence[str] = (), created: str
) -> str:
    """Build ``directory`` into an image named ``name``; returns its manifest digest. Blocks.

    Raises:
        BuildError: the directory has no way to start, or its dependencies cannot be installed.
        ImageNameError: the name is not a reference.
    """
    reference = Reference.parse(name)
    if not directory.is_dir():
        raise BuildError(f"{directory} is not a directory")
    project = _project(directory)
    lines = requirements(directory, project)
    python = bool(lines) or any(directory.rglob("*.py")) or bool(project)
    arguments = entry(directory, project, command)
    layer, diff_id = pack(directory)
    labels = {HOST_BASE: "host"}
    path = DEFAULT_PATH
    if python:
        key = store.environments.ensure(lines)
        labels[PYTHON] = key or "base"
        labels[REQUIREMENTS] = "\n".join(lines)
        path = f"{Path(store.environments.interpreter(key)).parent}:{path}"
        if key:
            path = path.replace(":", f":{Path(base_interpreter()).parent}:", 1)
    settings = [f"PATH={path}"]
    if python and not any(entry.startswith("PYTHONPATH=") for entry in env):
        settings.append(f"PYTHONPATH=/app{':/app/src' if (directory / 'src').is_dir() else ''}")
    config = ImageConfig(cmd=arguments, env=[*settings, *env], working_dir="/app", labels=labels)
    return store.add(str(reference), config, [layer], [diff_id], created)


def _project(directory: Path) -> dict[str, object]:
    file = directory / "pyproject.toml"
    if not file.exists():
        return {}
    try:
        document = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BuildError(f"{file} is not valid TOML: {error}") from error
    project = document.get("project") or {}
    return dict(project)


def requirements(directory: Path, project: dict[str, object]) -> list[str]:
    """The application's requirement lines."""
    file = directory / "requirements.txt"
    if file.exists():
        lines = requirement_lines(file.read_text())
        nested = next((line for line in lines if line.startswith(("-r", "-c", "--requirement", "-e"))), None)
        if nested:
            raise BuildError(f"{file}: {nested!r} is not supported: list the requirements themselves")
        return lines
    dependencies = project.get("dependencies") or []
    return [str(line) for line in dependencies] if isinstance(dependencies, list) else []


def entry(directory: Path, project: dict[str, object], command: str) -> list[str]:
    """The command line that starts the application. Raises BuildError."""
    if command:
        return _words(command)
    procfile = directory / "Procfile"
    if procfile.exists():
        lines = {
            name.strip(): rest.strip()
            for name, colon, rest in (line.partition(":") for line in procfile.read_text().splitlines())
            if colon and not name.lstrip().startswith("#")
        }
        chosen = lines.get("web") or (next(iter(lines.values())) if len(lines) == 1 else "")
        if not chosen:
            raise BuildError(f"{procfile} has no web line and {len(lines)} others: give --command")
        # a Procfile line is a shell line: $PORT is usual in it
        return _words(chosen) if not set("$|&;<>`\"'") & set(chosen) else ["/bin/sh", "-c", f"exec {chosen}"]
    scripts = project.get("scripts")
    if isinstance(scripts, dict) and scripts:
        name = str(project.get("name") or "")
        if len(scripts) > 1 and name not in scripts:
            raise BuildError(f"[project.scripts] has {len(scripts)} entries ({', '.join(scripts)}): give --command")
        target = str(scripts.get(name) or next(iter(scripts.values())))
        module, _, function = target.partition(":")
        top = function.split(".")[0]
        return ["python", "-c", f"from {module} import {top}; raise SystemExit({function}())"]
    for candidate in ("app.py", "main.py", "__main__.py", "server.py"):
        if (directory / candidate).exists():
            return ["python", candidate]
    for candidate in ("start.sh", "run.sh", "entrypoint.sh"):
        if (directory / candidate).exists():
            return ["/bin/sh", candidate]
    raise BuildError(
        f"nothing in {directory} says how to start it: add a Procfile ('web: python server.py'), "
        "[project.scripts] in pyproject.toml, an app.py or main.py, or give --command"
    )


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"the command {text!r} cannot be read: {error}") from error


def pack(directory: Path) -> tuple[bytes, str]:
    """The directory as a gzipped tar layer under ``app/``, and its diff id. The same files give the same bytes."""
    ignored = list(ALWAYS_IGNORED)
    for name in (".dockerignore", ".sampanignore"):
        file = directory / name
        if file.exists():
            ignored += [line.strip("/") for line in requirement_lines(file.read_text()) if not line.startswith("!")]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        top = tarfile.TarInfo("app")
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(top)
        for path in sorted(directory.rglob("*")):
            relative = path.relative_to(directory)
            if any(fnmatch.fnmatch(part, rule) for part in relative.parts for rule in ignored) or any(
                fnmatch.fnmatch(str(relative), rule) for rule in ignored
            ):
                continue
            information = archive.gettarinfo(str(path), f"app/{relative}")
            if information is None:
                continue  # a socket
            information.uid = information.gid = 0
            information.uname = information.gname = ""
            information.mtime = 0
            if information.isreg():
                with path.open("rb") as content_file:
                    archive.addfile(information, content_file)
            else:
                archive.addfile(information)
    content = plain.getvalue()
    return gzip.compress(content, 6, mtime=0), f"sha256:{hashlib.sha256(content).hexdigest()}"


__all__ = ["build", "entry", "pack", "requirements", "sha256"]
