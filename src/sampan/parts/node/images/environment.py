"""Dependency environments: one virtual environment a set of requirements, shared by every image that has them.

An environment's key is a hash of the interpreter and the requirement lines; its directory is complete once the marker file
is there. ``uv`` makes one in a fraction of a second where it is installed; ``pip`` does otherwise. Without requirements there
is no environment: the base interpreter runs the program. Offline, what pip or uv can find (cache, ``--find-links``) is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sampan.parts.node.errors import BuildError

_COMPLETE = ".complete"


def base_interpreter() -> str:
    """The interpreter Sampan's own environment was made from, without Sampan's packages."""
    found = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(found) if found.exists() else os.path.realpath(sys.executable)


def requirement_lines(text: str) -> list[str]:
    """The lines of a requirements file that say something."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def environment_key(lines: Sequence[str]) -> str:
    """Names the environment of these requirements on this interpreter."""
    told = "\n".join([sys.implementation.cache_tag or "python", os.uname().machine, *sorted(lines)])
    return hashlib.sha256(told.encode()).hexdigest()[:20]


class Environments:
    """The dependency environments under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, key: str) -> Path:
        """Where an environment lies (whether it is there or not)."""
        return self.directory / key

    def interpreter(self, key: str) -> str:
        """Its interpreter; the base one for "" (no requirements)."""
        return str(self.path(key) / "bin" / "python") if key else base_interpreter()

    def ready(self, key: str) -> bool:
        """It is complete."""
        return not key or (self.path(key) / _COMPLETE).exists()

    def ensure(self, lines: Sequence[str]) -> str:
        """Make the environment of these requirements unless it is there; returns its key. Blocks for as long as pip does.

        Raises:
            BuildError: a requirement cannot be installed; the installer's last words are in the message.
        """
        if not lines:
            return ""
        key = environment_key(lines)
        place = self.path(key)
        if self.ready(key):
            return key
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.ready(key):
                return key
            shutil.rmtree(place, ignore_errors=True)
            try:
                self._make(place, lines)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            (place / "requirements.txt").write_text("\n".join(lines) + "\n")
            (place / _COMPLETE).touch()
        return key

    def _make(self, place: Path, lines: Sequence[str]) -> None:
        wanted = place.parent / f"{place.name}.requirements.txt"
        wanted.write_text("\n".join(lines) + "\n")
        try:
            uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
            if uv:
                _run([uv, "venv", "--quiet", "--python", base_interpreter(), str(place)])
                target = ["--python", str(place / "bin" / "python")]
                _run([uv, "pip", "install", "--quiet", "--compile-bytecode", *target, "-r", str(wanted)])
            else:
                _run([base_interpreter(), "-m", "venv", "--without-pip", str(place)])
                python = str(place / "bin" / "python")
                _run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "-r", str(wanted)])
        finally:
            wanted.unlink(missing_ok=True)

    def keys(self) -> list[str]:
        """The complete environments."""
        if not self.directory.is_dir():
            return []
        return sorted(entry.name for entry in self.directory.iterdir() if (entry / _COMPLETE).exists())

    def remove(self, key: str) -> None:
        """Drop an environment; a missing one is fine."""
        shutil.rmtree(self.path(key), ignore_errors=True)
        (self.directory / f"{key}.lock").unlink(missing_ok=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-1500:]
        raise BuildError(f"the dependencies cannot be installed: {words}")
