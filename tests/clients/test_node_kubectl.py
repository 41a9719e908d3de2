"""kubectl against a platform whose node runs real pods: each verb a user reaches for."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import struct
import sysconfig
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sampan.testing.platform import Platform

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts"))

pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="needs kubectl"),
    pytest.mark.xdist_group("node-kubectl"),
]


class Kubectl:
    """Runs kubectl commands against one platform."""

    def __init__(self, kubeconfig: Path) -> None:
        self.env = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    async def start(self, *args: str) -> asyncio.subprocess.Process:
        assert KUBECTL is not None
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(KUBECTL, *args, stdin=pipe, stdout=pipe, stderr=pipe, env=self.env)

    async def run(self, *args: str, stdin: bytes = b"", code: int = 0) -> str:
        process = await self.start(*args)
        async with asyncio.timeout(40):
            out, err = await process.communicate(stdin)
        assert process.returncode == code, (args, out.decode(), err.decode())
        return out.decode()

    async def apply(self, *objects: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        await self.run("apply", "-f", "-", stdin=json.dumps(listed).encode())

    async def ready(self, *names: str) -> None:
        await self.run("wait", "--for=condition=Ready", "--timeout=30s", *names)

    async def get(self, *args: str) -> Any:
        return json.loads(await self.run("get", *args, "-o", "json"))

    async def shows(self, *args: str, words: tuple[str, ...]) -> str:
        """What a command prints once it tells all of this: logs and Events are written after what they tell of."""
        deadline = time.monotonic() + 30
        while True:
            out, err = await (await self.start(*args)).communicate()
            missing = [word for word in words if word not in out.decode()]
            if not missing:
                return out.decode()
            assert time.monotonic() < deadline, (args, missing, out.decode(), err.decode())
            await asyncio.sleep(0.1)


def pod(name: str, image: str = "busybox", *command: str, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "c", "image": image}
    if command:
        container["command"] = list(command)
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2, **spec},
    }


@pytest.fixture
async def kubectl() -> AsyncIterator[Kubectl]:
    async with Platform(only=["kubernetes", "node", "workloads", "network"]) as platform:
        yield Kubectl(platform.kubeconfig)


async def test_logs_exec_attach_cp_and_debug(kubectl: Kubectl, tmp_path: Path) -> None:
    counting = "echo start; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"
    reader = "while read x; do echo got $x; done"
    await kubectl.apply(
        pod("box", "busybox", "sh", "-c", counting),
        pod("reader", "busybox", "sh", "-c", reader, container={"stdin": True}),
    )
    await kubectl.ready("pod/box", "pod/reader")
    assert (await kubectl.shows("logs", "box", words=("line 1\n",))).startswith("start\nline 1\n")
    stamped = (await kubectl.run("logs", "box", "--tail=1", "--timestamps")).split(" ", 1)
    assert stamped[0].endswith("Z")
    assert stamped[1].startswith("line ")
    following = await kubectl.start("logs", "-f", "box")
    assert following.stdout is not None
    lines = [await asyncio.wait_for(following.stdout.readline(), 30) for _ in range(4)]
    following.kill()
    await following.wait()
    assert lines[:2] == [b"start\n", b"line 1\n"]
    assert await kubectl.run("exec", "box", "--", "sh", "-c", "echo hi; exit 4", code=4) == "hi\n"
    big = b"0123456789abcdef" * 20000
    assert (await kubectl.run("exec", "-i", "box", "--", "cat", stdin=big)).encode() == big
    assert "$PATH" in (await (await kubectl.start("exec", "box", "--", "nope")).communicate())[1].decode()
    source = tmp_path / "file"
    source.write_bytes(os.urandom(300_000))
    await kubectl.run("cp", str(source), "box:/tmp/x")
    await kubectl.run("cp", "box:/tmp/x", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    attached = await kubectl.start("attach", "-i", "reader")
    assert attached.stdin is not None
    assert attached.stdout is not None
    attached.stdin.write(b"one\n")
    assert await asyncio.wait_for(attached.stdout.readline(), 30) == b"got one\n"
    attached.kill()
    await attached.wait()
    await kubectl.run("debug", "box", "--image=busybox", "-c", "dbg", "--", "sh", "-c", "echo debugging")
    await kubectl.shows("logs", "box", "-c", "dbg", words=("debugging",))
    assert (
        await kubectl.run(
            "run",
            "-i",
            "--rm",
            "-q",
            "once",
            "--image=busybox",
            "--restart=Never",
            "--",
            "sh",
            "-c",
            "read x; echo got $x",
            stdin=b"abc\n",
        )
        == "got abc\n"
    )


async def test_a_terminal_is_a_terminal_at_both_ends(kubectl: Kubectl) -> None:
    await kubectl.apply(pod("box", "busybox", "sleep", "1000"))
    await kubectl.ready("pod/box")
    assert KUBECTL is not None
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = await asyncio.create_subprocess_exec(
        KUBECTL, "exec", "-it", "box", "--", "sh", stdin=theirs, stdout=theirs, stderr=theirs, env=kubectl.env
    )
    os.close(theirs)
    os.write(
        ours,
        b"stty size; test -t 1 && echo it is $((6*7)); while [ \"$(stty size)\" = '33 101' ]; do sleep 0.1; done; ",
    )
    os.write(ours, b"stty size; exit 5\n")
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 102, 0, 0))
    process.send_signal(signal.SIGWINCH)
    shown = await asyncio.to_thread(_until_closed, ours)
    assert await asyncio.wait_for(process.wait(), 20) == 5
    assert "33 101" in shown
    assert "it is 42" in shown
    assert "44 102" in shown


def _until_closed(terminal: int) -> str:
    shown = b""
    while True:
        try:
            data = os.read(terminal, 4096)
        except OSError:
            data = b""
        if not data:
            os.close(terminal)
            return shown.decode(errors="replace")
        shown += data


async def test_a_drained_node_gives_its_pods_up_and_takes_them_back(kubectl: Kubectl) -> None:
    await kubectl.run("create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sleep", "1000")
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")
    (node,) = (await kubectl.get("nodes"))["items"]
    name = node["metadata"]["name"]
    before = {item["metadata"]["uid"] for item in (await kubectl.get("pods"))["items"]}
    told = await kubectl.run("drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=38s")
    assert told.count("pod/web-") >= 2
    assert "drained" in told
    waiting = (await kubectl.get("pods"))["items"]
    assert not before & {item["metadata"]["uid"] for item in waiting}
    assert {item["status"]["phase"] for item in waiting} == {"Pending"}
    await kubectl.shows("get", "events", words=("unschedulable",))
    await kubectl.run("uncordon", name)
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")


async def test_a_pod_is_somebody_to_the_api(kubectl: Kubectl) -> None:
    await kubectl.run("run", "box", "--image=busybox", "--", "sleep", "1000")
    await kubectl.ready("pod/box")
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert await kubectl.run("exec", "box", "--", "cat", f"{place}/namespace") == "default"
    assert "BEGIN CERTIFICATE" in await kubectl.run("exec", "box", "--", "cat", f"{place}/ca.crt")
    token = await kubectl.run("exec", "box", "--", "cat", f"{place}/token")
    # without the kubeconfig's client certificate, which would speak first
    (cluster,) = json.loads(await kubectl.run("config", "view", "--raw", "-o", "json"))["clusters"]
    bare = ["--kubeconfig=/dev/null", f"--server={cluster['cluster']['server']}", "--insecure-skip-tls-verify"]
    whoami = json.loads(await kubectl.run(*bare, f"--token={token}", "auth", "whoami", "-o", "json"))
    assert whoami["status"]["userInfo"]["username"] == "system:serviceaccount:default:default"
    assert whoami["status"]["userInfo"]["extra"]["authentication.kubernetes.io/pod-name"] == ["box"]


async def test_port_forward_carries_many_connections(kubectl: Kubectl) -> None:
    probe = {"readinessProbe": {"httpGet": {"path": "/", "port": 80}}, "ports": [{"containerPort": 80}]}
    await kubectl.apply(pod("web", "nginx", container=probe))
    await kubectl.ready("pod/web")
    forwarding = await kubectl.start("port-forward", "pod/web", ":80")
    assert forwarding.stdout is not None
    line = (await asyncio.wait_for(forwarding.stdout.readline(), 30)).decode()
    port = line.split("127.0.0.1:")[1].split(" ")[0]
    async with aiohttp.ClientSession() as session:

        async def fetch() -> str:
            async with session.get(f"http://127.0.0.1:{port}/", headers={"Connection": "close"}) as response:
                return await response.text()

        pages = await asyncio.gather(*(fetch() for _ in range(20)))
    assert all("Welcome to nginx!" in page for page in pages)
    forwarding.terminate()
    await forwarding.wait()


async def test_configuration_reaches_the_container_and_follows_changes(kubectl: Kubectl) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "cm", "namespace": "default"},
        "data": {"k": "one"},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "default"},
        "stringData": {"p": "hush"},
    }
    container = {
        "env": [
            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "envFrom": [{"secretRef": {"name": "s"}}],
        "volumeMounts": [{"name": "cm", "mountPath": "/config"}, {"name": "shared", "mountPath": "/shared"}],
    }
    volumes = [{"name": "cm", "configMap": {"name": "cm"}}, {"name": "shared", "emptyDir": {"medium": "Memory"}}]
    init = [
        {
            "name": "i",
            "image": "busybox",
            "command": ["sh", "-c", "echo prepared > /shared/f"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }
    ]
    script = "cat /shared/f; echo $K $p; cat /config/k; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; sleep 1000"
    waiting = pod("box", "busybox", "sh", "-c", script, container=container, volumes=volumes, initContainers=init)
    await kubectl.apply(waiting)
    await kubectl.shows("get", "events", words=("FailedMount",))
    await kubectl.apply(config, secret)
    await kubectl.ready("pod/box")
    assert await kubectl.shows("logs", "box", words=("token",)) == "prepared\none hush\none" + "token\n"
    await kubectl.apply({**config, "data": {"k": "two"}})
    await kubectl.shows("exec", "box", "--", "cat", "/config/k", words=("two",))
    assert await kubectl.run("exec", "box", "--", "sh", "-c", "echo $K") == "one\n"


async def test_what_goes_wrong_is_told_as_on_a_cluster(kubectl: Kubectl) -> None:
    live = {"livenessProbe": {"exec": {"command": ["cat", "/alive"]}, "periodSeconds": 1, "failureThreshold": 1}}
    await kubectl.apply(
        pod("image", "mysql:8"),
        pod("command", "busybox", "no-such-command"),
        pod(
            "crash",
            "busybox",
            "sh",
            "-c",
            "echo dying; exit 3",
            container={"terminationMessagePolicy": "FallbackToLogsOnError"},
        ),
        pod("probe", "busybox", "sleep", "1000", container=live),
        pod(
            "key",
            "busybox",
            "true",
            container={"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k"}}}]},
        ),
        pod("late", "busybox", "sleep", "1000", activeDeadlineSeconds=1),
        pod("done", "busybox", "true", restartPolicy="Never"),
    )
    wanted = {
        "image": {"ImagePullBackOff"},
        "command": {"RunContainerError"},
        "crash": {"CrashLoopBackOff"},
        "key": {"CreateContainerConfigError"},
    }
    for _ in range(300):
        pods = {item["metadata"]["name"]: item["status"] for item in (await kubectl.get("pods"))["items"]}
        found = {name: status.get("containerStatuses", [{}])[0] for name, status in pods.items()}
        reasons = {name: status.get("state", {}).get("waiting", {}).get("reason") for name, status in found.items()}
        if (
            all(reasons[name] in wanted[name] for name in wanted)
            and pods["late"].get("reason") == "DeadlineExceeded"
            and pods["done"]["phase"] == "Succeeded"
            and found["probe"]["restartCount"] > 0
        ):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail(str(reasons) + str(pods["late"]))
    last = found["crash"]["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"], last["message"]) == (3, "Error", "dying")
    assert "sampan image build" in found["image"]["state"]["waiting"]["message"]
    assert pods["late"]["phase"] == "Failed"
    wrongs = ("Failed to pull image", "Liveness probe failed", "Back-off restarting failed", 'secret "no" not found')
    await kubectl.shows("get", "events", words=wrongs)
    assert "dying" in await kubectl.run("logs", "crash", "--previous")


async def test_a_deployment_rolls_out_scales_and_goes(kubectl: Kubectl) -> None:
    await kubectl.run("create", "deployment", "web", "--image=nginx:1.27", "--replicas=2")
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")
    await kubectl.run("set", "image", "deployment/web", "nginx=nginx:1.28")
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")
    await kubectl.run("rollout", "undo", "deployment/web")
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")
    await kubectl.run("scale", "deployment/web", "--replicas=4")
    await kubectl.run("rollout", "status", "deployment/web", "--timeout=30s")
    pods = (await kubectl.get("pods", "-l", "app=web"))["items"]
    running = [item for item in pods if not item["metadata"].get("deletionTimestamp")]
    assert len({item["status"]["podIP"] for item in running}) == len(running) == 4
    await kubectl.run("delete", "deployment", "web")
    await kubectl.run("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=30s")


async def test_a_port_of_the_node_leads_to_one_pod_at_a_time(kubectl: Kubectl) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    ports = {"ports": [{"containerPort": 80, "hostPort": number}]}
    await kubectl.apply(pod("first", "nginx", container=ports))
    await kubectl.ready("pod/first")
    assert "Welcome to nginx!" in await fetched(number)
    await kubectl.apply(pod("second", "httpd", container=ports))
    await kubectl.run("wait", "--for=condition=PodScheduled=false", "pod/second", "--timeout=30s")
    (refused,) = [
        each for each in (await kubectl.get("pod", "second"))["status"]["conditions"] if each["type"] == "PodScheduled"
    ]
    assert "1 node(s) didn't have free ports for the requested pod ports" in refused["message"]
    await kubectl.run("delete", "pod", "first", "--wait=true")
    await kubectl.ready("pod/second")
    assert "It works!" in await fetched(number)


async def fetched(port: int) -> str:
    """The page at a port of the node; it may take a moment until somebody listens there."""
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    return await answer.text()
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


async def test_sub_paths_are_made_in_any_volume_and_lead_out_of_none(kubectl: Kubectl) -> None:
    volumes = [{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]
    script = "echo one > /sub/a; echo two > /mem/b; cat /all/s/x/b"
    writer = pod("writer", "busybox", "sh", "-c", f"{script}; sleep 1000")
    writer["spec"]["volumes"] = volumes
    writer["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "disk", "mountPath": "/whole"},
        {"name": "disk", "mountPath": "/sub", "subPath": "s/x"},
        {"name": "memory", "mountPath": "/mem", "subPath": "s/x"},
        {"name": "memory", "mountPath": "/all"},
    ]
    await kubectl.apply(writer)
    await kubectl.ready("pod/writer")
    async with asyncio.timeout(20):
        while "two" not in await kubectl.run("logs", "writer"):
            await asyncio.sleep(0.05)
    assert await kubectl.run("exec", "writer", "--", "cat", "/whole/s/x/a") == "one\n"
    reader = pod("reader", "busybox", "sh", "-c", "ls /stolen")
    reader["spec"]["volumes"] = volumes
    reader["spec"]["initContainers"] = [
        {
            "name": "link",
            "image": "busybox",
            "command": ["ln", "-s", "/", "/whole/out"],
            "volumeMounts": [{"name": "disk", "mountPath": "/whole"}],
        }
    ]
    reader["spec"]["containers"][0]["volumeMounts"] = [{"name": "disk", "mountPath": "/stolen", "subPath": "out/etc"}]
    await kubectl.apply(reader)
    async with asyncio.timeout(30):
        while True:
            (status,) = (await kubectl.get("pod", "reader"))["status"].get("containerStatuses") or [{}]
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("reason") == "CreateContainerConfigError":
                break
            await asyncio.sleep(0.1)
    assert "leads out of its volume" in waiting["message"]
