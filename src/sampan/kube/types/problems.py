"""Collecting field errors in upstream's words while walking an object.

A validator is handed a `Problems` list and reports what it finds under the path it is at; the reasons are those of
``details.causes``, the messages what stands after the path in a 422.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sampan.kube.status import FieldError


def literal(value: Any) -> str:
    """A value as error messages show it: strings quoted, scalars bare, string maps in Go's notation, the rest as JSON."""
    if value is None:
        return '"null"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value}"
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        pairs = ", ".join(f"{quoted(key)}:{quoted(item)}" for key, item in sorted(value.items()))
        return f"map[string]string{{{pairs}}}"
    return quoted(value)


def quoted(value: Any) -> str:
    """JSON text of a value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Problems(list[FieldError]):
    """Field errors found so far."""

    def required(self, path: str, why: str = "") -> None:
        self.append(FieldError(path, "FieldValueRequired", f"Required value: {why}" if why else "Required value"))

    def invalid(self, path: str, value: Any, why: str) -> None:
        self.append(FieldError(path, "FieldValueInvalid", f"Invalid value: {literal(value)}: {why}"))

    def invalid_all(self, path: str, value: Any, complaints: Iterable[str]) -> None:
        """One `invalid` a complaint."""
        for why in complaints:
            self.invalid(path, value, why)

    def unsupported(self, path: str, value: Any, supported: Sequence[str]) -> None:
        values = ", ".join(quoted(item) for item in supported)
        message = f"Unsupported value: {literal(value)}: supported values: {values}"
        self.append(FieldError(path, "FieldValueNotSupported", message))

    def duplicate(self, path: str, value: Any) -> None:
        self.append(FieldError(path, "FieldValueDuplicate", f"Duplicate value: {literal(value)}"))

    def forbidden(self, path: str, why: str) -> None:
        self.append(FieldError(path, "FieldValueForbidden", f"Forbidden: {why}"))

    def not_found(self, path: str, value: Any) -> None:
        self.append(FieldError(path, "FieldValueNotFound", f"Not found: {literal(value)}"))

    def too_long(self, path: str, limit: int) -> None:
        self.append(FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes"))

    def too_many(self, path: str, count: int, limit: int) -> None:
        message = f"Too many: {count}: must have at most {limit} items"
        self.append(FieldError(path, "FieldValueTooMany", message))

    def one_of(self, path: str, value: Any, supported: Sequence[str], *, required: bool = True) -> None:
        """Required (unless told) and one of the supported values."""
        if value in (None, ""):
            if required:
                self.required(path)
        elif value not in supported:
            self.unsupported(path, value, supported)

    def at_least(self, path: str, value: Any, least: int = 0) -> None:
        """A number, where given, that is not below ``least``."""
        if value is not None and value < least:
            self.invalid(path, value, f"must be greater than or equal to {least}")

    def immutable(self, path: str, new: Any, old: Any) -> None:
        """The field may not change; absent and empty are the same."""
        if (new or None) != (old or None):
            self.invalid(path, new, "field is immutable")
