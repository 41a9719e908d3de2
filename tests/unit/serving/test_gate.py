"""The gate's socket, its way of asking pods, and the audit of places whose end was not reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sampan.kernel import addresses
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key, Object
from sampan.parts.node import PodAddresses
from sampan.parts.serving.activator import gate as module
from sampan.parts.serving.activator.gate import AUDIT_ROUNDS, Gate
from sampan.parts.serving.activator.readiness import Question, answers, question
from sampan.parts.serving.activator.socket import Ask, GateServer, Reply
from sampan.parts.traffic import ClusterLoad, Load

POD = "127.64.200.7"


class Asked:
    """What a socket asked for, answered by the test."""

    def __init__(self) -> None:
        self.open: dict[str, Reply] = {}
        self.gone: list[str] = []

    def __call__(self, path: str, reply: Reply) -> Callable[[], None] | None:
        if path.startswith("/now"):
            reply(200, "", {"x-slot": "1"})
            return None
        self.open[path] = reply
        return lambda: self.gone.append(path)


async def listening(folder: Path, ask: Ask) -> GateServer:
    server = GateServer(ask)
    await server.open(folder / "gate")
    return server


async def test_a_socket_that_closes_answers_and_hangs_up(tmp_path: Path) -> None:
    asked = Asked()
    server = await listening(tmp_path, asked)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gate"))
    writer.write(b"GET /later/b HTTP/1.1\r\n\r\n")
    while not asked.open:
        await asyncio.sleep(0.001)
    asked.open["/later/b"](503, "the revision is gone", {})
    server.close()
    assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
    writer.close()


async def test_questions_are_answered_at_once_or_later_on_one_connection(tmp_path: Path) -> None:
    asked = Asked()
    server = await listening(tmp_path, asked)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gate"))
    writer.write(b"GET /now/a HTTP/1.1\r\nhost: gate\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-slot: 1\r\n\r\n"
    for piece in (b"GET /lat", b"er/b HTTP/1.1\r\nhost: g", b"ate\r\n\r\n"):
        writer.write(piece)
        await asyncio.sleep(0.01)
    asked.open["/later/b"](503, "pending request queue full", {})
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert await reader.readexactly(26) == b"pending request queue full"
    writer.close()
    server.close()


def test_the_event_loop_of_the_platform_serves_questions_too(tmp_path: Path) -> None:
    async def ask() -> bytes:
        server = await listening(tmp_path, Asked())
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gate"))
        writer.write(b"GET /now/a HTTP/1.1\r\nhost: gate\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        server.close()
        return answer

    assert uvloop.run(ask()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_who_closes_the_connection_leaves_the_line(tmp_path: Path) -> None:
    asked = Asked()
    server = await listening(tmp_path, asked)
    _, writer = await asyncio.open_unix_connection(str(tmp_path / "gate"))
    writer.write(b"GET /later/b HTTP/1.1\r\n\r\n")
    while not asked.open:
        await asyncio.sleep(0.001)
    writer.close()
    while not asked.gone:
        await asyncio.sleep(0.001)
    assert asked.gone == ["/later/b"]
    asked.open["/later/b"](200, "", {})  # an answer that comes too late harms nobody
    server.close()


async def test_what_is_no_question_is_refused(tmp_path: Path) -> None:
    server = await listening(tmp_path, Asked())
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gate"))
    writer.write(b"POST / HTTP/1.1\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    writer.close()
    server.close()


def revision(probe: Mapping[str, Any]) -> Object:
    return {"spec": {"containers": [{"image": "x", "ports": [{"containerPort": 3000}], "readinessProbe": probe}]}}


@pytest.mark.parametrize(
    ("probe", "asked"),
    [
        ({"tcpSocket": {"port": 0}}, Question(3000, "")),
        ({"tcpSocket": {"port": 4000}}, Question(4000, "")),
        ({"httpGet": {"path": "/healthz"}}, Question(3000, "/healthz")),
        (
            {"httpGet": {"port": 4000, "httpHeaders": [{"name": "A", "value": "b"}]}},
            Question(4000, "/", (("A", "b"),)),
        ),
        ({"httpGet": None, "exec": None}, Question(3000, "")),
        ({"exec": {"command": ["true"]}}, None),
        ({"grpc": {"port": 0}}, None),
        ({"httpGet": {"scheme": "HTTPS"}}, None),
        ({"httpGet": {"scheme": "http"}}, Question(3000, "/")),
        ({"tcpSocket": {"port": 0}, "initialDelaySeconds": 5}, None),
    ],
)
def test_the_users_probe_tells_what_to_ask(probe: Mapping[str, Any], asked: Question | None) -> None:
    assert question(revision(probe)) == asked


@pytest.mark.parametrize(("status", "ready"), [(200, True), (302, True), (404, False), (503, False)])
async def test_a_pod_that_answers_otherwise_than_with_success_is_not_ready(status: int, ready: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await answers(Question(port, "/"), "127.0.0.1") is ready
    assert await answers(Question(port, ""), "127.0.0.1")
    server.close()
    await server.wait_closed()
    assert not await answers(Question(port, ""), "127.0.0.1")


class Informers:
    """No pods."""

    def informer(self, resource: object) -> Informers:
        return self

    def add_index(self, name: str, index: object) -> None:
        return None

    def indexed(self, index: str, value: str) -> list[Object]:
        return []


class Context:
    clock = Clock()
    informers = Informers()


def made_gate(limit: int) -> Gate:
    gate = Gate(Context(), None, None)  # type: ignore[arg-type]
    one = revision({"tcpSocket": {"port": 0}})
    one["metadata"] = {"namespace": "default", "name": "r", "uid": "u"}
    one["spec"]["containerConcurrency"] = limit
    gate._revision_changed(None, one)
    gate._revisions[Key("default", "r")].throttle.set_pods({"10.0.0.1:3000"})
    return gate


def report(gate: Gate, in_progress: int) -> None:
    load = Load(in_progress, 0, 0, 0)
    gate._loaded(ClusterLoad("default/r/80", 0.5, load, {("10.0.0.1", 3000): load}))
    gate._audit()


def test_a_place_that_no_load_report_shows_in_use_is_taken_back() -> None:
    gate = made_gate(2)
    for _ in range(2):
        gate._ask("/default/r", lambda *_: None)
    throttle = gate._revisions[Key("default", "r")].throttle
    assert throttle.busy == 2
    for _ in range(AUDIT_ROUNDS):
        report(gate, 1)
    assert throttle.busy == 2  # given during this audit: too young to judge
    for _ in range(AUDIT_ROUNDS):
        report(gate, 1)
    assert throttle.busy == 1  # one is under way in every report, the other in none


def test_places_in_use_are_never_taken_back() -> None:
    gate = made_gate(2)
    gate._ask("/default/r", lambda *_: None)
    for _ in range(5 * AUDIT_ROUNDS):
        report(gate, 1)
    assert gate._revisions[Key("default", "r")].throttle.busy == 1


async def test_a_gate_that_begins_anew_counts_what_is_under_way() -> None:
    gate = made_gate(2)
    known = gate._revisions[Key("default", "r")]
    known.alive.add("10.0.0.1:3000")
    known.reachable.add("10.0.0.1:3000")
    gate._hold_back()
    told: list[int] = []
    for _ in range(3):
        gate._ask("/default/r", lambda status, *_: told.append(status))
    assert told == []
    report(gate, 1)  # one request of the gate before is still there
    await asyncio.sleep(0)
    assert known.throttle.busy == 2
    assert told == [200]
    for _ in range(2 * AUDIT_ROUNDS):
        report(gate, 2)
    assert known.throttle.busy == 2
    for _ in range(2 * AUDIT_ROUNDS):
        report(gate, 1)  # it has ended, unreported: its place goes to the next in line
    assert (known.throttle.busy, known.throttle.waiting) == (2, 1)


def test_a_pod_that_comes_back_has_the_requests_it_had() -> None:
    gate = made_gate(2)
    throttle = gate._revisions[Key("default", "r")].throttle
    for _ in range(2):
        gate._ask("/default/r", lambda *_: None)
    throttle.set_pods(set())
    throttle.set_pods({"10.0.0.1:3000"}, gate._occupied())
    assert throttle.take() is None


def test_a_revision_nobody_knows_is_404() -> None:
    told: list[int] = []
    assert made_gate(0)._ask("/default/other", lambda status, *_: told.append(status)) is None
    assert told == [404]


async def test_a_low_port_is_asked_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_lowest_port", lambda: 1024)
    server = await asyncio.start_server(lambda reader, writer: writer.close(), POD, addresses.door(POD, 80))
    assert await answers(Question(80, ""), POD)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("said_by", ["the pod", "the kubelet"])
async def test_a_pod_is_waited_for_on_the_machines_time_and_the_kubelet_is_believed(
    monkeypatch: pytest.MonkeyPatch, said_by: str
) -> None:
    asked: list[Question] = []

    async def not_yet(question: Question, host: str) -> bool:
        asked.append(question)
        return said_by == "the pod" and len(asked) > 2

    monkeypatch.setattr(module, "answers", not_yet)
    gate = made_gate(0)
    gate._clock = Clock()
    gate._clock.freeze()
    known = gate._revisions[Key("default", "r")]
    known.alive.add(f"{POD}:3000")
    waiting = asyncio.ensure_future(gate._takes_requests(known, f"{POD}:3000"))
    while len(asked) < 2:
        await asyncio.sleep(0.001)
    if said_by == "the kubelet":
        known.ready.add(f"{POD}:3000")
    assert await waiting


class Plane:
    """What Envoy was told last."""

    def __init__(self) -> None:
        self.told: frozenset[tuple[str, int]] = frozenset()

    async def announce(self, service: Key, endpoints: frozenset[tuple[str, int]]) -> None:
        self.told = endpoints


class Scaler:
    def first(self, key: Key) -> None:
        """The revision is woken by somebody else."""


def pod(**status: Any) -> Object:
    labels = {"serving.knative.dev/revision": "r", "serving.knative.dev/revisionUID": "u"}
    metadata = {"namespace": "default", "name": "p", "uid": "p", "labels": labels}
    return {"metadata": metadata, "status": {"phase": "Pending", **status}}


async def settled(truth: Callable[[], bool]) -> None:
    for _ in range(5000):
        if truth():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


async def woken_gate(
    monkeypatch: pytest.MonkeyPatch, listens: list[str]
) -> tuple[Gate, Plane, list[int], PodAddresses]:
    """A gate with one request for a sleeping revision; pods answer at the addresses in ``listens``."""

    async def ask(question: Question, host: str) -> bool:
        return host in listens

    monkeypatch.setattr(module, "answers", ask)
    plane, told, addresses = Plane(), list[int](), PodAddresses()
    gate = made_gate(0)
    gate._context = ControlContext(None, Informers(), Clock(), Tasks(Clock()))  # type: ignore[arg-type]
    gate._plane, gate._scaler, gate._find_addresses = plane, Scaler(), lambda: addresses  # type: ignore[assignment]
    gate._revisions[Key("default", "r")].throttle.set_pods(set())
    gate._ask("/default/r", lambda status, *_: told.append(status))
    return gate, plane, told, addresses


async def test_a_pod_is_let_through_to_before_its_status_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listens: list[str] = []
    gate, plane, told, addresses = await woken_gate(monkeypatch, listens)
    addresses.tell(pod(), "10.0.0.7", False)
    await settled(lambda: plane.told == {("10.0.0.7", 3000)})
    assert told == []
    listens.append("10.0.0.7")
    addresses.tell(pod(), "10.0.0.7", True)
    await settled(lambda: told == [200])
    gate._pod_changed(pod(), pod(podIP="10.0.0.7", phase="Running"))
    assert gate._revisions[Key("default", "r")].early == {}
    assert plane.told == {("10.0.0.7", 3000)}
    await gate._context.tasks.cancel()


@pytest.mark.parametrize("end", ["deleted", "ending", "failed"])
async def test_a_pod_that_goes_before_its_status_had_an_address_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    gate, plane, told, addresses = await woken_gate(monkeypatch, [])
    addresses.tell(pod(), "10.0.0.7", False)
    await settled(lambda: plane.told != frozenset())
    gone = pod(phase="Failed" if end == "failed" else "Pending")
    if end == "ending":
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    gate._pod_changed(pod(), None if end == "deleted" else gone)
    await settled(lambda: plane.told == frozenset())
    known = gate._revisions[Key("default", "r")]
    assert (told, known.alive, known.early) == ([], set(), {})
    await gate._context.tasks.cancel()


async def test_a_pod_whose_sandbox_is_made_again_is_looked_for_at_its_new_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, plane, told, addresses = await woken_gate(monkeypatch, ["10.0.0.8"])
    addresses.tell(pod(), "10.0.0.7", False)
    await settled(lambda: plane.told == {("10.0.0.7", 3000)})
    addresses.tell(pod(), "10.0.0.8", False)
    await settled(lambda: told == [200])
    assert plane.told == {("10.0.0.8", 3000)}
    assert gate._revisions[Key("default", "r")].alive == {"10.0.0.8:3000"}
    await gate._context.tasks.cancel()


async def test_a_pod_that_was_let_through_to_is_not_looked_for_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may be another revision's next."""
    listens = ["10.0.0.7"]
    gate, plane, told, _ = await woken_gate(monkeypatch, listens)
    first = pod(podIP="10.0.0.7", phase="Running")
    gate._pod_changed(pod(), first)
    await settled(lambda: told == [200])
    lost = pod(podIP="10.0.0.7", phase="Running", conditions=[{"type": "Ready", "status": "False"}])
    ready = pod(podIP="10.0.0.7", phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    gate._pod_changed(first, ready)
    gate._pod_changed(ready, lost)
    gate._ask("/default/r", lambda status, *_: told.append(status))
    listens.clear()
    gate._pod_changed(lost, pod(podIP="10.0.0.8", phase="Running"))
    listens += ["10.0.0.7", "10.0.0.8"]
    await settled(lambda: told == [200, 200])
    assert plane.told == {("10.0.0.8", 3000)}
    assert gate._revisions[Key("default", "r")].alive == {"10.0.0.8:3000"}
    await gate._context.tasks.cancel()


@pytest.mark.parametrize("when", ["before it is asked", "while it answers"])
async def test_envoy_is_not_told_of_a_pod_that_is_gone(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    gate, plane, told, _ = await woken_gate(monkeypatch, [])
    running = pod(podIP="10.0.0.7", phase="Running")

    async def last_word(question: Question, host: str) -> bool:
        gate._pod_changed(running, None)
        return True

    monkeypatch.setattr(module, "answers", last_word)
    gate._pod_changed(None, running)
    if when == "before it is asked":
        gate._pod_changed(running, None)
    known = gate._revisions[Key("default", "r")]
    await settled(lambda: not known.probing)
    await asyncio.sleep(0)
    assert (known.announced, known.expected, plane.told, told) == (set(), set(), frozenset(), [])
    await gate._context.tasks.cancel()


async def test_envoy_is_told_the_addresses_as_they_are_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, plane, _, _ = await woken_gate(monkeypatch, [])
    known = gate._revisions[Key("default", "r")]
    known.announced = {"10.0.0.7:3000"}
    gate._announce(known)  # begins to run later
    known.announced = {"10.0.0.8:3000"}
    await gate._tell(known)
    await asyncio.sleep(0)
    assert plane.told == {("10.0.0.8", 3000)}
    await gate._context.tasks.cancel()
