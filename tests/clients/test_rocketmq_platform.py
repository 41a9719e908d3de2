"""Messaging as a part of the platform: the command line, Kubernetes objects both ways, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sampan.testing
from sampan.kernel.runs import LocalRun
from sampan.parts.messaging import MessagingClient, MessagingClientError
from sampan.parts.messaging.part import MessagingPart

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
TOPIC = """
apiVersion: messaging.sampan.dev/v1
kind: Topic
metadata: {name: orders}
spec: {type: FIFO, queues: 3}
---
apiVersion: messaging.sampan.dev/v1
kind: ConsumerGroup
metadata: {name: billing}
spec: {name: Billing_Group, maxRetries: 3, backoff: {delays: [1s, 2m]}}
"""


def eventually(condition: Callable[[], Any]) -> Any:
    for _ in range(800):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("one_process", [True, False])
def test_objects_and_the_broker_mirror_each_other(tmp_path: Path, one_process: bool) -> None:
    with sampan.testing.Platform(
        only=["kubernetes", "messaging"], data_dir=tmp_path / "data", one_process=one_process
    ) as platform:
        address = platform.address("messaging.grpc")

        def kubectl(*arguments: str, stdin: str = "") -> Any:
            command = [str(KUBECTL), "--kubeconfig", str(platform.kubeconfig), "--cache-dir", str(tmp_path / "cache")]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, input=stdin)
            return json.loads(done.stdout) if done.returncode == 0 and "json" in arguments else done.returncode == 0

        def operate(operation: str, **arguments: Any) -> Any:
            async def call() -> Any:
                async with MessagingClient(address) as client:
                    return await client.operate(operation, **arguments)

            return asyncio.run(call())

        def found(plural: str, name: str) -> Any:
            return kubectl("get", plural, name, "-o", "json")

        eventually(lambda: kubectl("apply", "-f", "-", stdin=TOPIC))
        [row] = eventually(lambda: [row for row in operate("topics") if row["topic"] == "orders"])
        assert (row["type"], row["queues"]) == ("FIFO", 3)
        [row] = eventually(lambda: [row for row in operate("groups") if row["group"] == "Billing_Group"])
        assert row["max_retries"] == 3

        operate("send", topic="On_Demand", body="x")
        [made] = eventually(
            lambda: [
                one for one in kubectl("get", "topics", "-o", "json")["items"] if one["spec"].get("name") == "On_Demand"
            ]
        )
        status = eventually(lambda: found("topics", made["metadata"]["name"]).get("status"))
        assert status["conditions"][0]["status"] == "True"
        assert len(status["queues"]) == 8

        kubectl("delete", "topic", "orders")
        eventually(lambda: not [row for row in operate("topics") if row["topic"] == "orders"])
        operate("delete_topic", name="On_Demand")
        eventually(lambda: not found("topics", made["metadata"]["name"]))


def test_the_command_line_sends_consumes_and_tells(tmp_path: Path) -> None:
    environment = {**os.environ, "SAMPAN_DATA_DIR": str(tmp_path)}

    def command(*arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sampan", *arguments], capture_output=True, text=True, env=environment, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    command("up", "--only", "messaging", "--ports", "auto", "--detach")
    try:
        identifier = command("mq", "send", "orders", "hello", "--tag", "a", "--key", "k-1", "--property", "x=1").strip()
        assert "hello" in command("mq", "peek", "orders")
        assert json.loads(command("mq", "consume", "orders", "-n", "1", "--json"))["id"] == identifier
        rows = json.loads(command("mq", "lag", "sampan-mq", "--json"))
        assert [row["lag"] for row in rows] == [0] * 8
        assert "acknowledged" in command("mq", "trace", "k-1")
        assert "orders" in command("mq", "reset", "sampan-mq", "orders", "--to", "earliest")
        assert "attempt=1" in command("mq", "consume", "orders", "-n", "1")
        assert "no message has" in command("mq", "trace", "nothing", check=False)
        assert "[40403] consumer group nobody does not exist" in command("mq", "lag", "nobody", check=False)
        assert "does not exist" in command("mq", "dlq", "list", "nobody", check=False)
        assert "has no dead letters" in command("mq", "dlq", "list", "sampan-mq")
        assert "not in the range" in command("mq", "create-topic", "x", "--queues", "0", check=False)
        assert "more than 259200 seconds ahead" in command("mq", "send", "orders", "x", "--delay", "4d", check=False)
        assert "is not a duration" in command("mq", "send", "orders", "x", "--delay", "soon", check=False)
        made = command("mq", "create-topic", "chat", "--type", "lite", "--attribute", "lite.topic.expiration=60")
        assert made.strip() == "chat: LITE, 8 queues"
        assert len(command("mq", "user", "set", "ann").strip()) >= 32
        command("mq", "acl", "add", "ann", "Topic:orders", "Pub", "Sub", "--source", "127.0.0.0/8")
        command("mq", "acl", "add", "ann", "Topic:secret*", "All", "--deny")
        assert "Pub,Sub  127.0.0.0/8" in command("mq", "acl", "list")
        assert "is no address" in command("mq", "acl", "add", "ann", "*", "All", "--source", "x", check=False)
        command("mq", "acl", "delete", "ann", "--resource", "Topic:secret*")
        [policy] = json.loads(command("mq", "acl", "list", "--json"))
        assert [entry["resource"] for entry in policy["entries"]] == ["Topic:orders"]
        command("mq", "user", "delete", "ann")
        assert json.loads(command("mq", "user", "list", "--json")) == []
        assert json.loads(command("mq", "acl", "list", "--json")) == []
    finally:
        command("down")


@pytest.mark.sampan(only=["messaging"])
def test_metrics_carry_the_reference_names(platform: sampan.testing.Platform) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from sampan.parts.messaging.metrics import BrokerMetrics

    address = platform.address("messaging.grpc")

    async def use() -> None:
        async with MessagingClient(address) as client:
            await client.send("t", b"x")
            await client.receive("g", "t")

    asyncio.run(use())
    run = platform.kernel._runs["messaging"]
    assert isinstance(run, LocalRun)
    part = run.part
    assert isinstance(part, MessagingPart)
    assert part._core is not None
    assert part._server is not None
    registry = CollectorRegistry()
    registry.register(BrokerMetrics(part._core, part._server))
    text = platform.call(lambda: generate_latest(registry).decode())
    assert "rocketmq_messages_in_total{" in text
    assert "rocketmq_consumer_lag_messages{" in text
    assert 'consumer_group="g"' in text
    assert "rocketmq_consumer_inflight_messages" in text
    assert "rocketmq_storage_size" in text


@pytest.mark.sampan(only=["messaging"], settings={"messaging.host": "0.0.0.0"})
def test_listening_beyond_loopback_demands_credentials_made_at_the_first_start(
    platform: sampan.testing.Platform,
) -> None:
    port = platform.address("messaging.grpc").rpartition(":")[2]
    path = platform.data_dir / "parts" / "messaging" / "credentials.json"
    assert path.stat().st_mode & 0o077 == 0
    credentials = json.loads(path.read_text())

    async def send(**keys: Any) -> int:
        async with MessagingClient(f"127.0.0.1:{port}", **keys) as client:
            try:
                await client.send("t", b"x")
            except MessagingClientError as error:
                return error.code
        return 20000

    assert asyncio.run(send()) == 40100
    signed = {"access_key": credentials["accessKey"], "secret_key": credentials["secretKey"]}
    assert asyncio.run(send(**signed)) == 20000
