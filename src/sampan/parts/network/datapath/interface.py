"""What a data path is: somewhere to put frontends and their endpoints."""

from __future__ import annotations

from typing import Protocol

from sampan.parts.network.services import Backends, Frontend


class DataPath(Protocol):
    """Takes connections to frontends to their backends."""

    async def put(self, frontend: Frontend, backends: Backends) -> None:
        """From now on connections to ``frontend`` go to ``backends``; those that stand are left alone.

        Raises:
            OSError: the frontend cannot be had here (its port is taken, its address is not this machine's).
        """
        ...

    async def drop(self, frontend: Frontend) -> None:
        """``frontend`` is no more."""
        ...
