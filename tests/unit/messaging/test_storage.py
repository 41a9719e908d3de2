"""The log, the index, timers and records, each on its own."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.messaging import record
from sampan.parts.messaging.errors import StorageError
from sampan.parts.messaging.record import Message
from sampan.parts.messaging.storage.index import Index, Part
from sampan.parts.messaging.storage.log import CommitLog, Kind
from sampan.parts.messaging.timers import NEVER, Timers

texts = st.text(st.characters(exclude_characters="\x01\x02", exclude_categories=["Cs"]), max_size=20)


@given(
    st.builds(
        Message,
        topic=st.text("abc%_-", min_size=1, max_size=200),
        body=st.binary(max_size=100),
        properties=st.dictionaries(texts.filter(bool), texts, max_size=5),
        queue_id=st.integers(0, 1 << 20),
        queue_offset=st.integers(0, 1 << 60),
        position=st.integers(0, 1 << 60),
        sys_flag=st.integers(0, 1 << 20),
        born_ms=st.integers(0, 1 << 50),
        store_ms=st.integers(0, 1 << 50),
        reconsume=st.integers(0, 100),
        prepared=st.integers(0, 1 << 60),
    )
)
def test_a_record_is_read_as_it_was_written(message: Message) -> None:
    data = record.encode(message)
    assert record.decode(data) == message
    assert record.properties_of(data) == message.properties
    assert record.store_ms_of(data) == message.store_ms
    encoded = record.encode_properties(message.properties)
    assert len(data) == record.record_size(len(message.topic.encode()), len(message.body), len(encoded))


@given(st.binary(max_size=300))
def test_no_bytes_break_the_record_reader(data: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        record.decode(data)


def test_java_hash_and_jump_hash_agree_with_java() -> None:
    assert record.java_hash("AaAa") == record.java_hash("BBBB") == 2031744
    assert record.java_hash("polygenelubricants") == -2147483648
    assert record.java_hash("héé") == 107400
    assert [record.jump_hash(key, 10) for key in (0, 1, 2, 3)] == [0, 6, 6, 8] or record.jump_hash(0, 1) == 0
    assert all(0 <= record.jump_hash(key, 7) < 7 for key in range(-50, 50))


class Log:
    """A commit log that notes what became durable."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.events: list[tuple[int, OSError | None]] = []
        self.log = CommitLog(path, on_commit=self._committed, **{"segment_bytes": 4096, **settings})
        self.log.open()
        try:
            self.found = [(kind, payload) for _, kind, payload in self.log.replay(self.log.begin)]
        except StorageError:
            self.log.close()
            raise
        self._changed = asyncio.Event()
        self.log.start()

    def _committed(self, durable: int, error: OSError | None) -> None:
        self.events.append((durable, error))
        self._changed.set()

    async def append(self, *payloads: bytes) -> list[int]:
        positions = [self.log.append(Kind.ACK, payload) for payload in payloads]
        count = len(self.events)
        while len(self.events) == count:
            self._changed.clear()
            await self._changed.wait()
        return positions


async def test_frames_survive_and_segments_roll(tmp_path: Path) -> None:
    log = Log(tmp_path)
    positions = await log.append(*[bytes([n]) * 1000 for n in range(10)])
    assert len(log.log.bases) == 3
    assert [log.log.read(position, 1000) for position in positions] == [bytes([n]) * 1000 for n in range(10)]
    assert log.log.size_at(positions[3]) == 1000
    await log.log.stop()
    again = Log(tmp_path)
    assert [payload[0] for _, payload in again.found] == list(range(10))
    await again.log.stop()


@pytest.mark.parametrize("cut", [1, 11, 12, 500])
async def test_a_torn_tail_is_cut_off_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    log = Log(tmp_path)
    await log.append(b"a" * 1000)
    await log.append(b"b" * 1000)
    await log.log.stop()
    [path] = tmp_path.iterdir()  # noqa: ASYNC240
    os.truncate(path, path.stat().st_size - cut)
    log = Log(tmp_path)
    assert [payload for _, payload in log.found] == [b"a" * 1000]
    await log.append(b"c")
    await log.log.stop()
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"a", b"c"]
    await log.log.stop()


async def test_damage_before_the_tail_is_an_error(tmp_path: Path) -> None:
    log = Log(tmp_path)
    await log.append(*[b"x" * 1000 for _ in range(6)])
    await log.log.stop()
    first = min(tmp_path.iterdir())  # noqa: ASYNC240
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    with pytest.raises(StorageError, match="damaged at byte"):
        Log(tmp_path)


async def test_acknowledged_messages_behind_damage_are_never_cut_off(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for letter in b"abc":
        await log.append(bytes([letter]) * 100)
    await log.log.stop()
    [path] = tmp_path.iterdir()  # noqa: ASYNC240
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"bb", b"b!", 1))
    with pytest.raises(StorageError, match="what was stored later follows"):
        Log(tmp_path)
    path.write_bytes(whole.replace(b"cc", b"c!", 1))
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"a", b"b"]
    await log.log.stop()


async def test_a_torn_batch_is_cut_off_whichever_of_its_pages_came_to_disk(tmp_path: Path) -> None:
    log = Log(tmp_path)
    await log.append(b"a" * 100)
    await log.append(b"b" * 100, b"c" * 100, b"d" * 100)
    await log.log.stop()
    [path] = tmp_path.iterdir()  # noqa: ASYNC240
    path.write_bytes(path.read_bytes().replace(b"b" * 100, bytes(100)))
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"a"]
    await log.append(b"e" * 100)
    await log.log.stop()
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"a", b"e"]
    await log.log.stop()


async def test_space_is_prepared_in_pauses_and_means_nothing_after_a_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path, segment_bytes=1 << 20)
    for number in range(5):
        await log.append(b"%d" % number)
    [path] = tmp_path.iterdir()  # noqa: ASYNC240
    while path.stat().st_size <= log.log.end:
        await asyncio.sleep(0.001)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    copy = crashed / path.name
    copy.write_bytes(path.read_bytes())
    await log.log.stop()
    assert path.stat().st_size == log.log.end
    again = Log(crashed, segment_bytes=1 << 20)
    assert [payload for _, payload in again.found] == [b"%d" % number for number in range(5)]
    assert again.log.end == log.log.end == copy.stat().st_size
    assert not caplog.records
    await again.log.stop()


@pytest.mark.parametrize("prepared", [0, 5000])
async def test_a_segment_whose_header_was_not_written_is_begun_anew(tmp_path: Path, prepared: int) -> None:
    log = Log(tmp_path)
    await log.append(*[b"x" * 1000 for _ in range(3)])
    end = log.log.end
    await log.log.stop()
    (tmp_path / f"{end:020d}").write_bytes(bytes(prepared))
    log = Log(tmp_path)
    assert len(log.found) == 3
    await log.append(b"y")
    await log.log.stop()
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"x", b"x", b"x", b"y"]
    await log.log.stop()


async def test_a_log_of_the_first_format_is_read_and_continued(tmp_path: Path) -> None:
    frames = b"".join(
        struct.pack("<IIBxxx", len(payload), zlib.crc32(bytes([Kind.ACK, 0, 0, 0]) + payload), Kind.ACK) + payload
        for payload in (b"one", b"two")
    )
    (tmp_path / f"{0:020d}").write_bytes(b"SMPNLOG\x01" + bytes(24) + frames)
    log = Log(tmp_path)
    await log.append(b"three")
    await log.log.stop()
    # a version that knows no flags refuses it from now on: it would cut the third frame off as torn
    assert (tmp_path / f"{0:020d}").read_bytes()[:8] == b"SMPNLOG\x02"
    log = Log(tmp_path)
    assert [payload for _, payload in log.found] == [b"one", b"two", b"three"]
    await log.log.stop()


async def test_without_flushing_a_segment_is_on_disk_before_there_is_a_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, sync=False, segment_bytes=4096)
    fdatasync = os.fdatasync
    flushed: list[list[str]] = []

    def segments() -> list[str]:
        return sorted(one.name for one in tmp_path.iterdir())

    def noted(fd: int) -> None:
        flushed.append(segments())
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    log.log.append(int(Kind.ACK), b"x" * 3000, urgent=False)
    await log.append(b"y" * 3000)  # one batch for both
    assert len(segments()) == 2
    assert flushed == [segments()[:1]]
    await log.log.stop()


async def test_one_folder_has_one_broker(tmp_path: Path) -> None:
    log = Log(tmp_path)
    with pytest.raises(StorageError, match="another broker"):
        Log(tmp_path)
    await log.append(b"x")
    await log.log.stop()
    log = Log(tmp_path)
    await log.log.stop()


async def test_a_failed_write_is_taken_back_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path)
    await log.append(b"a" * 100)
    real = os.pwrite
    full = True

    def write(fd: int, data: memoryview, offset: int) -> int:
        if not full:
            return real(fd, data, offset)
        real(fd, data[:50], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sampan.parts.messaging.storage.log.os.pwrite", write)
    await log.append(b"b" * 5000)
    assert isinstance(log.events[-1][1], OSError)
    assert log.log.end == log.log.durable
    full = False
    [position] = await log.append(b"c" * 100)
    assert log.events[-1][1] is None
    assert log.log.read(position, 100) == b"c" * 100
    await log.log.stop()
    log = Log(tmp_path)
    assert [payload[:1] for _, payload in log.found] == [b"a", b"c"]
    await log.log.stop()


async def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{0:020d}").write_bytes(b"SMPNLOG\x04" + bytes(24))
    with pytest.raises(StorageError, match="format 1 to 3"):
        Log(tmp_path)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "k1", "k2"]), st.booleans()), min_size=1, max_size=60)
)
def test_the_index_finds_what_was_added_across_parts(entries: list[tuple[int, str, bool]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder))
        index.open(0)
        expected: dict[int, list[int]] = {}
        keys: dict[str, list[int]] = {}
        for number, (queue, key, freeze) in enumerate(entries):
            position = number * 100 + 44
            from sampan.parts.messaging.storage.index import key_hash

            index.live.add(queue, len(expected.setdefault(queue, [])), position, 7, number)
            expected[queue].append(position)
            if key:
                index.live.add_key(key_hash(key), position, 7)
                keys.setdefault(key, []).insert(0, position)
            if freeze:
                live = index.freeze(number * 100 + 100)
                assert live is not None
                assert [p for p, _ in index.find_key("k1")] == keys.get("k1", [])
                index.adopt(Part(live.write(Path(folder), number * 100 + 100)))
        for queue, positions in expected.items():
            found: list[int] = []
            while len(found) < len(positions):
                step = index.entries(queue, len(found), 1000)
                assert [entry.offset for entry in step] == list(range(len(found), len(found) + len(step)))
                found += [entry.position for entry in step]
            assert found == positions
            assert index.entries(queue, len(positions), 10) == []
        for key, positions in keys.items():
            assert [p for p, _ in index.find_key(key)] == positions
        index.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5000)),
            st.tuples(st.just("cancel"), st.integers(0, 30)),
            st.tuples(st.just("due"), st.integers(0, 3000)),
        ),
        max_size=60,
    )
)
def test_timers_agree_with_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    timers, model, now, position = Timers(), {}, 0, 0
    for what, value in steps:
        if what == "set":
            position += 1
            model[position] = now + value
            timers.set(now + value, position)
        elif what == "cancel":
            due = model.pop(value, None)
            assert timers.cancel(due if due is not None else 0, value) is (due is not None)
        else:
            now += value
            taken = timers.due(now, 1000)
            expected = sorted((due, at) for at, due in model.items() if due <= now)
            assert taken == expected
            for _, at in taken:
                del model[at]
        assert timers.count == len(model)
        assert sorted(timers) == sorted((due, at) for at, due in model.items())
        assert timers.next_due() <= min(model.values(), default=NEVER)
        assert sum(timers.ahead(now, (1, 2, 5))) == len(model)


def test_timers_are_counted_by_how_far_ahead_they_are() -> None:
    timers = Timers()
    for position, ahead in enumerate((0, 4_999, 5_000, 59_000, 60_000, 400_000_000)):
        timers.set(1_000_000 + ahead, position)
    timers.due(1_000_000, 0)
    assert timers.ahead(1_000_000, (5, 60, 259_200)) == [2, 2, 2]
