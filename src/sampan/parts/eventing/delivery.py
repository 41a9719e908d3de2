"""The delivery specification: how often, how long and in what rhythm an event is tried, and where it ends up. No I/O.

`Delivery` is the decoded ``delivery`` field with its durations in seconds; `Outcome` is how one attempt went. Both decide
together: `Delivery.wait` says how long to wait before the next attempt, or that there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sampan.parts.eventing.errors import EventingError

RETRIED = frozenset({404, 408, 409, 429})
"""Client errors that may go away by themselves; all others, and redirects, end the attempts."""
LONGEST_WAIT = 86_400.0
"""Seconds between two attempts at most, whatever an exponential backoff comes to."""
_DURATION = re.compile(
    r"P(?!$)(?:(\d+(?:\.\d+)?)Y)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)W)?(?:(\d+(?:\.\d+)?)D)?"
    r"(?:T(?!$)(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?"
)
_UNITS = (365 * 86_400.0, 30 * 86_400.0, 7 * 86_400.0, 86_400.0, 3_600.0, 60.0, 1.0)


class DurationError(EventingError):
    """A text is no ISO 8601 duration."""


def seconds(duration: str) -> float:
    """An ISO 8601 duration such as ``PT0.2S`` in seconds (a year is 365 days, a month 30).

    Raises:
        DurationError: it is none.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise DurationError(f"{duration!r} is not an ISO 8601 duration such as PT0.5S or PT1M")
    return sum(float(number) * unit for number, unit in zip(found.groups(), _UNITS, strict=True) if number)


class Outcome(msgspec.Struct, frozen=True):
    """How one attempt went. ``status`` 0: there was no response, and ``reason`` says why."""

    status: int
    reason: str = ""
    body: bytes = b""
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """The event was taken."""
        return 200 <= self.status < 300

    @property
    def retriable(self) -> bool:
        """Another attempt may go better."""
        return self.status == 0 or self.status >= 500 or self.status in RETRIED


class Delivery(msgspec.Struct, frozen=True):
    """How to deliver. ``retry``: attempts after the first; ``timeout``: seconds an attempt may take (None: no limit)."""

    retry: int = 0
    exponential: bool = True
    delay: float = 0.0
    timeout: float | None = None
    retry_after_max: float | None = None
    """Longest Retry-After to obey in seconds; None: that header is not looked at."""
    format: str = ""

    @staticmethod
    def of(spec: Mapping[str, Any] | None) -> Delivery:
        """From an object's ``delivery``.

        Raises:
            DurationError: a duration in it is malformed (admission refuses such objects).
        """
        given = spec or {}
        policy, delay = given.get("backoffPolicy"), given.get("backoffDelay")
        timeout, longest = given.get("timeout"), given.get("retryAfterMax")
        return Delivery(
            retry=int(given.get("retry") or 0),
            exponential=policy != "linear",
            delay=seconds(delay) if policy and delay else 0.0,
            timeout=seconds(timeout) if timeout else None,
            retry_after_max=seconds(longest) if longest else None,
            format=given.get("format") or "",
        )

    def wait(self, retried: int, outcome: Outcome) -> float | None:
        """Seconds until the next attempt after ``retried`` retries; None: no further one."""
        if outcome.ok or not outcome.retriable or retried >= self.retry:
            return None
        backoff = self.delay * (2.0 ** min(retried, 60) if self.exponential else retried)
        wait = min(backoff, LONGEST_WAIT)
        if self.retry_after_max is not None and outcome.retry_after is not None and outcome.status in (429, 503):
            wait = max(wait, min(outcome.retry_after, self.retry_after_max))
        return wait
