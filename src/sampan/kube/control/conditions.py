"""Knative's condition sets: dependents, and the Ready condition that follows from them.

Ready is True when every dependent is, False when any is False, and Unknown otherwise; it takes over the reason and message
of the dependent that holds it back (False before Unknown, the latest change first).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, copy


class ConditionSet:
    """The conditions of one object's status, being brought up to date."""

    def __init__(
        self, obj: Object, dependents: Sequence[str], now: datetime, *, informational: Sequence[str] = ()
    ) -> None:
        status = obj.get("status") or {}
        fresh = status.get("observedGeneration") != obj["metadata"].get("generation")
        known = {one["type"]: copy(one) for one in status.get("conditions") or ()}
        self._before = known
        self._stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        self._dependents = list(dependents)
        self._informational = set(informational)
        self._wanted: dict[str, tuple[str, str, str]] = {}
        for kind in (*dependents, *informational):
            old = known.get(kind)
            if old is None or (fresh and kind in self._dependents):
                self._wanted[kind] = ("Unknown", "", "")
            else:
                self._wanted[kind] = (old["status"], old.get("reason") or "", old.get("message") or "")
        self._ready: tuple[str, str, str] | None = None
        if not dependents:
            old = known.get("Ready")
            self._ready = (
                ("Unknown", "", "")
                if old is None or fresh
                else (old["status"], old.get("reason") or "", old.get("message") or "")
            )

    def true(self, kind: str, reason: str = "", message: str = "") -> None:
        self._set(kind, "True", reason, message)

    def false(self, kind: str, reason: str, message: str = "") -> None:
        self._set(kind, "False", reason, message)

    def unknown(self, kind: str, reason: str = "", message: str = "") -> None:
        self._set(kind, "Unknown", reason, message)

    def _set(self, kind: str, status: str, reason: str, message: str) -> None:
        if kind == "Ready":
            self._ready = (status, reason, message)
        else:
            self._wanted[kind] = (status, reason, message)

    def mirror(self, kind: str, source: Any, source_kind: str = "Ready") -> None:
        """Take over another object's condition; nothing there is Unknown."""
        other = next((one for one in (source or {}).get("conditions") or () if one["type"] == source_kind), None)
        if other is None:
            self.unknown(kind)
        else:
            self._set(kind, other["status"], other.get("reason") or "", other.get("message") or "")

    def is_true(self, kind: str) -> bool:
        """How the condition stands now."""
        if kind == "Ready":
            return self.ready[0] == "True"
        return self._wanted.get(kind, ("Unknown",))[0] == "True"

    def get(self, kind: str) -> tuple[str, str, str]:
        """(status, reason, message)."""
        return self.ready if kind == "Ready" else self._wanted.get(kind, ("Unknown", "", ""))

    @property
    def ready(self) -> tuple[str, str, str]:
        """Ready as it follows."""
        if self._ready is not None:
            return self._ready
        for status in ("False", "Unknown"):
            held = [kind for kind in self._dependents if self._wanted[kind][0] == status]
            if held:
                culprit = max(held, key=lambda kind: (self._time(kind), -self._dependents.index(kind)))
                return self._wanted[culprit]
        return ("True", "", "")

    def _time(self, kind: str) -> str:
        old = self._before.get(kind)
        status, reason, message = (
            self.ready if kind == "Ready" and self._ready is not None else self._wanted.get(kind, ("", "", ""))
        )
        if old is not None and (old["status"], old.get("reason") or "", old.get("message") or "") == (
            status,
            reason,
            message,
        ):
            stamp: str = old.get("lastTransitionTime") or self._stamp
            return stamp
        return self._stamp

    def conditions(self) -> list[Object]:
        """The list to store, sorted by type."""
        made = []
        for kind, (status, reason, message) in sorted({**self._wanted, "Ready": self.ready}.items()):
            one: Object = {
                "type": kind,
                "status": status,
                "lastTransitionTime": self._date(kind, status, reason, message),
            }
            if kind in self._informational:
                one["severity"] = "Info"
            if reason:
                one["reason"] = reason
            if message:
                one["message"] = message
            made.append(one)
        return made

    def _date(self, kind: str, status: str, reason: str, message: str) -> str:
        old = self._before.get(kind)
        if old is not None and (old["status"], old.get("reason") or "", old.get("message") or "") == (
            status,
            reason,
            message,
        ):
            stamp: str = old.get("lastTransitionTime") or self._stamp
            return stamp
        return self._stamp


def condition(obj: Any, kind: str = "Ready") -> Any:
    """A condition of an object's status, or None."""
    return next((one for one in ((obj or {}).get("status") or {}).get("conditions") or () if one["type"] == kind), None)


def is_ready(obj: Any, kind: str = "Ready") -> bool:
    """The condition is True and speaks of the current generation."""
    found = condition(obj, kind)
    current = (obj or {}).get("metadata", {}).get("generation")
    return found is not None and found["status"] == "True" and obj["status"].get("observedGeneration") == current
