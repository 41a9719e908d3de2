"""Rounds of kill -9 against a broker under load, and the account that is settled afterwards.

Producers send numbered messages (plain, of message groups, delayed, transactional) and note what was acknowledged; consumers
receive and acknowledge all the while; the broker is killed at a random moment and started again. In the end everything
acknowledged must have been consumed, no message group out of order (a redelivery repeats, it never overtakes), nothing before
its time. ``python -m tests.faults.messaging_kill ROUNDS SENDS [SEED]`` runs it as a soak.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sampan.parts.messaging import MessagingClient, MessagingClientError
from sampan.proto import messaging_pb2 as pb

SERVICE = "/apache.rocketmq.v2.MessagingService/"


@dataclass
class Account:
    """What was promised and what was kept."""

    sent: set[bytes] = field(default_factory=set)
    acknowledged: set[bytes] = field(default_factory=set)
    consumed: set[bytes] = field(default_factory=set)
    order: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    due: dict[bytes, float] = field(default_factory=dict)
    early: list[bytes] = field(default_factory=list)
    done: set[bytes] = field(default_factory=set)
    """Consumed, and the broker confirmed the acknowledgement."""
    repeated: list[bytes] = field(default_factory=list)
    """Delivered again after that."""
    deliveries: int = 0
    kills: int = 0

    @property
    def lost(self) -> set[bytes]:
        return self.acknowledged - self.consumed

    def disorder(self) -> list[str]:
        """Message groups in which a message was first seen after a later one."""
        wrong = []
        for group, numbers in self.order.items():
            highest = -1
            seen: set[int] = set()
            for number in numbers:
                if number not in seen and number < highest:
                    wrong.append(f"{group}: {number} after {highest}")
                seen.add(number)
                highest = max(highest, number)
        return wrong


class Process:
    """The broker's process, started again and again on one directory."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        self.up = asyncio.Event()

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.faults.messaging_broker_process", str(self._directory), str(self._segment_bytes)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.address = f"127.0.0.1:{int(await self._process.stdout.readline())}"
        self.up.set()

    async def kill(self, how: int = signal.SIGKILL) -> None:
        assert self._process is not None
        self.up.clear()
        self._process.send_signal(how)
        await self._process.wait()


async def run(directory: Path, *, rounds: int, sends: int, seed: int, segment_bytes: int = 4 << 20) -> Account:
    """``rounds`` kills while ``sends`` messages a round go through."""
    account, choose = Account(), random.Random(seed)
    process = Process(directory, segment_bytes)
    await process.start()
    stopping = asyncio.Event()
    consumers = [
        asyncio.ensure_future(consume(process, account, topic, stopping))
        for topic in ("plain", "plain", "fifo", "later", "tx")
    ]
    numbers: defaultdict[str, int] = defaultdict(int)
    for round in range(rounds):
        producing = [
            asyncio.ensure_future(produce(process, account, round, lane, sends // 8, numbers)) for lane in range(8)
        ]
        # somewhere among the round's sends, and a moment later, so that it is not always right after an answer
        moment = len(account.sent) + choose.random() * 0.9 * sends
        while len(account.sent) < moment:
            await asyncio.sleep(0.005)
        await asyncio.sleep(choose.uniform(0, 0.02))
        await process.kill()
        account.kills += 1
        await process.start()
        await asyncio.gather(*producing)
    deadline = time.monotonic() + 60
    while account.lost and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    stopping.set()
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)
    await process.kill(signal.SIGTERM)
    return account


async def produce(
    process: Process, account: Account, round: int, lane: int, count: int, numbers: dict[str, int]
) -> None:
    """Send ``count`` messages; a failed one is not sent again, and may or may not have been stored."""
    done = 0
    while done < count:
        await process.up.wait()
        async with MessagingClient(process.address, timeout=5) as client:
            try:
                while done < count:
                    done += 1
                    await send(client, account, f"{round}-{lane}-{done}", lane, numbers)
            except (grpc.aio.AioRpcError, MessagingClientError):
                await asyncio.sleep(0.02)


async def send(client: MessagingClient, account: Account, name: str, lane: int, numbers: dict[str, int]) -> None:
    body = name.encode()
    account.sent.add(body)
    if lane in (5, 6):
        group = f"lane-{lane}"
        number = numbers[group] = numbers[group] + 1
        body = f"{group}:{number}".encode()
        await client.send("fifo", body, message_group=group)
    elif lane == 7 and hash(name) % 2:
        account.due[body] = due = time.time() + 0.3
        await client.send("later", body, deliver_at=due)
    elif lane == 7:
        request = pb.SendMessageRequest()
        message = request.messages.add(body=body)
        message.topic.name = "tx"
        message.system_properties.message_id = name
        message.system_properties.message_type = pb.TRANSACTION
        pb.SendMessageResponse.FromString(await client.call("SendMessage", request))
        end = pb.EndTransactionRequest(transaction_id=name, message_id=name, resolution=pb.COMMIT)
        end.topic.name = "tx"
        reply = pb.EndTransactionResponse.FromString(await client.call("EndTransaction", end))
        if reply.status.code != 20000:
            raise MessagingClientError(reply.status.code, reply.status.message)
    else:
        await client.send("plain", body)
    account.acknowledged.add(body)


async def consume(process: Process, account: Account, topic: str, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        await process.up.wait()
        async with MessagingClient(process.address, timeout=5) as client:
            try:
                while True:
                    messages = await client.receive("group", topic, invisible=10, wait=5)
                    for message in messages:
                        account.deliveries += 1
                        account.consumed.add(message.body)
                        if message.body in account.done:
                            account.repeated.append(message.body)
                        if topic == "fifo":
                            group, _, number = message.body.decode().partition(":")
                            account.order[group].append(int(number))
                        if account.due.get(message.body, 0) > time.time() + 0.001:
                            account.early.append(message.body)
                    if messages:
                        await client.acknowledge(*messages)
                        account.done.update(message.body for message in messages)
            except (grpc.aio.AioRpcError, MessagingClientError):
                await asyncio.sleep(0.02)


def main() -> None:
    rounds, sends = int(sys.argv[1]), int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else rounds
    with tempfile.TemporaryDirectory(prefix="messaging-kill-") as directory:
        began = time.monotonic()
        account = asyncio.run(run(Path(directory), rounds=rounds, sends=sends, seed=seed, segment_bytes=64 << 20))
        print(
            f"{account.kills} kills, {len(account.sent)} sent, {len(account.acknowledged)} acknowledged, "
            f"{len(account.lost)} lost, {account.deliveries} deliveries of {len(account.consumed)}, "
            f"{len(account.disorder())} out of order, {len(account.early)} early, "
            f"{len(account.repeated)} repeated after their acknowledgement, {time.monotonic() - began:.0f} s"
        )
        sys.exit(bool(account.lost or account.disorder() or account.early or account.repeated))


if __name__ == "__main__":
    main()
