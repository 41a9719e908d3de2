"""Apache's own RocketMQ and Kafka as peers of the eventing tests: fetched by Maven, run by Java with small heaps.

They take a minute and half a gigabyte, so they run only where ``SAMPAN_PEERS=1`` asks for them:

    SAMPAN_PEERS=1 python -m pytest tests/clients/test_eventing_peers.py
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

WANTED = pytest.mark.skipif(
    not (os.environ.get("SAMPAN_PEERS") and shutil.which("java") and shutil.which("mvn")),
    reason="Apache's servers run where SAMPAN_PEERS=1 asks for them and Java and Maven are installed",
)
ROCKETMQ = tuple(("org.apache.rocketmq", f"rocketmq-{name}", "5.3.3") for name in ("proxy", "namesrv", "tools"))
KAFKA = (("org.apache.kafka", "kafka_2.13", "3.9.1"), ("org.slf4j", "slf4j-simple", "1.7.36"))
OPENED = (
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
)
"""Java's insides that RocketMQ reaches for."""
PATIENCE = 90.0


class Java:
    """Programs of one class path, in one folder; those that still run are killed when it is left."""

    def __init__(self, folder: Path, artifacts: Sequence[tuple[str, str, str]]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = _class_path(folder, artifacts)
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def command(self, main: str, *arguments: str, heap: str = "128m", options: Sequence[str] = ()) -> list[str]:
        opened = (f"-Xmx{heap}", f"-Duser.home={self.folder}", *OPENED, *options)
        return ["java", *opened, "-cp", self._path, main, *arguments]

    def run(self, main: str, *arguments: str) -> str:
        """A program's output; it must end well."""
        done = subprocess.run(self.command(main, *arguments), capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, main: str, *arguments: str, port: int, heap: str, options: Sequence[str] = (), **more: str) -> int:
        """A server, once it listens; its pid."""
        log = self.folder / f"{main.rsplit('.', 1)[-1]}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(main, *arguments, heap=heap, options=options),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **more},
            )
        self._running.append(process)
        until = time.monotonic() + PATIENCE
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process.pid
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def kill(self, pid: int) -> None:
        """As a failing machine would."""
        (process,) = [one for one in self._running if one.pid == pid]
        self._running.remove(process)
        process.send_signal(signal.SIGKILL)
        process.wait()


class RocketMQ(Java):
    """A name server, and one process that is broker and proxy."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ROCKETMQ)
        self._names, self._port, self._broker, self._remoting, self._replicas = free_ports(5)
        self.address = f"127.0.0.1:{self._port}"
        """The proxy's gRPC address."""
        self.pid = 0

    def __enter__(self) -> Self:
        conf = self.folder / "conf"
        conf.mkdir(exist_ok=True)
        names = f"127.0.0.1:{self._names}"
        (conf / "names.conf").write_text(f"listenPort={self._names}\n")
        (conf / "broker.conf").write_text(
            f"brokerClusterName=DefaultCluster\nbrokerName=broker-a\nbrokerId=0\nlistenPort={self._broker}\n"
            f"haListenPort={self._replicas}\nbrokerIP1=127.0.0.1\nnamesrvAddr={names}\nstorePathRootDir={self.folder}/store\n"
            f"storePathCommitLog={self.folder}/store/commitlog\nmappedFileSizeCommitLog=16777216\nflushDiskType=SYNC_FLUSH\n"
        )
        (conf / "rmq-proxy.json").write_text(
            f'{{"rocketMQClusterName": "DefaultCluster", "namesrvAddr": "{names}", "grpcServerPort": {self._port}, '
            f'"remotingListenPort": {self._remoting}, "proxyMode": "local"}}'
        )
        arguments = ("-c", str(conf / "names.conf"))
        main = "org.apache.rocketmq.namesrv.NamesrvStartup"
        self.start(main, *arguments, port=self._names, heap="128m", ROCKETMQ_HOME=str(self.folder))
        self.up()
        return self

    def up(self) -> None:
        """Start the process of broker and proxy, for the first time or again."""
        conf = self.folder / "conf"
        self.pid = self.start(
            "org.apache.rocketmq.proxy.ProxyStartup",
            *("-pm", "local", "-bc", str(conf / "broker.conf"), "-pc", str(conf / "rmq-proxy.json")),
            port=self._port,
            heap="512m",
            options=("-XX:MaxDirectMemorySize=256m",),
            ROCKETMQ_HOME=str(self.folder),
        )

    def admin(self, *arguments: str) -> None:
        """One of RocketMQ's own administrative commands, at the broker."""
        where = ("-n", f"127.0.0.1:{self._names}", "-b", f"127.0.0.1:{self._broker}")
        output = self.run("org.apache.rocketmq.tools.command.MQAdminStartup", arguments[0], *where, *arguments[1:])
        assert "success" in output, output


class Kafka(Java):
    """A cluster of one, without ZooKeeper; one may log in as ``app``, by PLAIN."""

    PASSWORD = "hidden"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, KAFKA)
        self._port, self._controller = free_ports(2)
        self.address = f"127.0.0.1:{self._port}"
        self.pid = 0

    def __enter__(self) -> Self:
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        (self.folder / "server.properties").write_text(
            f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{self._controller}
listeners=CLIENTS://{self.address},CONTROLLER://127.0.0.1:{self._controller}
advertised.listeners=CLIENTS://{self.address}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENTS:SASL_PLAINTEXT
inter.broker.listener.name=CLIENTS
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.clients.plain.sasl.jaas.config={plain} required username="node" password="{self.PASSWORD}" \\
  user_node="{self.PASSWORD}" user_app="{self.PASSWORD}";
log.dirs={self.folder}/data
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""
        )
        identifier = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.run("kafka.tools.StorageTool", "format", "-t", identifier, "-c", str(self.folder / "server.properties"))
        self.up()
        return self

    def up(self) -> None:
        """Start it, for the first time or again."""
        self.pid = self.start(
            "kafka.Kafka",
            str(self.folder / "server.properties"),
            port=self._port,
            heap="400m",
            options=("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",),
        )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _class_path(folder: Path, artifacts: Sequence[tuple[str, str, str]]) -> str:
    """The jars of some artifacts and of what they need, as Maven has them."""
    wanted = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in artifacts
    )
    (folder / "pom.xml").write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>peers</groupId>'
        f"<artifactId>peers</artifactId><version>1</version><dependencies>{wanted}</dependencies></project>"
    )
    command = ["mvn", "-q", "-B", "-f", str(folder / "pom.xml"), "dependency:build-classpath"]
    done = subprocess.run([*command, f"-Dmdep.outputFile={folder}/path"], capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"Maven reaches no registry: {done.stdout[-500:]}")
    return (folder / "path").read_text().strip()
