"""How long ago, as kubectl prints it: ``5s``, ``3m2s``, ``4h5m``, ``2d3h``, ``3y41d``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

UNKNOWN = "<unknown>"


def human(elapsed: timedelta) -> str:
    """A duration in at most two units, finer the shorter it is; a clock a little behind counts as zero."""
    seconds = int(elapsed.total_seconds())
    if seconds < -1:
        return "<invalid>"
    if seconds < 0:
        return "0s"
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    hours = seconds // 3600
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if hours < 24 * 365 * 2:
        return f"{days}d"
    if hours < 24 * 365 * 8:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(high: int, unit: str, low: int, small_unit: str) -> str:
    return f"{high}{unit}{low}{small_unit}" if low else f"{high}{unit}"


def parse_time(text: str) -> datetime:
    """An RFC 3339 time, as metadata and status carry them.

    Raises:
        ValueError: not a time.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def age(since: str | None, now: datetime) -> str:
    """How long ago an RFC 3339 time was; ``<unknown>`` without one."""
    if not since:
        return UNKNOWN
    try:
        return human(now - parse_time(since))
    except ValueError:
        return UNKNOWN


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as metadata carries it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(moment: datetime) -> str:
    """RFC 3339 in UTC with six decimals, as MicroTime fields (leases, events) are written."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
