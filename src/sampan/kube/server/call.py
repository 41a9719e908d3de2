"""One request as the verbs see it, and its answer; the same for every transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from sampan.kube.access.interface import User
from sampan.kube.objects import Object
from sampan.kube.server.options import WriteOptions
from sampan.kube.types.resource import ResourceType


@dataclass(slots=True)
class Call:
    """Who wants what done to which object."""

    user: User
    type: ResourceType
    namespace: str = ""
    """Empty for cluster-scoped kinds (and for all namespaces, where a collection is meant)."""
    name: str = ""
    subresource: str = ""
    options: WriteOptions = field(default_factory=WriteOptions)
    warnings: list[str] = field(default_factory=list)
    """Sent to the client as Warning headers."""
    source: str = ""
    """The address the request came from; empty: from this process."""

    @property
    def key(self) -> str:
        """Store key of the object."""
        return self.type.key(self.namespace, self.name)


@dataclass(slots=True)
class Answer:
    """What a verb answers."""

    object: Object
    """The object (or Status) in its served version; it belongs to the caller."""
    encoded: bytes | None = None
    """Its canonical encoding, when there is one already."""
    code: int = 200
    type: ResourceType | None = None
    """The type whose representation (Table, metadata) the object can be shown in; None: it is shown as it is."""
