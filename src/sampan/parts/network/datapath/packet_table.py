"""What is in the nf_tables table, and how it changes: `nft_table`'s entries, counted and changed by difference.

`PacketTable` asks the kernel and waits for it, which lets all packets of before pass first: milliseconds for a change, most of
a second for thousands of Services. So only one thread at a time uses it, which is not the event loop's (`packets`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network

from sampan.kernel import nftables
from sampan.kernel.nftables import Batch
from sampan.parts.network.datapath import nft_table
from sampan.parts.network.datapath.nft_table import Entries
from sampan.parts.network.policy import Isolation
from sampan.parts.network.services import Backends, Frontend


class PacketTable:
    """One node's table. A frontend or policy that the kernel refuses (OSError) changes nothing here either."""

    def __init__(self, name: str, pod_range: str, *, host: bool) -> None:
        """``host``: processes of this machine reach Services, too (else only pods do)."""
        self.name = name
        self.pod_range = pod_range
        self._range = IPv4Network(pod_range)
        self._host = host
        self._frontends: dict[Frontend, Backends] = {}
        self._counts: Counter[tuple[str, bytes]] = Counter()
        """How many frontends need an element."""
        self._chains: set[str] = set()
        self._policy: Entries = {}
        self._pod_ranges: list[IPv4Network] = []

    def begin(
        self,
        frontends: Mapping[Frontend, Backends],
        isolated: Mapping[str, Isolation],
        pod_ranges: Sequence[IPv4Network],
    ) -> None:
        """Put the table in the place of the one an earlier process left. Raises OSError."""
        batch = Batch(self.name)
        nft_table.lay_out(batch, self._range, host=self._host)
        nft_table.lay_out_outside(batch, pod_ranges)
        self._chains = set()
        elements: Entries = {}
        counts: Counter[tuple[str, bytes]] = Counter()
        for frontend, backends in frontends.items():
            self._add_chain(batch, backends)
            made = nft_table.entries(frontend, backends)
            elements |= made
            counts.update(made.keys())
        policy = nft_table.policy_entries(isolated)
        _add(batch, elements | policy)
        batch.commit()
        self._frontends, self._counts = dict(frontends), counts
        self._policy, self._pod_ranges = policy, list(pod_ranges)

    def stands(self) -> bool:
        """The table is there. Raises OSError."""
        return nftables.exists(self.name)

    def remove(self) -> None:
        """Take the table away. Raises OSError."""
        nftables.remove(self.name)

    def _add_chain(self, batch: Batch, backends: Backends) -> None:
        chain = nft_table.chain_of(backends)
        if backends.endpoints and chain not in self._chains:
            nft_table.add_choice(batch, chain)
            self._chains.add(chain)

    def set(self, frontend: Frontend, backends: Backends | None) -> None:
        """Change a frontend, or with None take it away. Raises OSError."""
        former = self._frontends.get(frontend)
        if former == backends:
            return
        old = nft_table.entries(frontend, former) if former is not None else {}
        new = nft_table.entries(frontend, backends) if backends is not None else {}
        batch, chains = Batch(self.name), set(self._chains)
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
    def frontends(self) -> dict[Frontend, Backends]:
        """What the table has, as of now; may be asked by any thread."""
        return self._frontends.copy()

    def backends(self, frontend: Frontend) -> Backends | None:
        """Where the table sends connections to a frontend."""
        return self._frontends.get(frontend)

    def enforce(self, isolated: Mapping[str, Isolation]) -> None:
        """Keep these policies from now on, and no others. Raises OSError."""
        new = nft_table.policy_entries(isolated)
        batch = Batch(self.name)
        _delete(batch, {place: one for place, one in self._policy.items() if place not in new})
        _add(batch, {place: one for place, one in new.items() if place not in self._policy})
        batch.commit()
        self._policy = new

    def know(self, pod_ranges: Sequence[IPv4Network]) -> None:
        """The nodes' pod ranges: pods are seen there as they are, elsewhere as this machine. Raises OSError."""
        if self.knows(pod_ranges):
            return
        batch = Batch(self.name)
        nft_table.lay_out_outside(batch, pod_ranges)
        batch.commit()
        self._pod_ranges = list(pod_ranges)

    def knows(self, pod_ranges: Sequence[IPv4Network]) -> bool:
        """It has just these ranges."""
        return list(pod_ranges) == self._pod_ranges


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
