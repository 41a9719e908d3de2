"""The nf_tables data path, for pods with network namespaces: `nft_table` kept in step with frontends and policy.

Every change is one transaction: a connection finds the endpoints of before or of after. The table stays while this process is
away, and the next one replaces it in one transaction with a whole one, so running pods never miss their Services or policies
meanwhile; it goes with the node's pods (the node part takes it away).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from ipaddress import IPv4Network

from sampan.kernel import nftables
from sampan.kernel.nftables import Batch
from sampan.parts.network.datapath import conntrack, nft_table
from sampan.parts.network.datapath.nft_table import Entries
from sampan.parts.network.policy import Isolation
from sampan.parts.network.services import Backends, Frontend

log = logging.getLogger(__name__)


class PacketPath:
    """One node's table."""

    def __init__(self, table: str, pod_range: str, *, host: bool) -> None:
        """``host``: processes of this machine reach Services, too (else only pods do)."""
        self.table = table
        self.pod_range = pod_range
        self._range = IPv4Network(pod_range)
        self._host = host
        self._frontends: dict[Frontend, Backends] = {}
        self._counts: Counter[tuple[str, bytes]] = Counter()
        """How many frontends need an element."""
        self._chains: set[str] = set()
        self._policy: Entries = {}
        self._pod_ranges: list[IPv4Network] = []
        self._turn = asyncio.Lock()
        """Of whoever changes frontends."""
        self._ended = False

    def begin(
        self,
        frontends: Mapping[Frontend, Backends],
        isolated: Mapping[str, Isolation],
        pod_ranges: Sequence[IPv4Network],
    ) -> None:
        """Put the table in the place of the one an earlier process left. Raises OSError."""
        batch = Batch(self.table)
        nft_table.lay_out(batch, self._range, host=self._host)
        nft_table.lay_out_outside(batch, pod_ranges)
        self._frontends, self._chains = dict(frontends), set()
        elements: Entries = {}
        counts: Counter[tuple[str, bytes]] = Counter()
        for frontend, backends in frontends.items():
            self._add_chain(batch, backends)
            made = nft_table.entries(frontend, backends)
            elements |= made
            counts.update(made.keys())
        self._policy = nft_table.policy_entries(isolated)
        _add(batch, elements | self._policy)
        batch.commit()
        self._counts, self._pod_ranges = counts, list(pod_ranges)

    def stands(self) -> bool:
        """The table is there. Raises OSError."""
        return nftables.exists(self.table)

    def remove(self) -> None:
        """Take the table away. Raises OSError."""
        nftables.remove(self.table)

    async def leave(self) -> None:
        """Put nothing there any more: what is being put is there when this returns, and another may have the table."""
        self._ended = True
        async with self._turn:
            return

    async def end(self) -> None:
        """Leave the table, and take it away. Raises OSError."""
        await self.leave()
        await asyncio.to_thread(self.remove)

    def _add_chain(self, batch: Batch, backends: Backends) -> None:
        chain = nft_table.chain_of(backends)
        if backends.endpoints and chain not in self._chains:
            nft_table.add_choice(batch, chain)
            self._chains.add(chain)

    # -- frontends

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """See `DataPath`."""
        await self._change(frontend, backends)

    async def drop(self, frontend: Frontend) -> None:
        """See `DataPath`."""
        await self._change(frontend, None)

    async def _change(self, frontend: Frontend, backends: Backends | None) -> None:
        async with self._turn:
            former = self._frontends.get(frontend)
            if former == backends or self._ended:
                return
            # in a thread: the kernel lets all packets of before pass first, which takes milliseconds
            await asyncio.to_thread(self.set, frontend, backends)
        old = frozenset(former.endpoints if former is not None else ())
        new = frozenset(backends.endpoints if backends is not None else ())
        if frontend.protocol == "UDP" and (former is None or old - new):
            await self._forget({(frontend.address, frontend.port): new})

    async def settle(self) -> None:
        """Forget the UDP flows that began with an earlier table, or with none, and go where nobody is."""
        endpoints = {
            (frontend.address, frontend.port): frozenset(backends.endpoints)
            for frontend, backends in self._frontends.items()
            if frontend.protocol == "UDP"
        }
        if endpoints:
            await self._forget(endpoints)

    async def _forget(self, endpoints: Mapping[conntrack.End, frozenset[conntrack.End]]) -> None:
        try:
            await asyncio.to_thread(conntrack.forget_stale, endpoints)
        except OSError as error:
            # the table is as it should be: only clients that never stop asking with one socket suffer
            log.warning("UDP flows to former endpoints cannot be forgotten: %s", error)

    def set(self, frontend: Frontend, backends: Backends | None) -> None:
        """Change a frontend, or with None take it away. Raises OSError."""
        former = self._frontends.get(frontend)
        if former == backends:
            return
        old = nft_table.entries(frontend, former) if former is not None else {}
        new = nft_table.entries(frontend, backends) if backends is not None else {}
        batch, chains = Batch(self.table), set(self._chains)
        if backends is not None:
            self._add_chain(batch, backends)
        counts = self._counts
        gone = {place: one for place, one in old.items() if place not in new and counts[place] == 1}
        come = {place: one for place, one in new.items() if place not in old and counts[place] == 0}
        changed = {place: one for place, one in new.items() if place in old and old[place] != one}
        _delete(batch, gone | changed)
        _add(batch, come | changed)
        try:
            batch.commit()
        except OSError:
            self._chains = chains
            raise
        counts.subtract(old.keys())
        counts.update(new.keys())
        for place in gone:
            del counts[place]
        if backends is None:
            del self._frontends[frontend]
        else:
            self._frontends[frontend] = backends

    @property
    def frontends(self) -> Set[Frontend]:
        """What the table has."""
        return self._frontends.keys()

    @property
    def size(self) -> int:
        """Frontends."""
        return len(self._frontends)

    # -- pods

    def enforce(self, isolated: Mapping[str, Isolation]) -> None:
        """Keep these policies from now on, and no others. Raises OSError."""
        new = nft_table.policy_entries(isolated)
        batch = Batch(self.table)
        _delete(batch, {place: one for place, one in self._policy.items() if place not in new})
        _add(batch, {place: one for place, one in new.items() if place not in self._policy})
        batch.commit()
        self._policy = new

    def know(self, pod_ranges: Sequence[IPv4Network]) -> None:
        """The nodes' pod ranges: pods are seen there as they are, elsewhere as this machine. Raises OSError."""
        if list(pod_ranges) == self._pod_ranges:
            return
        batch = Batch(self.table)
        nft_table.lay_out_outside(batch, pod_ranges)
        batch.commit()
        self._pod_ranges = list(pod_ranges)


def _by_set(elements: Entries) -> dict[str, list[nftables.Element]]:
    sets: dict[str, list[nftables.Element]] = {}
    for (name, _), one in elements.items():
        sets.setdefault(name, []).append(one)
    return sets


def _add(batch: Batch, elements: Entries) -> None:
    for name, some in _by_set(elements).items():
        batch.add_elements(name, some)


def _delete(batch: Batch, elements: Entries) -> None:
    for name, some in _by_set(elements).items():
        batch.delete_elements(name, some)
