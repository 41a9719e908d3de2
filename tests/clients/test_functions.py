"""``sampan func``: served here with hot reload, and deployed as a Service on real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from sampan.kube.client.resources import NODES
from sampan.testing import Platform


def sampan(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from sampan.cli import main; main()", *arguments]


def fetch(url: str, host: str = "", *, until: str) -> str:
    """Ask until the answer is what it is to be."""
    deadline, text = time.monotonic() + 30, ""
    while text != until:
        assert time.monotonic() < deadline, f"still {text!r}"
        try:
            text = requests.get(url, headers={"Host": host} if host else {}, timeout=20).text
        except requests.ConnectionError as error:
            text = str(error)
        time.sleep(0.05)
    return text


def test_a_function_runs_and_is_served_anew_after_a_change(tmp_path: Path) -> None:
    folder = tmp_path / "greeter"
    subprocess.run(sampan("func", "new", str(folder)), check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        taken = subprocess.run(
            sampan("func", "run", str(folder), "--port", str(port)), capture_output=True, text=True, check=False
        )
        assert f"port {port} cannot be listened on (Address already in use); --port chooses another" in taken.stderr
    process = subprocess.Popen(
        sampan("func", "run", str(folder), "--port", str(port)), stdout=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{port}/?name=you"
        fetch(url, until="Hello you!\n")
        (folder / "app.py").write_text((folder / "app.py").read_text().replace("Hello", "Goodbye"))
        fetch(url, until="Goodbye you!\n")
        # a mistake is told, and the next change mends it
        good = (folder / "app.py").read_text()
        (folder / "app.py").write_text("def hello(:")
        assert process.stdout is not None
        assert "it ended; waiting for a change\n" in process.stdout
        (folder / "app.py").write_text(good.replace("Goodbye", "Welcome"))
        fetch(url, until="Welcome you!\n")
    finally:
        process.terminate()
        assert process.wait(40) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="pods are Linux processes")
def test_a_function_is_deployed_with_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "greeter"
    subprocess.run(sampan("func", "new", str(folder)), check=True)
    with Platform(without=["messaging", "eventing"]) as platform:

        async def nodes() -> int:
            async with platform.client() as client:
                return len((await client.list(NODES)).items)

        deadline = time.monotonic() + 20
        while not platform.run(nodes()):
            assert time.monotonic() < deadline
        environment = {**os.environ, "SAMPAN_DATA_DIR": str(platform.data_dir)}
        line = sampan("func", "deploy", str(folder))
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        port = platform.address("gateway").rpartition(":")[2]
        assert done.stdout.splitlines()[-1] == f"http://greeter.default.localhost:{port}"
        gateway = f"http://{platform.address('gateway')}/?name=all"
        fetch(gateway, "greeter.default.localhost", until="Hello all!\n")
