"""What a validating webhook finds wrong, collected with field paths and told in Knative's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.status import ApiError, bad_request

WEBHOOK = "validation.webhook.serving.knative.dev"


class Findings:
    """Problems collected with their field paths; the same said of several fields is said once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}
        """Paths by what is wrong and its explanation."""

    def add(self, why: str, *paths: str, details: str = "") -> None:
        self._found.setdefault((why, details), []).extend(paths)

    def missing(self, *paths: str) -> None:
        self.add("missing field(s)", *paths)

    def forbidden(self, *paths: str) -> None:
        self.add("must not set the field(s)", *paths)

    def invalid(self, value: Any, path: str, details: str = "") -> None:
        self.add(f"invalid value: {value}", path, details=details)

    def only(self, value: Mapping[str, Any] | None, allowed: frozenset[str], path: str) -> None:
        """Everything else that is set in ``value`` must not be."""
        for name, one in (value or {}).items():
            if name not in allowed and one not in (None, "", False, 0, []):
                self.forbidden(f"{path}.{name}")

    def bounds(self, value: float, low: float, high: float, path: str) -> None:
        self.add(f"expected {low} <= {value} <= {high}", path)

    def check(self) -> None:
        """Raises the webhook's denial when anything was found.

        Raises:
            ApiError: 400, as the API server words a webhook's denial.
        """
        if self._found:
            raise denied(f"validation failed: {self.text()}")

    def text(self) -> str:
        """All that was found."""
        lines = []
        for (why, details), paths in self._found.items():
            line = f"{why}: {', '.join(sorted(set(paths)))}" if paths else why
            lines.append(f"{line}\n{details}" if details else line)
        return "\n".join(sorted(lines))


def denied(message: str, webhook: str = WEBHOOK) -> ApiError:
    return bad_request(f'admission webhook "{webhook}" denied the request: {message}')
