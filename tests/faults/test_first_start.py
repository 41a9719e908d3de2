"""A platform's very first start: what it leaves loaded, and what it leaves on the disk when it is killed in the middle."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sampan.kernel.folder import DataDirectory
from sampan.kube.client.http import HttpClient
from sampan.kube.resources import CLUSTER_ROLES, NAMESPACES, SERVICES

UP = ["up", "--only", "kubernetes", "--ports", "auto"]


def sampan(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sampan", "--data-dir", str(data), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    sampan(folder, "down")


def test_the_core_does_not_keep_what_making_certificates_takes(data: Path) -> None:
    up = sampan(data, *UP, "--detach")
    assert up.returncode == 0, up.stderr
    core = psutil.Process(int((data / "lock").read_text()))
    assert not [region.path for region in core.memory_maps() if "cryptography" in region.path]
    assert not [child for child in core.children() if child.status() == psutil.STATUS_ZOMBIE]
    assert not (data / "pki" / "unfinished").exists()


def killed_at(data: Path, milestone: str) -> None:
    """Start a platform and kill it as soon as a file is there."""
    command = [sys.executable, "-m", "sampan", "--data-dir", str(data), *UP]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (data / milestone).exists():
            assert first.poll() is None
            time.sleep(0.001)
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("milestone", ["pki/ca.key", "pki/ca.crt", "parts/kubernetes/objects.db-wal", "kubeconfig"])
async def test_a_first_start_that_was_killed_is_made_good_by_the_next(data: Path, milestone: str) -> None:
    await asyncio.to_thread(killed_at, data, milestone)
    up = await asyncio.to_thread(sampan, data, *UP, "--detach")
    assert up.returncode == 0, up.stderr
    assert DataDirectory(data).holder()
    async with HttpClient.from_kubeconfig(data / "kubeconfig") as client:
        assert len((await client.list(NAMESPACES)).items) == 4
        assert len((await client.list(CLUSTER_ROLES)).items) > 30
        assert (await client.get(SERVICES, "kubernetes", "default"))["spec"]["clusterIP"] == "10.96.0.1"


_BY_A_CHILD = """
import os, sys
from pathlib import Path
from sampan.kernel.certificates import Authority
from sampan.kernel.issuing import IssuingProcess

issuing = IssuingProcess.fork()
authority = Authority(Path(sys.argv[1]), issuing=issuing)
authority.client_context(authority.client_certificate("ann", ["cooks"]))
assert not [name for name in sys.modules if name.startswith("cryptography")]
issuing.close()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    pass
else:
    raise AssertionError("the child is still there")
authority.client_context(authority.client_certificate("bob"))
assert "cryptography.x509" in sys.modules
"""


def test_a_child_makes_certificates_and_one_that_has_ended_is_done_without(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _BY_A_CHILD, str(tmp_path)], check=True, timeout=30)


def test_a_shells_small_limit_of_open_files_is_no_limit_of_the_platform(data: Path) -> None:
    command = shlex.join([sys.executable, "-m", "sampan", "--data-dir", str(data), *UP, "--detach"])
    subprocess.run(["/bin/sh", "-c", f"ulimit -S -n 256 && {command}"], check=True, timeout=90)
    soft, hard = psutil.Process(int((data / "lock").read_text())).rlimit(psutil.RLIMIT_NOFILE)
    assert soft == min(hard, 65_536)
