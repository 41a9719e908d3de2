"""What a Serving object's children take over from it."""

from __future__ import annotations

from collections.abc import Mapping

from sampan.parts.serving import keys

OURS = (keys.ROUTES, keys.CREATOR, keys.LAST_MODIFIER)
"""Annotations of a child that do not come from its parent."""
_NOT_INHERITED = ("kubectl.kubernetes.io/last-applied-configuration", keys.ROUTES)


def inherited(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """Annotations a child takes over from its parent."""
    return {key: value for key, value in (annotations or {}).items() if key not in _NOT_INHERITED}
