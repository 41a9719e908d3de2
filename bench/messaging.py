"""Benchmarks of messaging. Run alone: ``PYTHONPATH=src python bench/messaging.py [core|grpc|receive|latency|start|topics|backlog ...]``.

The broker runs in a process of its own; loads of the gRPC front are made by h2load (nghttp2). Every row gives the best of a few
runs, the broker's CPU time a message, and beside it what limits it: bare ``write`` + ``fdatasync`` of the same bytes, or an
empty handler on the same gRPC server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from sampan.kernel.clock import Clock
from sampan.kernel.collection import Collector
from sampan.kernel.grpc import Call, GrpcServer, Method
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging import record
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.delivery import QueueProgress
from sampan.parts.messaging.fronts.grpc.service import SERVICE, MessagingService
from sampan.parts.messaging.part import SWITCH_INTERVAL
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.snapshot import Snapshot
from sampan.parts.messaging.topology import TopicConfig
from sampan.proto import messaging_pb2 as pb

BODY = os.urandom(1024)
H2LOAD = shutil.which("h2load")


def row(name: str, value: str, note: str = "") -> None:
    print(f"{name:<58} {value:>16}  {note}", flush=True)


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-mq-", dir=os.environ.get("BENCH_DIR"))


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


# -- the core, without a protocol


async def send_many(core: Core, topic: str, count: int, concurrent: int) -> float:
    """Durable sends a second with ``concurrent`` always under way."""
    broker = core.broker
    target = broker.topic(topic, create=True)
    properties = {"UNIQ_KEY": "0" * 34}
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    state = [0, 0]

    def done(error: Any) -> None:
        if error is not None:
            raise error
        state[1] += 1
        if state[1] == count:
            finished.set_result(None)
        elif state[1] % 64 == 0:
            loop.call_soon(more)

    def more() -> None:
        while state[0] < count and state[0] - state[1] < concurrent:
            identifier = properties["UNIQ_KEY"] = f"{state[0]:034X}"
            message = Message(topic, BODY, {"UNIQ_KEY": identifier}, born_ms=1)
            broker.send(message, target, record.encode_properties(message.properties), done)
            state[0] += 1

    began = time.perf_counter()
    more()
    await finished
    return count / (time.perf_counter() - began)


async def core_sends() -> None:
    best, used = 0.0, 0.0
    for _ in range(3):
        with folder() as path:
            clock = Clock()
            async with Tasks(clock) as tasks:
                core = Core(Path(path), clock, tasks)
                await core.start()
                before = cpu()
                rate = await send_many(core, "T", 150_000, 512)
                spent = (cpu() - before) / 150_000 * 1e6
                if rate > best:
                    best, used = rate, spent
                await core.stop()
    limit = bare_disk(512)
    row("core: durable 1 KiB sends, 512 concurrent", f"{best:,.0f}/s", f"{used:.1f} µs CPU a message; goal 80,000/s")
    row("  the disk alone: write + fdatasync of 512 KiB batches", f"{limit:,.0f}/s", f"ratio {best / limit:.2f}")


def bare_disk(batch: int) -> float:
    with folder() as path, (Path(path) / "x").open("wb", buffering=0) as file:
        data = BODY * batch
        began = time.perf_counter()
        rounds = max(4, 60_000 // batch)
        for _ in range(rounds):
            file.write(data)
            os.fdatasync(file.fileno())
        return rounds * batch / (time.perf_counter() - began)


# -- the broker in a process of its own


async def serve(path: str, port_fd: int, flush: str) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL)
    clock = Clock()
    async with Tasks(clock) as tasks:
        core = Core(Path(path), clock, tasks, sync=flush == "sync")
        await core.start()
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        address = ("127.0.0.1", listener.getsockname()[1])
        service = MessagingService(core, tasks, lambda: address)
        finish = asyncio.Event()

        def report(payload: bytes, call: Call) -> None:
            call.respond(f"{cpu()} {rss_mb()}".encode())

        def fill(payload: bytes, call: Call) -> None:
            async def run() -> None:
                await send_many(core, "T", int(payload), 1024)
                call.respond(b"")

            tasks.start("fill", run())

        def stop(payload: bytes, call: Call) -> None:
            finish.set()

        def empty(payload: bytes, call: Call) -> None:
            call.respond(payload)

        taken: list[float] = []

        def inside(payload: bytes, call: Call) -> None:
            call.respond(" ".join(f"{one:.6f}" for one in taken).encode())
            taken.clear()

        def answered(call: Call, seconds: float) -> None:
            if call.method.handler is not inside:
                taken.append(seconds)
            service.answered(call, seconds)

        extra = [
            Method("/bench/Report", "unary", report),
            Method("/bench/Fill", "unary", fill),
            Method("/bench/Stop", "unary", stop),
            Method("/bench/Empty", "unary", empty),
            Method("/bench/Inside", "unary", inside),
        ]
        core.broker.create_topic(TopicConfig("T"))
        server = GrpcServer([*service.methods(), *extra], clock=clock, tasks=tasks, answered=answered)
        await server.start(listener)
        Collector().begin()
        os.write(port_fd, f"{address[1]}\n".encode())
        await finish.wait()
        await server.stop()
        await core.stop()


class Broker:
    """The broker's process."""

    def __init__(self, flush: str = "sync") -> None:
        self.flush = flush

    def __enter__(self) -> Broker:
        import grpc

        self.folder = folder()
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", self.folder.name, str(writing), self.flush], pass_fds=[writing]
        )
        os.close(writing)
        with os.fdopen(reading) as stream:
            self.port = int(stream.readline())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.max_receive_message_length", -1)])
        return self

    def call(self, path: str, payload: bytes = b"") -> bytes:
        method = self.channel.unary_unary(path, None, None)
        answer: bytes = method(payload, timeout=120, metadata=(("x-mq-client-id", "bench"),))
        return answer

    def used(self) -> tuple[float, float]:
        spent, rss = self.call("/bench/Report").split()
        return float(spent), float(rss)

    def __exit__(self, *args: object) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def framed(message: Any) -> bytes:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


def h2load(port: int, path: str, body: bytes, count: int, connections: int, streams: int) -> float:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        output = subprocess.run(
            [
                H2LOAD or "h2load",
                *("-n", str(count), "-c", str(connections), "-m", str(streams), "-t", "1", "-d", file.name),
                *("-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "x-mq-client-id: bench"),
                f"http://127.0.0.1:{port}{path}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finished = next(line for line in output.splitlines() if line.startswith("finished in"))
    assert f"{count} succeeded" in output, output
    return float(finished.split(",")[1].split()[0])


def send_request() -> pb.SendMessageRequest:
    request = pb.SendMessageRequest()
    message = request.messages.add(body=BODY)
    message.topic.name = "T"
    message.system_properties.message_id = "01" + "0" * 32
    message.system_properties.message_type = pb.NORMAL
    message.system_properties.body_encoding = pb.IDENTITY
    message.system_properties.born_timestamp.seconds = 1_700_000_000
    return request


def grpc_sends() -> None:
    with Broker() as broker:
        best, used = 0.0, 0.0
        h2load(broker.port, SERVICE + "SendMessage", framed(send_request()), 2000, 4, 16)
        for _ in range(3):
            before = broker.used()[0]
            rate = h2load(broker.port, SERVICE + "SendMessage", framed(send_request()), 40_000, 4, 16)
            spent = (broker.used()[0] - before) / 40_000 * 1e6
            if rate > best:
                best, used = rate, spent
        empty = max(h2load(broker.port, "/bench/Empty", framed(send_request()), 40_000, 4, 16) for _ in range(2))
        row("gRPC: durable 1 KiB sends, 64 concurrent", f"{best:,.0f}/s", f"{used:.1f} µs CPU a message; goal 15,000/s")
        row("  an empty handler on the same server", f"{empty:,.0f}/s", f"ratio {best / empty:.2f}")


class RawClient(asyncio.Protocol):
    """A minimal HTTP/2 client: it builds frames from constant header blocks and picks what it needs out of the answers'
    bytes, so that the load generator costs a fraction of what the server does."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.stream = 1
        self.buffer = b""
        self.waiting: dict[int, tuple[asyncio.Future[bytes], list[bytes]]] = {}
        self.unacknowledged = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        settings = struct.pack(">HI", 4, 1 << 24)
        window = struct.pack(">I", (1 << 30) - 65536)
        transport.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, settings) + frame(8, 0, 0, window))

    def call(self, path: str, message: bytes) -> asyncio.Future[bytes]:
        """The payload bytes of all answers to one call, gRPC framing included."""
        stream, self.stream = self.stream, self.stream + 2
        future = asyncio.get_running_loop().create_future()
        self.waiting[stream] = future, []
        self.transport.write(frame(1, 4, stream, header_block(path)) + frame(0, 1, stream, framed(message)))
        return future

    def data_received(self, data: bytes) -> None:
        buffer, at = self.buffer + data, 0
        while len(buffer) - at >= 9:
            size = int.from_bytes(buffer[at : at + 3], "big")
            if len(buffer) - at < 9 + size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            payload = buffer[at + 9 : at + 9 + size]
            at += 9 + size
            if kind == 0 and stream in self.waiting:
                self.waiting[stream][1].append(payload)
                self.unacknowledged += size
            elif kind == 4 and not flags & 1:
                self.transport.write(frame(4, 1, 0, b""))
            elif kind == 6 and not flags & 1:
                self.transport.write(frame(6, 1, 0, payload))
            if flags & 1 and kind in (0, 1) and stream in self.waiting:
                future, parts = self.waiting.pop(stream)
                if not future.done():
                    future.set_result(b"".join(parts))
        self.buffer = buffer[at:]
        if self.unacknowledged > 1 << 20:
            self.transport.write(frame(8, 0, 0, struct.pack(">I", self.unacknowledged)))
            self.unacknowledged = 0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header_block(path: str) -> bytes:
    """HPACK without Huffman codes and without the dynamic table."""

    def literal(name: str, value: str) -> bytes:
        return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()

    return b"\x83\x86" + b"".join(
        literal(name, value)
        for name, value in (
            (":path", path),
            (":authority", "bench"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("x-mq-client-id", "bench"),
        )
    )


RECEIPT = re.compile(rb"\d+ \d+ \d+ \d+ 0 sampan \d+ \d+ \d+")


async def receive_and_ack(port: int, count: int, batch: int, concurrent: int) -> tuple[int, float]:
    """Receive batches and acknowledge them until ``count`` are done."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(RawClient, "127.0.0.1", port)
    request = pb.ReceiveMessageRequest(batch_size=batch)
    request.group.name = "G"
    request.message_queue.topic.name = "T"
    request.invisible_duration.seconds = 60
    payload = request.SerializeToString()
    head = b"\x0a\x03\x12\x01G\x12\x03\x12\x01T"
    done = 0

    async def worker() -> None:
        nonlocal done
        while done < count:
            receipts = RECEIPT.findall(await client.call(SERVICE + "ReceiveMessage", payload))
            entries = [b"\x12" + bytes((len(one),)) + one for one in receipts]
            ack = head + b"".join(b"\x1a" + bytes((len(one),)) + one for one in entries)
            answer = await client.call(SERVICE + "AckMessage", ack)
            assert pb.AckMessageResponse.FromString(answer[5:]).status.code == 20000
            done += len(entries)

    began = time.perf_counter()
    workers = [asyncio.ensure_future(worker()) for _ in range(concurrent)]
    await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)  # the others wait for messages that do not come
    seconds = time.perf_counter() - began
    for other in workers:
        other.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    client.transport.close()
    return done, done / seconds


def grpc_receives() -> None:
    with Broker() as broker:
        best, used = 0.0, 0.0
        for _ in range(3):
            broker.call("/bench/Fill", b"40000")
            before = broker.used()[0]
            count, rate = uvloop.run(receive_and_ack(broker.port, 40_000, 32, 8))
            spent = (broker.used()[0] - before) / count * 1e6
            if rate > best:
                best, used = rate, spent
        row(
            "gRPC: received and acknowledged, batches of 32",
            f"{best:,.0f}/s",
            f"{used:.1f} µs server CPU a message; goal 20,000/s",
        )


PACE = 0.0005
"""Seconds between two calls of the latency load, and between two looks of a stall watcher."""


def pace(port: int, path: str, seconds: float) -> None:
    """The load of `latency`, in a process of its own and without a loop: a call every `PACE` seconds over 8 connections, begun on
    time whatever is not answered yet. Prints begin and end of each call by the machine's clock."""
    gc.disable()
    connections = []
    epoll = select.epoll()
    for _ in range(8):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = frame(8, 0, 0, struct.pack(">I", (1 << 30) - 65536))
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + window)
        connection.setblocking(False)
        epoll.register(connection, select.EPOLLIN)
        connections.append(connection)
    index = {connection.fileno(): at for at, connection in enumerate(connections)}
    head, body = header_block(path), framed(send_request())
    buffers = [b""] * 8
    total = int(seconds / PACE)
    began, ended = [0.0] * total, [0.0] * total
    sent = answered = 0
    start = time.perf_counter() + 0.1
    while answered < total:
        now = time.perf_counter()
        while sent < total and now >= start + sent * PACE:
            turn, at = divmod(sent, 8)
            stream = 2 * turn + 1
            began[sent] = time.perf_counter()
            connections[at].sendall(frame(1, 4, stream, head) + frame(0, 1, stream, body))
            sent += 1
            now = time.perf_counter()
        for number, _ in epoll.poll(max(0.0, start + sent * PACE - now) if sent < total else 1.0):
            at = index[number]
            data, begin = buffers[at] + connections[at].recv(1 << 16), 0
            now = time.perf_counter()
            while len(data) - begin >= 9:
                size = 9 + int.from_bytes(data[begin : begin + 3], "big")
                if len(data) - begin < size:
                    break
                kind, flags, stream = struct.unpack_from(">BBI", data, begin + 3)
                if kind == 1 and flags & 1:
                    ended[stream // 2 * 8 + at] = now
                    answered += 1
                begin += size
            buffers[at] = data[begin:]
    print(*(f"{one:.6f} {other:.6f}" for one, other in zip(began, ended, strict=True)), sep="\n")


def watch(core: int, seconds: float) -> None:
    """Look every `PACE` seconds whether this core runs, before everything else on it: what comes late then is the machine's own
    doing (a hypervisor's, mostly). Prints how late each look was, and its time."""
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    gc.disable()
    looks = []
    due = time.perf_counter()
    for _ in range(int(seconds / PACE)):
        due += PACE
        time.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        looks.append((due, now))
        due = max(due, now - PACE)
    print(*(f"{due:.6f} {now:.6f}" for due, now in looks), sep="\n")


def at(times: list[float], share: float) -> float:
    return times[int(len(times) * share)]


def latency() -> None:
    """2,000 sends a second for some seconds: seen by a client, seen inside the server, and on a machine that does not stall."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)

    def spans(process: subprocess.Popen[str]) -> list[tuple[float, float]]:
        output, _ = process.communicate()
        return [(float(line.split()[0]), float(line.split()[1])) for line in output.splitlines()]

    def load(broker: Broker, path: str, seconds: float, *, beside: bool = False) -> dict[str, list[float]]:
        broker.call("/bench/Inside")
        writer = run("--disk", str(seconds)) if beside else None
        watchers = [run("--watch", str(core), str(seconds + 0.8)) for core in range(os.cpu_count() or 1)]
        calls = spans(run("--pace", str(broker.port), path, str(seconds)))
        inside = [float(one) for one in broker.call("/bench/Inside").split()]
        looks = [look for watcher in watchers for look in spans(watcher)]
        stalls = sorted(look for look in looks if look[1] - look[0] > PACE)
        undisturbed = [
            end - begin for begin, end in calls if not any(one < end and begin < other for one, other in stalls)
        ]
        written = spans(writer) if writer is not None else []
        return {
            "disk": sorted(1000 * (end - begin) for begin, end in written),
            "outside": sorted(1000 * (end - begin) for begin, end in calls),
            "undisturbed": sorted(1000 * one for one in undisturbed),
            "inside": sorted(1000 * one for one in inside),
            "looks": sorted(1000 * (now - due) for due, now in looks),
        }

    def measured(name: str, flush: str, path: str, goal: str = "", *, beside: bool = False) -> None:
        with Broker(flush) as broker:
            load(broker, path, 0.5)
            runs = [load(broker, path, 2, beside=beside) for _ in range(5)]
        tails = sorted(at(found["outside"], 0.999) for found in runs)
        for what, label in (
            ("outside", name),
            ("undisturbed", "  calls during which the machine did not stall"),
            ("inside", "  inside the server, from the request read to the answer"),
            ("looks", "  the machine alone: a process that sleeps 0.5 ms, late by"),
            ("disk", "  the disk beside it: pwrite + fdatasync at that pace"),
        ):
            if not runs[0][what]:
                continue
            best = min((found[what] for found in runs), key=lambda times: at(times, 0.999))
            share = f" of {len(best) / len(runs[0]['outside']):.0%} of them" if what == "undisturbed" else ""
            row(
                label,
                f"{at(best, 0.999):.2f} ms",
                f"p50 {at(best, 0.5):.2f}, p99 {at(best, 0.99):.2f}{share}"
                + (f"{goal}; each run {', '.join(f'{one:.2f}' for one in tails)}" if what == "outside" else ""),
            )

    measured("gRPC: write latency at 2,000 msg/s, p99.9", "sync", SERVICE + "SendMessage", "; goal < 2 ms")
    measured("gRPC: the same, asynchronous flush", "async", SERVICE + "SendMessage", "; goal < 2 ms")
    measured("gRPC: an empty handler on the same server", "sync", "/bench/Empty", beside=True)


def disk(seconds: float) -> None:
    """Durable writes of one message each `PACE` seconds into prepared space, as the log makes them, and nothing else. Prints begin
    and end of each."""
    gc.disable()
    with folder() as path, (Path(path) / "x").open("wb", buffering=0) as file:
        file.write(bytes(int(seconds / PACE) * len(BODY)))
        os.fsync(file.fileno())
        spans = []
        following = time.perf_counter()
        for number in range(int(seconds / PACE)):
            following += PACE
            time.sleep(max(0.0, following - time.perf_counter()))
            began = time.perf_counter()
            os.pwrite(file.fileno(), BODY, number * len(BODY))
            os.fdatasync(file.fileno())
            spans.append((began, time.perf_counter()))
    print(*(f"{began:.6f} {end:.6f}" for began, end in spans), sep="\n")


OFFICIAL = """
import sys, time, logging
logging.disable(logging.CRITICAL)
import rocketmq
producer = rocketmq.Producer(rocketmq.ClientConfiguration(sys.argv[1], rocketmq.Credentials()), ["T"])
producer.startup()
count, futures = int(sys.argv[2]), []
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    message = rocketmq.Message()
    message.topic, message.body = "T", b"x" * 1024
    futures.append(producer.send_async(message))
    if len(futures) == 64:
        for future in futures:
            future.result()
        futures.clear()
for future in futures:
    future.result()
print("done", flush=True)
"""


def official() -> None:
    """The official Python client in four processes: how busy is the broker meanwhile?"""
    count = 2000
    with Broker() as broker:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", OFFICIAL, f"127.0.0.1:{broker.port}", str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        before, began = broker.used()[0], time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        seconds = time.perf_counter() - began
        busy = (broker.used()[0] - before) / seconds
        row(
            "official Python client, 4 processes, sends",
            f"{4 * count / seconds:,.0f}/s",
            f"the broker used {busy:.2f} of {os.cpu_count()} cores: {'not ' if busy < 0.9 else ''}the bottleneck",
        )
        for client in clients:
            client.kill()
            client.wait()


def start() -> None:
    def one() -> tuple[float, float]:
        began = time.perf_counter()
        with Broker() as broker:
            ready = time.perf_counter() - began
            time.sleep(0.3)
            return ready, broker.used()[1]

    one()
    runs = [one() for _ in range(3)]
    row("ready, alone, empty directory", f"{min(r for r, _ in runs):.2f} s", "goal 0.5 s")
    row("resident memory, idle", f"{min(m for _, m in runs):.0f} MB", "goal 60 MB")


async def topics() -> None:
    with folder() as path:
        clock = Clock()
        async with Tasks(clock) as tasks:
            core = Core(Path(path), clock, tasks)
            await core.start()
            gc.collect()
            before = rss_mb()
            for number in range(10_000):
                core.broker.create_topic(TopicConfig(f"topic-{number}", queues=8))
            gc.collect()
            empty = rss_mb() - before
            done = asyncio.get_running_loop().create_future()
            left = [80_000]

            def stored(error: Any) -> None:
                left[0] -= 1
                if not left[0]:
                    done.set_result(None)

            for topic in list(core.store.topics.values()):
                for _ in range(8):
                    core.broker.send(Message(topic.name, b"x", {}), topic, b"", stored)
            await done
            files = len(list(Path(path).rglob("*")))  # noqa: ASYNC240
            row(
                "10,000 topics × 8 queues",
                f"{empty:.0f} MB",
                f"goal 100 MB; {files} files, with one message in every queue: {rss_mb() - before:.0f} MB",
            )
            await core.stop()


BACKLOG = 5_000_000


async def build_backlog(path: Path) -> None:
    """A broker's folder with a backlog; kept where it is complete already."""
    clock = Clock()
    async with Tasks(clock) as tasks:
        core = Core(path, clock, tasks)
        await core.start()
        topic = core.broker.topic("T", create=True)
        have = sum(queue.maximum for queue in topic.queues)
        if have < BACKLOG:
            await send_many(core, "T", BACKLOG - have, 4096)
        await core.stop()


async def backlog() -> None:
    """Sends to a broker with a backlog of 5 million and to an empty one, in short turns, each pair compared: what else the machine
    does meets both. ``BENCH_BACKLOG`` names a folder to keep the backlog in; ``--build`` only makes it."""
    global BODY
    whole, BODY = BODY, BODY[:100]
    kept = os.environ.get("BENCH_BACKLOG")
    with contextlib.ExitStack() as stack:
        full_path = Path(kept or stack.enter_context(folder()))
        await build_backlog(full_path)
        if "--build" in sys.argv:
            return
        clock = Clock()
        async with Tasks(clock) as tasks:
            memory, began = rss_mb(), time.perf_counter()
            full = Core(full_path, clock, tasks)
            await full.start()
            started, grown = time.perf_counter() - began, rss_mb() - memory
            empty = Core(Path(stack.enter_context(folder())), clock, tasks)
            await empty.start()
            Collector().begin()
            rates: dict[str, list[float]] = {"full": [], "empty": []}
            used = {"full": 0.0, "empty": 0.0}
            for turn in range(60):
                for name in ("full", "empty") if turn % 2 else ("empty", "full"):
                    before = cpu()
                    rates[name].append(await send_many(full if name == "full" else empty, "T", 15_000, 512))
                    used[name] += cpu() - before
            ratios = sorted(one / other for one, other in zip(rates["full"], rates["empty"], strict=True))
            median = {name: sorted(found)[len(found) // 2] for name, found in rates.items()}
            spent = {name: seconds / 60 / 15_000 * 1e6 for name, seconds in used.items()}
            row(
                "100-byte sends with a backlog of 5 million",
                f"{median['full']:,.0f}/s",
                f"empty: {median['empty']:,.0f}/s; median ratio of 60 pairs {ratios[30]:.2f}, quartiles {ratios[15]:.2f} and "
                f"{ratios[45]:.2f} (goal 0.90)",
            )
            row(
                "  CPU a message",
                f"{spent['full']:.2f} µs",
                f"empty: {spent['empty']:.2f} µs; started on it in {started:.2f} s, +{grown:.0f} MB",
            )
            await full.stop()
            await empty.stop()
    BODY = whole


async def snapshot() -> None:
    """The slices in which a checkpoint's state is packed: what else the loop does waits for one of them at a time."""
    with folder() as path:
        clock = Clock()
        async with Tasks(clock) as tasks:
            core = Core(Path(path), clock, tasks)
            await core.start()
            store = core.store
            for number in range(10_000):
                topic = core.broker.create_topic(TopicConfig(f"topic-{number}", queues=8))
                progress = store.progress_of("group", topic.config.name)
                for queue in topic.queues:
                    queue.next = queue.maximum = 7
                    progress.queues[queue.id] = QueueProgress(5)
            for number in range(100_000):
                store.timers.set(10**12 + number * 37, number)
            gc.collect()
            gc.disable()
            slices: list[float] = []
            for _ in range(5):
                began = time.perf_counter()
                packing = Snapshot(store, store.log.durable).pack()
                done = object()
                while next(packing, done) is not done:
                    slices.append(time.perf_counter() - began)
                    began = time.perf_counter()
                slices.append(time.perf_counter() - began)
            gc.enable()
            slices.sort()
            row(
                "a checkpoint's state, 10,000 topics × 8 queues, 100,000 timers",
                f"{sum(slices) / 5 * 1e3:.0f} ms",
                f"in {len(slices) // 5} slices: p99 {slices[-len(slices) // 100] * 1e3:.1f} ms, longest {slices[-1] * 1e3:.1f} ms",
            )
            await core.stop()


BENCHES: dict[str, Any] = {
    "snapshot": snapshot,
    "core": core_sends,
    "grpc": grpc_sends,
    "receive": grpc_receives,
    "latency": latency,
    "official": official,
    "start": start,
    "topics": topics,
    "backlog": backlog,
}


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        uvloop.run(serve(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
        return
    if sys.argv[1:2] == ["--pace"]:
        pace(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
        return
    if sys.argv[1:2] == ["--disk"]:
        disk(float(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]), float(sys.argv[3]))
        return
    for name in [argument for argument in sys.argv[1:] if argument != "--build"] or list(BENCHES):
        bench = BENCHES[name]
        if asyncio.iscoroutinefunction(bench):
            sys.setswitchinterval(SWITCH_INTERVAL)
            uvloop.run(bench())
        else:
            bench()


if __name__ == "__main__":
    main()
