"""List and watch: keeps a sink equal to a collection, through disconnections, restarts and lost history.

The first list gives the state, the watch that follows it every change. A watch that ends is resumed from the last revision
seen (bookmarks move it on quiet collections); when the server no longer has that history, the collection is listed again and
the sink works out what changed. Failures are retried with backoff, and only a failure that lasts is worth a warning.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any, Protocol

from sampan.kernel.clock import Clock
from sampan.kube.client import Client, WatchEvent
from sampan.kube.objects import Key, Object, Resource
from sampan.kube.status import ApiError

log = logging.getLogger(__name__)

PAGE = 1000
"""Objects a page of a list."""
BACKOFF_FIRST = 0.8
"""Seconds before the first retry; doubles."""
BACKOFF_LIMIT = 30.0
ABSENT_RETRY = 1.0
"""Seconds between tries while the resource is not served (its definition may come at any moment)."""
SHORT_WATCH = 1.0
"""A watch that ends sooner than this without an event counts as a failure."""


class Sink(Protocol):
    """What a reflector keeps current."""

    def replace(self, objects: list[Object]) -> None:
        """These are all objects there are."""
        ...

    def change(self, event: WatchEvent) -> None:
        """One object was ADDED, MODIFIED or DELETED."""
        ...


class Feed(Protocol):
    """Fills a sink from something nearer than the API (``control.local``)."""

    def follow(self, resource: Resource, sink: Sink) -> bool:
        """Fill it and keep it current; False where this feed cannot."""
        ...

    def encoding(self, resource: Resource, key: Key, obj: Object) -> bytes:
        """What decodes to an object that this feed gave, but for its managed fields; shared with others where it can be."""
        ...


class Reflector:
    """Keeps ``sink`` equal to a collection for as long as `run` runs."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        resource: Resource,
        sink: Sink,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._resource = resource
        self._sink = sink
        self._namespace = namespace
        self._selectors: Mapping[str, Any] = {"label_selector": label_selector, "field_selector": field_selector}
        self._revision: str | None = None
        self._failures = 0

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            began = self._clock.monotonic()
            listed = False
            try:
                if self._revision is None:
                    await self._list()
                    listed = True
                events = await self._watch()
                if events or self._clock.monotonic() - began >= SHORT_WATCH:
                    self._failures = 0
                    continue
            except ApiError as error:
                if error.expired:
                    self._revision = None
                    if not listed:
                        continue
                elif error.code in (400, 404):
                    # A revision the server does not understand, or a collection that went away: start over.
                    self._revision = None
                await self._back_off(error)
                continue
            await self._back_off(None)

    async def _list(self) -> None:
        objects: list[Object] = []
        token: str | None = None
        while True:
            try:
                page = await self._client.list(
                    self._resource,
                    self._namespace,
                    limit=PAGE if token != "" else None,
                    continue_token=token or None,
                    **self._selectors,
                )
            except ApiError as error:
                if not error.expired or not token:
                    raise
                # The list took longer than the server keeps history: take it in one piece.
                objects, token = [], ""
                continue
            objects += page.items
            if not page.continue_token:
                break
            token = page.continue_token
        self._sink.replace(objects)
        self._revision = page.revision

    async def _watch(self) -> int:
        events = 0
        watch = self._client.watch(self._resource, self._namespace, revision=self._revision, **self._selectors)
        async with watch as stream:
            async for event in stream:
                if event.type != "BOOKMARK":
                    self._sink.change(event)
                    self._failures = 0
                events += 1
                self._revision = event.revision
        return events

    async def _back_off(self, error: ApiError | None) -> None:
        absent = error is not None and error.code == 404
        delay = ABSENT_RETRY if absent else min(BACKOFF_FIRST * 2.0 ** min(self._failures, 10), BACKOFF_LIMIT)
        self._failures += 1
        if error is not None and not absent and self._failures in (3, 10):
            log.warning("listing and watching %s fails, retrying: %s", self._resource, error)
        await self._clock.sleep(delay * random.uniform(1.0, 1.5))  # noqa: S311 - spreads retries, keeps no secret
