"""Keeps the gateway's access log, ``logs/gateway.jsonl``, to a bounded size.

Envoy writes it (``envoy.access``), also while no core runs. A full file is set aside once, and Envoy told to open a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
LIMIT = 64 << 20
"""Bytes of one file; one older file is kept beside it."""


class AccessLog:
    """The file and its size."""

    def __init__(self, path: Path, clock: Clock, reopen: Callable[[], Awaitable[None]], limit: int = LIMIT) -> None:
        """``reopen`` makes Envoy let go of the file it writes to and open the path anew."""
        self.path = path
        self._clock = clock
        self._reopen = reopen
        self._limit = limit
        self._owed = False
        """Envoy has not been told yet of a file that was set aside."""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Set a full file aside."""
        self._owed = await asyncio.to_thread(self._set_aside) or self._owed
        if self._owed:
            try:
                await self._reopen()
            except SampanError as error:
                log.warning("Envoy goes on writing to the access log that was set aside: %s", error)
            else:
                self._owed = False

    def _set_aside(self) -> bool:
        try:
            if self.path.stat().st_size <= self._limit:
                return False
            self.path.replace(self.path.with_suffix(".1.jsonl"))
        except FileNotFoundError:
            return False
        return True
