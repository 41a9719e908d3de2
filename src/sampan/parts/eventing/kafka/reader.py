"""Reading Kafka topics as one member of a consumer group; a record's offset is committed when it has been handled.

`Reader` keeps a connection and hands each record to its handler. The records of a partition go one after the other
(``ordered``) or many at once; partitions never wait for each other, so a record that is tried again and again holds up its own
partition at most. A partition that is behind is paused, the others go on. Offsets are committed up to the first record that
is not handled yet: whatever dies, nothing is skipped. A new group begins where it is told to and commits that at once, so that
what is written from then on is read even if the first connection does not last.

The client library is ``aiokafka``, an extra: `AVAILABLE` says whether it is here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import ssl
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.eventing.errors import ConnectionSettingsError
from sampan.parts.eventing.kafka.records import Record

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

log = logging.getLogger(__name__)

AVAILABLE = importlib.util.find_spec("aiokafka") is not None
POLL_MS = 500
"""Milliseconds a poll waits for records; polls also keep the place in the group."""
QUEUED = 256
"""Records of a partition in hand before it is paused."""
AT_ONCE = 32
"""Records of a partition handled at once where their order does not matter."""
LEAVE = 3.0
"""Seconds that records in hand get when another member takes their partition over."""
RETRY = (0.5, 15.0)
"""Seconds before the first and at most before further attempts to connect."""


class Connection(msgspec.Struct, frozen=True):
    """Where and how to connect. The PEM texts may be empty."""

    servers: tuple[str, ...]
    tls: bool = False
    certificate: str = ""
    key: str = ""
    authority: str = ""
    mechanism: str = ""
    """PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty: none."""
    user: str = ""
    password: str = ""

    def options(self) -> dict[str, Any]:
        """As the client library takes it.

        Raises:
            ConnectionSettingsError: a certificate or key is none.
        """
        protocol = ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")
        found: dict[str, Any] = {"bootstrap_servers": list(self.servers), "security_protocol": protocol}
        if self.mechanism:
            found |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        if self.tls:
            found["ssl_context"] = self._tls()
        return found

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cadata=self.authority or None)
            if self.certificate:
                with tempfile.TemporaryDirectory(prefix="sampan-kafka-") as folder:  # ssl reads keys from files only
                    pair = Path(folder) / "pair.pem"
                    pair.touch(0o600)
                    pair.write_text(f"{self.key}\n{self.certificate}\n")
                    context.load_cert_chain(pair)
        except (ssl.SSLError, ValueError) as error:
            raise ConnectionSettingsError(f"a certificate or key of net.tls cannot be used: {error}") from None
        return context


class Place(Protocol):
    """A partition of a topic, as the client library names it."""

    topic: str
    partition: int

    def __hash__(self) -> int: ...


class _Partition:
    """One partition in our hands."""

    def __init__(self) -> None:
        self.queue: deque[Record] = deque()
        self.pending: dict[int, bool] = {}
        """Offsets in hand in their order; True: handled."""
        self.commit = -1
        """The offset to commit: that of the first record not handled yet; -1: nothing new."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.paused = False
        self.closing = False


Handle = Callable[[Record], Awaitable[None]]


class Reader:
    """One member of a consumer group, until it is closed."""

    def __init__(
        self,
        connection: Connection,
        topics: Collection[str],
        group: str,
        clock: Clock,
        handle: Handle,
        changed: Callable[[], None],
        *,
        earliest: bool = False,
        ordered: bool = True,
        name: str = "sampan",
    ) -> None:
        """``handle`` returns when a record is done with; ``changed`` hears when `ready` or `problem` change."""
        self.ready = False
        """It is a member of its group, and the group's first offsets are committed."""
        self.problem = ""
        """Why it is not connected."""
        self._connection, self._topics, self._group, self._name = connection, topics, group, name
        self._clock, self._handle, self._changed = clock, handle, changed
        self._earliest, self._ordered = earliest, ordered
        self._partitions: dict[Place, _Partition] = {}
        self._assigned: set[Place] | None = None
        """Partitions whose first offset is still to be committed; None: none were given yet."""
        self._work = asyncio.Event()
        self._tasks = Tasks(clock, f"kafka/{group}")

    def start(self) -> None:
        """Begin to connect and read."""
        self._tasks.start("read", self._run())

    async def close(self) -> None:
        """Leave the group; what is in hand is read again by whoever comes next."""
        await self._tasks.cancel()

    async def _run(self) -> None:
        from aiokafka.errors import KafkaError

        delay = RETRY[0]
        while True:
            try:
                await self._read()
            except (KafkaError, OSError, ConnectionSettingsError) as error:
                self._tell(False, str(error) or type(error).__name__)
                log.warning("%s: %s", self._name, self.problem)
            except Exception:
                self._tell(False, "reading failed; the log says why")
                log.exception("%s: reading failed", self._name)
            await self._clock.sleep(delay)
            delay = min(delay * 2, RETRY[1]) if not self.ready else RETRY[0]

    def _tell(self, ready: bool, problem: str = "") -> None:
        if (ready, problem) != (self.ready, self.problem):
            self.ready, self.problem = ready, problem
            self._changed()

    async def _read(self) -> None:
        from aiokafka import AIOKafkaConsumer

        consumer: AIOKafkaConsumer = AIOKafkaConsumer(
            group_id=self._group,
            client_id=self._name,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if self._earliest else "latest",
            **self._connection.options(),
        )
        committer: asyncio.Task[None] | None = None
        try:
            await consumer.start()
            consumer.subscribe(list(self._topics), listener=_listener(self, consumer))
            committer = self._tasks.keep("commit", lambda: self._commit(consumer))
            while True:
                found = await consumer.getmany(timeout_ms=POLL_MS, max_records=QUEUED)
                for place, records in found.items():
                    self._take(consumer, place, records)
                await self._commit_first(consumer)
        finally:
            if committer is not None:
                committer.cancel()
            for place in list(self._partitions):
                self._drop(place)
            self._assigned = None
            await consumer.stop()

    # -- partitions

    def _take(
        self,
        consumer: AIOKafkaConsumer,
        place: Place,
        records: Iterable[Record],
    ) -> None:
        partition = self._partitions.setdefault(place, _Partition())
        for record in records:
            partition.queue.append(record)
            partition.pending[record.offset] = False
        if len(partition.pending) >= QUEUED and not partition.paused:
            partition.paused = True
            consumer.pause(place)
        self._fill(consumer, place, partition)

    def _fill(self, consumer: AIOKafkaConsumer, place: Place, partition: _Partition) -> None:
        """Keep as many hands on a partition as it may have."""
        if partition.closing:
            return
        hands = min(1 if self._ordered else AT_ONCE, len(partition.tasks) + len(partition.queue))
        for _ in range(hands - len(partition.tasks)):
            partition.tasks.add(self._tasks.start("handle", self._drain(consumer, place, partition)))

    async def _drain(self, consumer: AIOKafkaConsumer, place: Place, partition: _Partition) -> None:
        try:
            while partition.queue and not partition.closing:
                record = partition.queue.popleft()
                try:
                    await self._handle(record)
                except Exception:  # its offset is not passed: whoever reads next gets it again
                    log.exception("%s: handling offset %d of %s failed", self._name, record.offset, place)
                    continue
                self._handled(consumer, place, partition, record.offset)
        finally:
            partition.tasks.discard(asyncio.current_task())

    def _handled(
        self,
        consumer: AIOKafkaConsumer,
        place: Place,
        partition: _Partition,
        offset: int,
    ) -> None:
        partition.pending[offset] = True
        for first in list(partition.pending):
            if not partition.pending[first]:
                break
            del partition.pending[first]
            partition.commit = first + 1
            self._work.set()
        if partition.paused and len(partition.pending) < QUEUED // 2 and self._partitions.get(place) is partition:
            partition.paused = False
            consumer.resume(place)

    async def give_up(self, consumer: AIOKafkaConsumer, places: Iterable[Place]) -> None:
        """The group takes partitions away: finish what is under way, if it is soon finished, and commit."""
        leaving = {place: self._partitions[place] for place in places if place in self._partitions}
        under_way: set[asyncio.Task[None]] = set()
        for partition in leaving.values():
            partition.closing = True
            under_way |= partition.tasks
        if under_way:
            try:
                async with self._clock.timeout(LEAVE):
                    await asyncio.wait(under_way)
            except TimeoutError:
                log.info("%s: %d records are under way where a partition is given up", self._name, len(under_way))
        await self._commit_done(consumer)
        for place in leaving:
            self._drop(place)

    def given(self, places: Iterable[Place]) -> None:
        """The group gives partitions."""
        self._assigned = set(places)

    def _drop(self, place: Place) -> None:
        partition = self._partitions.pop(place, None)
        if partition is not None:
            partition.closing = True
            for task in partition.tasks:
                task.cancel()

    # -- offsets

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            await self._commit_done(consumer)

    async def _commit_done(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka.errors import KafkaError

        offsets = {place: one.commit for place, one in self._partitions.items() if one.commit >= 0}
        if not offsets:
            return
        for place in offsets:
            self._partitions[place].commit = -1
        try:
            await consumer.commit(offsets)
        except KafkaError as error:  # another member has the partition: it reads them again, at least once
            log.info("%s: offsets were not committed: %s", self._name, error)

    async def _commit_first(self, consumer: AIOKafkaConsumer) -> None:
        """Commit where a new group begins, so that nothing written from now on is missed."""
        from aiokafka.errors import CommitFailedError, IllegalStateError

        if self._assigned is None:
            return
        try:
            while self._assigned:
                place = next(iter(self._assigned))
                if await consumer.committed(place) is None:
                    await consumer.commit({place: await consumer.position(place)})
                self._assigned.discard(place)
        except (CommitFailedError, IllegalStateError) as error:
            log.info("%s: the group shares its partitions anew: %s", self._name, type(error).__name__)
        else:
            self._tell(True)


def _listener(reader: Reader, consumer: AIOKafkaConsumer) -> Any:
    """What the client library tells when partitions come and go."""
    from aiokafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        async def on_partitions_revoked(self, revoked: Iterable[Place]) -> None:
            await reader.give_up(consumer, revoked)

        async def on_partitions_assigned(self, assigned: Iterable[Place]) -> None:
            reader.given(assigned)

    return Listener()
