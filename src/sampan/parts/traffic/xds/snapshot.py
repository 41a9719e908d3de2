"""What Envoy should have: resources by type and name, each with a version that is a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sampan.parts.traffic.xds import schema


class Resource(NamedTuple):
    """One named resource in its wire form."""

    name: str
    version: str
    data: bytes

    @staticmethod
    def of(name: str, data: bytes) -> Resource:
        return Resource(name, hashlib.blake2b(data, digest_size=8).hexdigest(), data)


REFERRED = (schema.CLUSTER, schema.ENDPOINTS, schema.SECRET)
REFERRING = (schema.LISTENER, schema.ROUTES)
TYPES = (*REFERRED, *REFERRING)
"""In the order in which additions must arrive: whatever is referred to comes first."""


@dataclass(frozen=True)
class Snapshot:
    """A complete configuration."""

    resources: Mapping[str, Mapping[str, Resource]] = field(default_factory=dict)

    def of(self, type_url: str) -> Mapping[str, Resource]:
        """The resources of a type by name."""
        return self.resources.get(type_url, {})

    @staticmethod
    def build(parts: Mapping[str, Iterable[Resource]]) -> Snapshot:
        """From resources by type URL."""
        return Snapshot({type_url: {one.name: one for one in resources} for type_url, resources in parts.items()})

    def merged(self, newer: Snapshot) -> Snapshot:
        """Everything of both; ``newer`` wins. What Envoy holds between the additions and the removals of a push."""

        def both(type_url: str) -> Mapping[str, Resource]:
            old, new = self.of(type_url), newer.of(type_url)
            return new if old is new or old.keys() <= new.keys() else {**old, **new}

        return Snapshot({type_url: both(type_url) for type_url in TYPES})
