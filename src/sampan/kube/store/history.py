"""The bounded history of recent changes: where watches resume and older list pages are read.

Of a change only what it ended is kept: the key's entry before. What the key became is found by going back from now, from the live
entry through what later changes ended. So a state at any retained revision can be worked out, and no encoding is kept twice.

The newest changes stand as they are, since nearly every reader wants only those. Older ones are packed into compressed blocks of
some dozens: objects repeat each other and their own past, so ten thousand changes take a few megabytes, not thirty. The history is
bounded by count, by the bytes that it holds, and by those that whoever reads all of it gets: what compresses well is little to
hold, but not to read. What falls out moves ``floor``: history up to there is gone.

Costs: `append` O(1), and half a millisecond for every `BLOCK_COUNT` changes; `since` and `as_of` O(log n + changes after the
revision), for those in blocks several microseconds each.
"""

from __future__ import annotations

import sys
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from sampan.kube.store.interface import Change, CompactedError, Entry
from sampan.kube.store.keys import collection_of

HISTORY_COUNT = 10_000
"""Changes kept at most."""
HISTORY_BYTES = 16 << 20
"""Bytes kept at most, as they are held."""
HISTORY_UNPACKED = 64 << 20
"""Bytes kept at most, as they are when read: a single watch may ask for all of them."""
PLAIN_COUNT = 256
"""The newest changes stand unpacked: so many at least..."""
PLAIN_BYTES = 512 << 10
"""...unless they are more than so many bytes."""
BLOCK_COUNT = 64
"""Changes in a block at most."""
BLOCK_BYTES = 128 << 10
"""Bytes at which a block begins to be full."""
INCOMPRESSIBLE = 512 << 10
"""Bytes of a block that is not compressed, since that would hold up the loop for long: a very large object by itself."""
LEVEL = 3
"""Of compression: as fast here as the lowest, and a sixth smaller."""


class Past(NamedTuple):
    """A change, told by what it ended."""

    revision: int
    key: str
    before: Entry | None
    """The live entry until then; None: the change created the key."""
    last: bytes | None
    """The state in which it went, if the change deleted the key."""

    @property
    def weight(self) -> int:
        """Bytes that this keeps alive."""
        return (0 if self.before is None else len(self.before.value)) + len(self.last or b"")

    def change(self, value: bytes | None) -> Change:
        """The change itself; ``value`` is the key's encoding after it."""
        previous = None if self.before is None else self.before.value
        return Change(self.revision, self.key, value, previous if self.last is None else self.last)


class _Block(NamedTuple):
    """Packed changes."""

    last: int
    """Revision of the newest."""
    changes: int
    """How many."""
    weight: int
    """Bytes that they keep alive once unpacked."""
    collections: frozenset[str]
    """What the keys belong to; who asks for others need not unpack it."""
    data: bytes
    compressed: bool

    @staticmethod
    def pack(changes: list[Past], weight: int) -> _Block:
        data = _encoder.encode(changes)
        compressed = len(data) < INCOMPRESSIBLE
        if compressed:
            data = zlib.compress(data, LEVEL)
        collections = frozenset(sys.intern(collection_of(past.key)) for past in changes)
        return _Block(changes[-1].revision, len(changes), weight, collections, data, compressed)

    def concerns(self, prefix: str) -> bool:
        """Whether there may be changes under ``prefix``."""
        return any(name.startswith(prefix) or prefix.startswith(name) for name in self.collections)

    def unpack(self) -> list[Past]:
        return _decoder.decode(zlib.decompress(self.data) if self.compressed else self.data)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Past])


def _revision(past: Past) -> int:
    return past.revision


def _last(block: _Block) -> int:
    return block.last


class History:
    """Recent changes in revision order."""

    def __init__(
        self,
        live: Mapping[str, Entry],
        floor: int,
        count: int = HISTORY_COUNT,
        size: int = HISTORY_BYTES,
        unpacked: int = HISTORY_UNPACKED,
    ) -> None:
        """``live``: the store's entries as they are after the newest change, whenever this is read."""
        self.floor = floor
        """History up to this revision is gone."""
        self._live = live
        self._count = count
        self._size = size
        self._unpacked = unpacked
        self._blocks: deque[_Block] = deque()
        self._plain: deque[Past] = deque()
        self._packed_count = 0
        self._packed_bytes = 0
        self._packed_weight = 0
        self._plain_bytes = 0

    def __len__(self) -> int:
        return self._packed_count + len(self._plain)

    @property
    def bytes(self) -> int:
        """Bytes that the history holds."""
        return self._packed_bytes + self._plain_bytes

    def append(self, past: Past) -> None:
        """Add the newest change, dropping the oldest ones beyond the bounds."""
        self._plain.append(past)
        self._plain_bytes += past.weight
        if len(self._plain) >= PLAIN_COUNT + BLOCK_COUNT or self._plain_bytes > PLAIN_BYTES + BLOCK_BYTES:
            self._pack()
        while len(self) > self._count or (self._too_large() and len(self) > 1):
            self._drop()

    def _too_large(self) -> bool:
        return self.bytes > self._size or self._packed_weight + self._plain_bytes > self._unpacked

    def trim(self, revision: int, keep: int) -> None:
        """Drop changes up to ``revision``, but keep the newest ``keep`` ones."""
        while len(self) > keep:
            if self._blocks:
                oldest = self._blocks[0]
                if oldest.last > revision or len(self) - oldest.changes < keep:
                    break
            elif self._plain[0].revision > revision:
                break
            self._drop()

    def since(self, prefix: str, after: int) -> list[Change]:
        """Changes under ``prefix`` with a revision greater than ``after``.

        Raises:
            CompactedError: ``after`` is older than what is kept.
        """
        became: dict[str, bytes | None] = {}
        changes: list[Change] = []
        for past in reversed(self._after(after, prefix)):
            if past.key in became:
                value = became[past.key]
            else:
                live = self._live.get(past.key)
                value = None if live is None else live.value
            became[past.key] = None if past.before is None else past.before.value
            changes.append(past.change(value))
        changes.reverse()
        return changes

    def as_of(self, prefix: str, revision: int) -> dict[str, Entry | None]:
        """What differed from now under ``prefix`` at ``revision``: each changed key with its entry then (None: absent).

        Raises:
            CompactedError: ``revision`` is older than what is kept.
        """
        then: dict[str, Entry | None] = {}
        for past in self._after(revision, prefix):
            then.setdefault(past.key, past.before)
        return then

    def _after(self, revision: int, prefix: str) -> list[Past]:
        if revision < self.floor:
            raise CompactedError(revision, self.floor)
        # The newest change is most often the one asked from, so that case must not search.
        if not self._plain or self._plain[-1].revision <= revision:
            return []
        found: list[Past] = []
        if self._plain[0].revision > revision:
            for block in islice(self._blocks, bisect_right(self._blocks, revision, key=_last), None):
                if block.concerns(prefix):
                    found += (
                        past for past in block.unpack() if past.revision > revision and past.key.startswith(prefix)
                    )
        newest = bisect_right(self._plain, revision, key=_revision)
        found += (past for past in islice(self._plain, newest, None) if past.key.startswith(prefix))
        return found

    def _pack(self) -> None:
        """Pack the oldest of the plain changes; never the newest one."""
        changes: list[Past] = []
        weight = 0
        while len(self._plain) > 1 and len(changes) < BLOCK_COUNT and weight < BLOCK_BYTES:
            changes.append(self._plain.popleft())
            weight += changes[-1].weight
        if not changes:
            return
        block = _Block.pack(changes, weight)
        self._blocks.append(block)
        self._packed_count += block.changes
        self._packed_bytes += len(block.data)
        self._packed_weight += weight
        self._plain_bytes -= weight

    def _drop(self) -> None:
        """Drop the oldest block, or the oldest change when none is packed."""
        if self._blocks:
            block = self._blocks.popleft()
            self.floor = block.last
            self._packed_count -= block.changes
            self._packed_bytes -= len(block.data)
            self._packed_weight -= block.weight
        else:
            oldest = self._plain.popleft()
            self.floor = oldest.revision
            self._plain_bytes -= oldest.weight
