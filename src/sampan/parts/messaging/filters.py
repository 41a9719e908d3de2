"""Which messages a consumer wants: tag expressions and SQL92 conditions over message properties.

A `Filter` decides in two steps, so that most messages are rejected without being read: `maybe` looks only at the tag code in
the queue index (which may say yes wrongly, never no), `matches` at the properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.record import TAGS, java_hash


class Filter(Protocol):
    """Decides whether a group wants a message."""

    expression: str
    needs_properties: bool
    """`matches` must be asked for what `maybe` lets through."""

    def maybe(self, tag_code: int) -> bool:
        """By the tag code alone; no false negatives."""
        ...

    def matches(self, properties: Mapping[str, str]) -> bool:
        """By the message's properties."""
        ...


class Everything:
    """``*``."""

    expression = "*"
    needs_properties = False

    def maybe(self, tag_code: int) -> bool:
        return True

    def matches(self, properties: Mapping[str, str]) -> bool:
        return True


class Tags:
    """``a || b``: the message's tag is one of these, exactly."""

    needs_properties = True

    def __init__(self, tags: frozenset[str]) -> None:
        self.expression = " || ".join(sorted(tags))
        self.tags = tags
        self._codes = {java_hash(tag) for tag in tags}

    def maybe(self, tag_code: int) -> bool:
        return tag_code in self._codes

    def matches(self, properties: Mapping[str, str]) -> bool:
        return properties.get(TAGS) in self.tags


class Condition:
    """A SQL92 condition; only TRUE matches."""

    needs_properties = True

    def __init__(self, expression: str) -> None:
        from sampan.parts.messaging.sql import parse

        self.expression = expression
        self._evaluate = parse(expression)

    def maybe(self, tag_code: int) -> bool:
        return True

    def matches(self, properties: Mapping[str, str]) -> bool:
        return self._evaluate(properties) is True


EVERYTHING = Everything()


REMEMBERED_LENGTH = 4096
"""Characters in a tag expression whose filter is remembered."""


def tag_filter(expression: str) -> Filter:
    """A filter from a tag expression: empty or ``*`` is everything.

    Raises:
        MessagingError: ILLEGAL_FILTER, the expression names no tag.
    """
    return _remembered_tags(expression) if len(expression) <= REMEMBERED_LENGTH else _tags(expression)


def _tags(expression: str) -> Filter:
    if expression.strip() in ("", "*"):
        return EVERYTHING
    tags = frozenset(tag.strip() for tag in expression.split("||") if tag.strip())
    if not tags:
        raise MessagingError(Reason.ILLEGAL_FILTER, f"the tag expression {expression!r} names no tag")
    return EVERYTHING if "*" in tags else Tags(tags)


_remembered_tags = lru_cache(maxsize=1024)(_tags)


@lru_cache(maxsize=1024)
def sql_filter(expression: str) -> Filter:
    """A filter from a SQL92 condition.

    Raises:
        MessagingError: ILLEGAL_FILTER, it does not parse; the message says where.
    """
    return Condition(expression)
