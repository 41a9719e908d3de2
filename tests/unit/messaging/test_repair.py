"""A damaged log keeps what is readable: found, mended, and a broker that starts from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sampan.cli.mq import command
from sampan.kernel.clock import Clock
from sampan.parts.messaging import record
from sampan.parts.messaging.errors import StorageError
from sampan.parts.messaging.repair import Report, inspect, repair
from sampan.parts.messaging.storage import salvage
from sampan.parts.messaging.storage.log import FRAME, FRAME_BYTES, SEGMENT_HEADER, Kind, frame_checksum
from sampan.parts.messaging.topology import TopicConfig
from tests.unit.messaging.conftest import Bench, started

SEGMENT = 10_000
EARLIER = b"of an earlier topic"


class Frame(NamedTuple):
    """A frame of the whole log: its bytes in its file, and what it holds."""

    file: str
    begin: int
    end: int
    kind: int
    payload: bytes


class Broker:
    """A broker's folder, and what is in it."""

    def __init__(self, folder: Path, acknowledged: set[tuple[str, int, int]]) -> None:
        self.folder = folder
        self.acknowledged = acknowledged
        self.frames = list(frames_in(folder / "log"))
        self.bodies: dict[tuple[str, int, int], bytes] = {}
        """Topic, queue and offset of each message."""
        for frame in self.frames:
            if frame.kind == Kind.MESSAGE:
                message = record.decode(frame.payload)
                if message.body != EARLIER:
                    self.bodies[message.topic, message.queue_id, message.queue_offset] = message.body


def frozen() -> Clock:
    clock = Clock()
    clock.freeze()
    return clock


def frames_in(log: Path) -> Iterator[Frame]:
    for path in sorted(log.iterdir()):
        data, offset = path.read_bytes(), SEGMENT_HEADER.size
        while len(data) - offset >= FRAME_BYTES:
            length, _, kind, _ = FRAME.unpack_from(data, offset)
            if not kind:
                break
            end = offset + FRAME_BYTES + length
            yield Frame(path.name, offset, end, kind, data[offset + FRAME_BYTES : end])
            offset = end


def entries(bench: Bench) -> dict[tuple[str, int, int], bytes | None]:
    """Every message that a queue says it has; None when it cannot be read."""
    found: dict[tuple[str, int, int], bytes | None] = {}
    store = bench.core.store
    for topic, queue in store.queues():
        for offset in range(queue.minimum, queue.maximum):
            [entry] = store.entries(queue, offset, 1)
            try:
                data = store.log.read_cold(entry.position, entry.size)
                message = record.decode(data)
                assert (message.topic, message.queue_id, message.queue_offset) == (topic.name, queue.id, offset)
                found[topic.name, queue.id, offset] = message.body
            except StorageError:
                found[topic.name, queue.id, offset] = None
    return found


async def drained(bench: Bench, topic: str, group: str) -> set[tuple[str, int, int]]:
    """What a group still gets of a topic."""
    got, nothing = set(), 0
    bench.clock.jump(100)  # every lease is over
    while nothing < 8:  # a call whose messages all turned out to be lost brings nothing either
        await bench.settle(turns=1)
        deliveries = await bench.receive(topic, group)
        nothing = 0 if deliveries else nothing + 1
        got |= {(topic, one.receipt.queue, one.receipt.offset) for one in deliveries}
        await bench.acknowledge(topic, deliveries, group)
    return got


@pytest.fixture(scope="module")
def whole() -> Iterator[Broker]:
    """A broker that stored, delivered, deleted and checkpointed, then was stopped."""
    folder = Path(tempfile.mkdtemp(prefix="repair-"))

    async def fill() -> set[tuple[str, int, int]]:
        acknowledged = set()
        async with started(folder, frozen(), segment_bytes=SEGMENT) as bench:
            store = bench.core.store
            bench.core.broker.create_topic(TopicConfig("one", "NORMAL", 1))
            await bench.send("again", EARLIER)
            bench.core.broker.delete_topic("again")
            for number in range(90):
                topic = ("one", "t", "again")[number % 3]
                await bench.send(topic, b"%02d" % number * (10 + number * 7 % 300))
                if number in (30, 60):
                    store._begin_checkpoint(store.log.durable)
                    await bench.settle(lambda: not store._checkpointing)
                if number % 20 == 19:
                    for topic in ("one", "t"):
                        deliveries = await bench.receive(topic, batch=8)
                        done = deliveries[: len(deliveries) // 2]
                        await bench.acknowledge(topic, done)
                        acknowledged |= {(topic, one.receipt.queue, one.receipt.offset) for one in done}
            await bench.send("later", b"delayed", deliver_at=str(bench.clock.time_ms() + 3_000_000))
            await bench.send("t", b"last")
            await bench.settle(lambda: not store._checkpointing)
        return acknowledged

    yield Broker(folder, asyncio.run(fill()))
    shutil.rmtree(folder)


class Harm(NamedTuple):
    """Something bad that happens to a file of the log."""

    what: str
    file: int
    at: int
    size: int

    def do(self, folder: Path, hurt: defaultdict[str, list[tuple[int, int]]]) -> None:
        """Do it, and note which bytes of which file are no longer what they were."""
        path = sorted((folder / "log").iterdir())[self.file % len(list((folder / "log").iterdir()))]
        length = path.stat().st_size
        at = self.at % max(1, length)
        stop = min(length, at + self.size)
        if self.what == "delete" and len(list((folder / "log").iterdir())) > 1:
            path.unlink()
            hurt[path.name].append((0, length))
        elif self.what == "cut":
            os.truncate(path, at)
            hurt[path.name].append((at, length))
        else:
            with path.open("r+b") as file:
                file.seek(at)
                old = file.read(stop - at)
                file.seek(at)
                file.write(bytes(len(old)) if self.what == "zero" else bytes(byte ^ 0x5A for byte in old))
            hurt[path.name].append((at, stop))


harms = st.builds(
    Harm,
    st.sampled_from(["flip", "flip", "flip", "zero", "cut", "delete"]),
    st.integers(0, 9),
    st.integers(0, SEGMENT),
    st.sampled_from([1, 1, 4, 100, 2000, SEGMENT]),
)


def copy(broker: Broker) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="repair-"))
    shutil.copytree(broker.folder, folder, dirs_exist_ok=True)
    return folder


def harmed(frame: Frame, hurt: dict[str, list[tuple[int, int]]]) -> bool:
    return any(begin < frame.end and frame.begin < end for begin, end in hurt.get(frame.file, []))


def judge(broker: Broker, folder: Path, report: Report, hurt: dict[str, list[tuple[int, int]]]) -> None:
    """The repaired broker has everything that was not harmed, and said what it has not."""
    kept = {
        (message.topic, message.queue_id, message.queue_offset)
        for frame in broker.frames
        if frame.kind == Kind.MESSAGE and not harmed(frame, hurt)
        for message in [record.decode(frame.payload)]
        if message.body != EARLIER
    }

    async def check() -> None:
        async with started(folder, frozen(), segment_bytes=SEGMENT) as bench:
            found = entries(bench)
            assert {place for place, body in found.items() if body is not None} >= kept
            assert all(body in (None, EARLIER, broker.bodies.get(place)) for place, body in found.items())
            told = {(lost.topic, lost.queue, at) for lost in report.lost for at in range(lost.begin, lost.end)}
            if report.repaired:
                assert {place for place, body in found.items() if body is None} <= told
                assert report.messages == sum(body is not None for body in found.values())
            assert not told & kept
            for topic in ("one", "t"):
                if topic in bench.core.store.topics:
                    got = await drained(bench, topic, "g")
                    assert got >= {place for place in kept if place[0] == topic} - broker.acknowledged
            sent = await bench.send("t", b"new")
            assert sent.queue_offset not in {place[2] for place in kept if place[:2] == ("t", sent.queue_id)}
            [timer] = [frame for frame in broker.frames if frame.kind == Kind.TIMER]
            if not harmed(timer, hurt) and "later" in bench.core.store.topics:
                bench.clock.jump(3_100)
                await bench.settle(lambda: bool(sum(q.maximum for q in bench.core.store.topics["later"].queues)))
                assert await bench.bodies("later") == [b"delayed"]
        async with started(folder, frozen(), segment_bytes=SEGMENT) as bench:
            assert b"new" in entries(bench).values()

    asyncio.run(check())
    assert not repair(folder).repaired
    assert not repair(folder).damages


@settings(max_examples=15, deadline=None)
@given(st.lists(harms, min_size=1, max_size=3), st.sampled_from(["whole", "whole", "gone", "flipped"]))
@example([Harm("delete", 0, 0, 1)], "whole")
@example([Harm("delete", 0, 0, 1)], "gone")
@example([Harm("delete", 1, 0, 1)], "gone")
@example([Harm("delete", 9, 0, 1)], "whole")
@example([Harm("cut", 9, 40, 1)], "whole")
@example([Harm("flip", 0, 0, 4)], "whole")
@example([Harm("flip", 9, 40, 1)], "whole")
def test_a_repaired_broker_has_all_that_was_not_harmed(whole: Broker, harm: list[Harm], state: str) -> None:
    folder = copy(whole)
    try:
        hurt: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for one in harm:
            one.do(folder, hurt)
        if state == "gone":
            (folder / "checkpoint").unlink()
        elif state == "flipped":
            data = bytearray((folder / "checkpoint").read_bytes())
            data[60] ^= 0x5A
            (folder / "checkpoint").write_bytes(data)
        report = repair(folder)
        judge(whole, folder, report, hurt)
    finally:
        shutil.rmtree(folder)


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 40), st.sampled_from([100, 2000]), st.sampled_from(["whole", "flipped"]))
def test_a_repair_may_be_killed_at_any_moment_and_begun_again(whole: Broker, step: int, size: int, state: str) -> None:
    folder = copy(whole)
    hurt: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for one in (Harm("flip", 0, 3000, size), Harm("zero", 2, 900, size), Harm("flip", 9, 200, 5)):
        one.do(folder, hurt)
    if state == "flipped":
        (folder / "checkpoint").write_bytes(b"x" * 100)
    left = step

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments, **named)

        return counting

    try:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (os, "fsync"),
                (os, "link"),
                (os, "truncate"),
                (os, "fdatasync"),
                (Path, "replace"),
                (Path, "unlink"),
                (shutil, "copyfile"),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            with contextlib.suppress(Killed):
                repair(folder)
        originals = {path.name: path.read_bytes() for path in (whole.folder / "log").iterdir()}
        for path in (folder / "log").iterdir():
            if re.fullmatch("[0-9]{20}", path.name):
                assert (path.name in originals) and path.stat().st_size >= SEGMENT_HEADER.size
        report = repair(folder)
        judge(whole, folder, report, hurt)
        assert not list((folder / "log").glob("*.mended"))
        if report.aside:
            assert len(list(Path(report.aside).iterdir())) <= 3
    finally:
        shutil.rmtree(folder)


def test_an_inspection_says_where_the_damage_is_and_changes_nothing(whole: Broker) -> None:
    folder = copy(whole)
    first = min((folder / "log").iterdir())
    data = bytearray(first.read_bytes())
    [hurt] = [frame for frame in whole.frames if frame.file == first.name and frame.begin <= 5000 < frame.end]
    data[5000] ^= 1
    first.write_bytes(data)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report = inspect(folder)
    assert [(one.file, one.begin, one.end) for one in report.damages] == [(first.name, hurt.begin, hurt.end)]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    shutil.rmtree(folder)


def test_bytes_of_a_message_do_not_pass_for_frames(tmp_path: Path) -> None:
    forged = b"\x91\x80"
    fake = FRAME.pack(len(forged), frame_checksum(Kind.ACK, 0, 0, forged), Kind.ACK, 0) + forged

    async def fill() -> None:
        async with started(tmp_path, frozen()) as bench:
            bench.core.broker.create_topic(TopicConfig("t", queues=1))
            await bench.send("t", b"first")
            await bench.send("t", b"x" * 50 + fake + b"y" * 50)
            await bench.send("t", b"last")

    asyncio.run(fill())
    path = min((tmp_path / "log").iterdir())
    data = path.read_bytes()
    [_, second, third] = [frame for frame in frames_in(tmp_path / "log") if frame.kind == Kind.MESSAGE]
    path.write_bytes(
        data[: second.begin] + b"\xff" * 12 + data[second.begin + 12 :]
    )  # where the next frame is, is not known
    assert [(one.begin, one.end) for one in inspect(tmp_path).damages] == [(second.begin, third.begin)]
    assert [(one.topic, one.end - one.begin) for one in repair(tmp_path).lost] == [("t", 1)]


async def test_a_broker_that_runs_is_not_repaired(tmp_path: Path) -> None:
    async with started(tmp_path, frozen()) as bench:
        await bench.send("t")
        for what in (inspect, repair):
            with pytest.raises(StorageError, match="another broker has"):
                what(tmp_path)
    with pytest.raises(StorageError, match="no commit log"):
        repair(tmp_path / "nowhere")


async def test_a_broker_does_not_start_from_a_half_repaired_log(tmp_path: Path) -> None:
    async with started(tmp_path, frozen()) as bench:
        bench.core.broker.create_topic(TopicConfig("t", queues=1))
        for number in range(3):
            await bench.send("t", b"%d" % number * 100)
    path = min((tmp_path / "log").iterdir())
    path.write_bytes(path.read_bytes().replace(b"1" * 100, b"?" * 100))
    with pytest.raises(StorageError, match="sampan mq repair"):
        async with started(tmp_path, frozen()):
            pass
    [segment] = salvage.survey(tmp_path / "log")
    salvage.mend(tmp_path / "log", segment, tmp_path / "damaged")
    with pytest.raises(StorageError, match="not finished"):
        async with started(tmp_path, frozen()):
            pass
    report = repair(tmp_path)
    assert report.definitions
    assert sum(lost.end - lost.begin for lost in report.lost) == 1
    async with started(tmp_path, frozen()) as bench:
        assert sorted(body for body in entries(bench).values() if body) == [b"0" * 100, b"2" * 100]


def test_a_broker_that_lost_its_whole_log_goes_on_behind_it(tmp_path: Path) -> None:
    async def fill() -> None:
        async with started(tmp_path, frozen()) as bench:
            bench.core.broker.create_topic(TopicConfig("t", queues=1))
            for number in range(5):
                await bench.send("t", b"%d" % number)
            bench.core.store._begin_checkpoint(bench.core.store.log.durable)
            await bench.settle(lambda: not bench.core.store._checkpointing)

    async def check() -> None:
        async with started(tmp_path, frozen()) as bench:
            assert entries(bench) == {}
            assert await bench.bodies("t") == []
            assert (await bench.send("t", b"new")).queue_offset == 5
            assert await bench.bodies("t") == [b"new"]

    asyncio.run(fill())
    for path in (tmp_path / "log").iterdir():
        path.unlink()
    assert [(lost.begin, lost.end) for lost in repair(tmp_path).lost] == [(0, 5)]
    asyncio.run(check())
    assert not repair(tmp_path).repaired


def test_the_command_tells_what_is_gone(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(command, ["--data-dir", str(tmp_path), "repair", *arguments], catch_exceptions=True)
        return result.output if result.exception is None else f"{type(result.exception).__name__}: {result.exception}"

    assert run().startswith("StorageError") and "has no commit log" in run()
    folder = tmp_path / "parts" / "messaging"

    async def fill() -> None:
        async with started(folder, frozen()) as bench:
            bench.core.broker.create_topic(TopicConfig("t", queues=1))
            for number in range(5):
                await bench.send("t", b"%d" % number * 100)

    asyncio.run(fill())
    assert run() == "nothing is damaged\n"
    path = min((folder / "log").iterdir())
    path.write_bytes(path.read_bytes().replace(b"2" * 100, b"?" * 100).replace(b"3" * 100, b"?" * 100))
    looked = run("--dry-run")
    assert f"{path.name}: " in looked and "bytes are damaged" in looked and "keeps everything else" in looked
    assert run("--dry-run") == looked
    told = run()
    assert "gone: t queue 0 offset 2 to 3\n" in told
    assert "it looks like message id-3 of t queue 0 offset 2\n" in told
    assert f"kept in {folder / 'damaged'}" in told
    assert told.endswith("3 messages can be read\n")
    assert json.loads(run("--json"))["repaired"] is False
