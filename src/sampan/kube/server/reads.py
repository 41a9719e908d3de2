"""Get and list: answered from the encodings that the store holds, at a snapshot.

A list is consistent at one revision, and so are all its pages: the continue token remembers the revision, the last key, and
how many objects are left. Objects are looked into only where a selector asks about more than their name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from sampan.kube.objects import Object, encode
from sampan.kube.server.conversion import prepared, served, served_object
from sampan.kube.server.options import ListOptions
from sampan.kube.server.selection import Selection, labels_of
from sampan.kube.status import bad_request, expired, not_found
from sampan.kube.store.interface import CompactedError, Entry, Store
from sampan.kube.types.resource import ResourceType

_CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. "
    "You must start a new list without the continue parameter."
)


Values = list[bytes]
"""Stored encodings."""


class Page(NamedTuple):
    """One page of a list: stored encodings at one revision."""

    values: list[bytes]
    revision: int
    continue_token: str = ""
    remaining: int | None = None

    def metadata(self) -> Object:
        """The list's ``metadata``."""
        metadata: Object = {"resourceVersion": str(self.revision)}
        if self.continue_token:
            metadata["continue"] = self.continue_token
        if self.remaining:
            metadata["remainingItemCount"] = self.remaining
        return metadata


class _Token(msgspec.Struct):
    rv: int
    start: str
    v: str = "meta.k8s.io/v1"
    left: int = 0
    """Objects after this page; 0 where a selector makes it unknown."""


_token_decoder = msgspec.json.Decoder(_Token)
_token_encoder = msgspec.json.Encoder()


def _read_token(text: str) -> _Token:
    try:
        token = _token_decoder.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise bad_request("continue key is not valid") from None
    if token.v != "meta.k8s.io/v1" or token.rv <= 0:
        raise bad_request("continue key is not valid")
    return token


def _write_token(token: _Token) -> str:
    return base64.urlsafe_b64encode(_token_encoder.encode(token)).rstrip(b"=").decode()


def selected(type: ResourceType, value: bytes, selection: Selection) -> bool:
    """The selection holds an encoded object (its name apart)."""
    if selection.labels is None and selection.fields is None:
        return True
    shown = served(type, value)
    if selection.labels is not None and not selection.labels.matches(labels_of(shown)):
        return False
    return selection.fields is None or selection.fields.matches(type.strategy.fields(served_object(type, value)))


class Reader:
    """The reading verbs over one store."""

    def __init__(self, store: Store, reached: Callable[[int], Awaitable[None]]) -> None:
        self._store = store
        self._reached = reached

    async def get(self, type: ResourceType, namespace: str, name: str, revision: str = "") -> Entry:
        """The stored entry of an object, not older than ``revision``.

        Raises:
            ApiError: 404; 504, the revision is in the future.
        """
        if revision:
            await self._not_older(revision)
        if type.computed is not None:
            return await self._computed_entry(type, namespace, name)
        entry = self._store.get(type.key(namespace, name))
        if entry is None:
            raise not_found(type.resource, name)
        return entry

    async def _computed_entry(self, type: ResourceType, namespace: str, name: str) -> Entry:
        assert type.computed is not None
        revision = self._store.revision
        for obj in await type.computed(namespace):
            if obj["metadata"]["name"] == name:
                return Entry(type.key(namespace, name), revision, revision, encode(obj, revision))
        raise not_found(type.resource, name)

    async def _computed_page(self, type: ResourceType, namespace: str, selection: Selection) -> Page:
        assert type.computed is not None
        revision = self._store.revision
        objects = await type.computed(namespace)
        if selection.name:
            objects = [obj for obj in objects if obj["metadata"]["name"] == selection.name]
        values = [encode(obj, revision) for obj in objects]
        return Page([value for value in values if selected(type, value, selection)], revision)

    async def convertible(self, type: ResourceType, namespace: str) -> None:
        """Where a webhook converts a kind: have it convert the whole collection, so that it can be selected from.

        Raises:
            ApiError: 500, the webhook fails.
        """
        if type.conversion is not None:
            prefix = type.prefix(namespace if type.namespaced else None)
            await prepared(type, [entry.value for entry in self._store.range(prefix)])

    async def list(self, type: ResourceType, namespace: str, selection: Selection, options: ListOptions) -> Page:
        """One page.

        Raises:
            ApiError: 410, the revision or continue token is too old; 504, the revision is in the future.
        """
        if type.computed is not None:
            return await self._computed_page(type, namespace, selection)
        await self.convertible(type, namespace)
        prefix = type.prefix(namespace if type.namespaced else None)
        limit = max(options.limit, 0)
        after, left, at = "", 0, 0
        if options.continue_token:
            token = _read_token(options.continue_token)
            after, left, at = prefix + token.start, token.left, token.rv
        elif options.revision not in ("", "0"):
            await self._not_older(options.revision)
            if options.revision_match == "Exact" or (limit and not options.revision_match):
                at = int(options.revision)
        revision = at or self._store.revision
        try:
            values, last, more = self._page(type, prefix, after, at, limit, selection)
        except CompactedError:
            message = (
                _CONTINUE_EXPIRED if options.continue_token else "The resourceVersion for the provided list is too old."
            )
            raise expired(message) from None
        if not more:
            return Page(values, revision)
        counted = selection.everything and not selection.name
        remaining = None
        if counted:
            total = left if options.continue_token else self._store.count(prefix)
            remaining = max(total - len(values), 1)
        start = last.removeprefix(prefix)
        return Page(values, revision, _write_token(_Token(revision, start, left=remaining or 0)), remaining)

    def _page(
        self, type: ResourceType, prefix: str, after: str, at: int, limit: int, selection: Selection
    ) -> tuple[Values, str, bool]:
        """(values, last key, whether more follow)."""
        values: Values = []
        last = ""
        for entry in self._candidates(type, prefix, after, at, limit, selection):
            if selection.name and entry.key.rpartition("/")[2] != selection.name:
                continue
            if not selected(type, entry.value, selection):
                continue
            if limit and len(values) == limit:
                return values, last, True
            values.append(entry.value)
            last = entry.key
        return values, last, False

    def _candidates(
        self, type: ResourceType, prefix: str, after: str, at: int, limit: int, selection: Selection
    ) -> Iterator[Entry]:
        if selection.name and not at and (not type.namespaced or prefix != type.prefix()):
            entry = self._store.get(prefix + selection.name)
            if entry is not None and entry.key > after:
                yield entry
            return
        # One entry beyond the page tells whether more follow; with a selector, pages are read until enough match.
        step = limit + 1 if limit else 0
        while True:
            entries: Iterable[Entry]
            if at and at != self._store.revision:
                entries = self._store.range_at(prefix, at, after, step)
            else:
                entries = self._store.range(prefix, after, step)
            count = 0
            for entry in entries:
                count += 1
                after = entry.key
                yield entry
            if not step or count < step:
                return

    async def _not_older(self, revision: str) -> None:
        if not revision.isdecimal() or len(revision) > 20:
            raise bad_request(f'invalid resource version "{revision}"')
        if int(revision) > self._store.revision:
            await self._reached(int(revision))
