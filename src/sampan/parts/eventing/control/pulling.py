"""Sources that read from a broker elsewhere: what runs for each, its Secrets, and what its condition says of it.

A source's settings are one value; as long as it does not change its members go on reading, and another value means other
members. A member is a consumer of RocketMQ or of Kafka: it tells when it has its place in its group, and why it has none.
"""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from sampan.kube.client.resources import SECRETS
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.objects import Key, Object
from sampan.kube.status import ApiError
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.errors import ConnectionSettingsError, UnresolvedError
from sampan.parts.eventing.streams import UnavailableError

AGAIN = 5.0
"""Seconds until settings that could not be had are looked for again."""


class Member(Protocol):
    """Who reads."""

    @property
    def ready(self) -> bool:
        """It has its place in its group."""

    @property
    def problem(self) -> str:
        """Why it cannot read; empty while it can."""

    def start(self) -> None:
        """Begin to read."""

    async def close(self) -> None:
        """Stop; what is in hand comes again."""


S = TypeVar("S")
M = TypeVar("M", bound=Member)


class _Running(msgspec.Struct, Generic[S, M], eq=False):
    settings: S
    members: Sequence[M]
    release: Callable[[], Awaitable[None]] | None


class PullingController(Controller, Generic[S, M]):
    """Keeps the members of each source."""

    condition: str
    """The condition that tells how the members fare."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._running: dict[Key, _Running[S, M]] = {}

    @abstractmethod
    async def settings(self, source: Object, url: str) -> S:
        """What the members of a source depend on.

        Raises:
            ApiError: a Secret is missing.
            ConnectionSettingsError: they do not make a connection.
            UnresolvedError: the dead-letter sink has no address.
        """

    @abstractmethod
    def members(self, key: Key, settings: S) -> tuple[Sequence[M], Callable[[], Awaitable[None]] | None]:
        """Make the members, and what closes what they share.

        Raises:
            UnavailableError: messaging is not there to be read.
        """

    def running(self, key: Key) -> int:
        """How many members a source has now."""
        known = self._running.get(key)
        return 0 if known is None else len(known.members)

    async def keep(self, source: Object, url: str, conditions: ConditionSet) -> float | None:
        """Have a source's members read for ``url`` (empty: have none), and the condition; seconds until it is tried again."""
        key, condition = Key.of(source), self.condition
        if not url:
            await self.end(key)
            conditions.unknown(condition, "SinkNotProvided", "The sink is not resolved.")
            return None
        try:
            settings = await self.settings(source, url)
        except ApiError as error:
            await self.end(key)
            conditions.false(condition, "SecretMissing", str(error))
            return AGAIN
        except (ConnectionSettingsError, UnresolvedError) as error:
            await self.end(key)
            conditions.false(condition, "InvalidConfiguration", str(error))
            return AGAIN
        try:
            members = await self._members(key, settings)
        except UnavailableError as error:
            conditions.false(condition, "ConnectionFailed", str(error))
            return AGAIN
        if problem := next((one.problem for one in members if one.problem), ""):
            conditions.false(condition, "ConnectionFailed", problem)
        elif all(one.ready for one in members):
            conditions.true(condition)
        else:
            conditions.unknown(condition, "Connecting", "The consumers are joining their group.")
        return None

    async def secret(self, source: Object, selector: object) -> str:
        """The value of a Secret that a selector names by ``name`` and ``key``; empty where it names none.

        Raises:
            ApiError: there is no such Secret, or it has no such key.
        """
        if not isinstance(selector, dict) or not selector.get("name"):
            return ""
        name, wanted = selector["name"], selector.get("key")
        data = (await self.client.get(SECRETS, name, source["metadata"]["namespace"])).get("data") or {}
        if wanted not in data:
            raise ApiError(404, "NotFound", f'Secret "{name}" has no key {wanted}')
        return base64.b64decode(data[wanted]).decode()

    async def _members(self, key: Key, settings: S) -> Sequence[M]:
        known = self._running.get(key)
        if known is not None:
            if known.settings == settings:
                return known.members
            await self.end(key)
        members, release = self.members(key, settings)
        self._running[key] = _Running(settings, members, release)
        for member in members:
            member.start()
        return members

    async def end(self, key: Key) -> None:
        """A source reads no longer; what is in hand comes again."""
        known = self._running.pop(key, None)
        if known is None:
            return
        for member in known.members:
            await member.close()
        if known.release is not None:
            await known.release()

    async def close(self) -> None:
        """Stop every source."""
        for key in list(self._running):
            await self.end(key)
