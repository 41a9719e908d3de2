"""The nf_tables data path, for pods with network namespaces: a `PacketTable` kept in step with frontends and policy.

Every change is one transaction: a connection finds the endpoints of before or of after. The table stays while this process is
away, and the next one replaces it in one transaction with a whole one, so running pods never miss their Services or policies
meanwhile; it goes with the node's pods (the node part takes it away).

Changes are made in a thread, one at a time and in the order in which they were asked for. Who is cancelled while his is made
waits for its end: nobody else begins on a half-known table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from ipaddress import IPv4Network
from typing import TypeVar

from sampan.parts.network.datapath import conntrack
from sampan.parts.network.datapath.packet_table import PacketTable
from sampan.parts.network.policy import Isolation
from sampan.parts.network.services import Backends, Frontend

log = logging.getLogger(__name__)

T = TypeVar("T")


class PacketPath:
    """One node's table."""

    def __init__(self, table: str, pod_range: str, *, host: bool) -> None:
        """``host``: processes of this machine reach Services, too (else only pods do)."""
        self.table = table
        self.pod_range = pod_range
        self._table = PacketTable(table, pod_range, host=host)
        self._turn = asyncio.Lock()
        """Of whoever changes the table."""
        self._ended = False

    async def begin(
        self,
        frontends: Mapping[Frontend, Backends],
        isolated: Mapping[str, Isolation],
        pod_ranges: Sequence[IPv4Network],
    ) -> None:
        """Put the table in the place of the one an earlier process left. Raises OSError."""
        async with self._turn:
            await _to_its_end(lambda: self._table.begin(frontends, isolated, pod_ranges))

    def stands(self) -> bool:
        """The table is there. Raises OSError."""
        return self._table.stands()

    async def leave(self) -> None:
        """Put nothing there any more: what is being put is there when this returns, and another may have the table."""
        self._ended = True
        async with self._turn:
            return

    async def end(self) -> None:
        """Leave the table, and take it away. Raises OSError."""
        self._ended = True
        async with self._turn:
            await _to_its_end(self._table.remove)

    # -- frontends

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """See `DataPath`."""
        await self._change(frontend, backends)

    async def drop(self, frontend: Frontend) -> None:
        """See `DataPath`."""
        await self._change(frontend, None)

    async def _change(self, frontend: Frontend, backends: Backends | None) -> None:
        async with self._turn:
            former = self._table.backends(frontend)
            if former == backends or self._ended:
                return
            await _to_its_end(lambda: self._table.set(frontend, backends))
        old = frozenset(former.endpoints if former is not None else ())
        new = frozenset(backends.endpoints if backends is not None else ())
        if frontend.protocol == "UDP" and (former is None or old - new):
            await self._forget({(frontend.address, frontend.port): new})

    async def settle(self) -> None:
        """Forget the UDP flows that began with an earlier table, or with none, and go where nobody is."""
        endpoints = {
            (frontend.address, frontend.port): frozenset(backends.endpoints)
            for frontend, backends in self._table.frontends.items()
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

    @property
    def frontends(self) -> Set[Frontend]:
        """What the table has."""
        return self._table.frontends.keys()

    @property
    def size(self) -> int:
        """Frontends."""
        return len(self._table.frontends)

    # -- pods

    async def enforce(self, isolated: Mapping[str, Isolation]) -> None:
        """Keep these policies from now on, and no others. Raises OSError."""
        async with self._turn:
            if not self._ended:
                await _to_its_end(lambda: self._table.enforce(isolated))

    async def know(self, pod_ranges: Sequence[IPv4Network]) -> None:
        """The nodes' pod ranges: pods are seen there as they are, elsewhere as this machine. Raises OSError."""
        async with self._turn:
            if not self._ended and not self._table.knows(pod_ranges):
                await _to_its_end(lambda: self._table.know(pod_ranges))


async def _to_its_end(work: Callable[[], T]) -> T:
    """Run blocking work in a thread; whoever is cancelled meanwhile leaves only when it has ended."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Retrieved, so that the loop does not report it as one that nobody looked at.
        raise cancelled from running.exception()
    return running.result()
