"""The official Node, Java and Go clients, where their toolchains and registries are at hand."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
from pathlib import Path

import pytest

from sampan.kernel.certificates import Authority
from sampan.parts.messaging.topology import Backoff, GroupConfig, TopicConfig
from tests.clients.messaging_harness import broker

HERE = Path(__file__).parent
UNREACHABLE = (
    "Could not resolve",
    "Could not transfer",
    "ENOTFOUND",
    "ECONNREFUSED",
    "EAI_AGAIN",
    "ETIMEDOUT",
    "dial tcp",
    "requires go >=",
)


async def run(*command: str, cwd: Path, home: Path | None = None) -> str:
    """A command's output; skips the test when a package registry cannot be reached."""
    environment = {**os.environ, **({"HOME": str(home)} if home is not None else {})}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output = (await asyncio.wait_for(process.communicate(), 240))[0].decode()
    except TimeoutError:
        process.kill()
        raise
    if process.returncode and any(sign in output for sign in UNREACHABLE):
        pytest.skip(f"{command[0]} reaches no package registry, or is too old for the client")
    assert process.returncode == 0, output
    return output


@pytest.mark.toolchain("node")
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="Node is not installed")
async def test_the_node_client_sends_receives_and_retries(tmp_path: Path) -> None:
    project = tmp_path / "judge"
    shutil.copytree(HERE / "rocketmq_node", project)
    await run("npm", "install", "--silent", "--no-audit", "--no-fund", "--fetch-retries=1", cwd=project)
    async with broker(tmp_path / "mq") as running:
        output = await run("node", "judge.js", running.address, cwd=project, home=tmp_path)
    seen = json.loads(output.strip().splitlines()[-1])
    assert seen["simple"] == {"id": seen["sent"], "body": "hello", "tag": "a", "attempt": 1}
    assert seen["push"] == [["again", 1], ["again", 2], ["hello", 1]]


@pytest.mark.toolchain("java")
@pytest.mark.skipif(not shutil.which("mvn"), reason="Maven is not installed")
async def test_the_java_client_works_over_tls_as_it_comes(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")

    def context() -> ssl.SSLContext:
        return authority.server_context(["localhost", "127.0.0.1"], leaf="messaging")

    async with broker(tmp_path / "mq", tls=context) as running:
        output = await run(
            "mvn",
            *("-q", "-B", "-f", str(HERE / "rocketmq_java" / "pom.xml"), f"-Djudge.target={tmp_path / 'target'}"),
            *("compile", "exec:java", f"-Dexec.args={running.address}"),
            cwd=tmp_path,
        )
    lines = [line for line in output.splitlines() if line.split(" ")[0].endswith(("sent", "simple", "enough", "push"))]
    identifier = lines[0].split()[-1]
    assert lines[1:] == [f"simple {identifier} hello a v 1", "enough true", "push [tx 1, tx 2]"]


@pytest.mark.toolchain("go")
@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
async def test_the_go_client_works_over_tls_as_it_comes(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")

    def context() -> ssl.SSLContext:
        return authority.server_context(["localhost", "127.0.0.1"], leaf="messaging")

    judge = tmp_path / "judge"
    await run("go", "build", "-o", str(judge), ".", cwd=HERE / "rocketmq_go")
    async with broker(tmp_path / "mq", tls=context) as running:
        running.core.broker.create_topic(TopicConfig("go-fifo", "FIFO", queues=2))
        running.core.broker.create_group(GroupConfig("go-push", backoff=Backoff(delays_ms=(1000,))))
        output = await run(str(judge), running.address, cwd=tmp_path, home=tmp_path)
    lines = [line for line in output.splitlines() if line.split(" ")[0] in ("sent", "simple", "push")]
    identifier = lines[0].split()[-1]
    assert lines[1] == f"simple {identifier} hello a v 1"
    assert lines[2].split()[2:] == ["delayed", "1"]
    assert lines[3:] == ["push [tx:1 tx:2] [0:1 1:1 2:1 3:1 4:1 5:1]"]
