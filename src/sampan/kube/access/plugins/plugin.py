"""What the built-in admission plugins are made of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import AdmissionRequest, Authorizer, ObjectCache, Operation
from sampan.kube.objects import Resource


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What plugins may look at."""

    cache: ObjectCache
    clock: Clock
    authorizer: Authorizer


class Plugin:
    """Base of the built-in plugins: says which requests concern it, so that the chain asks only those."""

    operations: ClassVar[Collection[str]] = ("CREATE", "UPDATE")
    resources: ClassVar[Collection[Resource] | None] = None
    """By group and plural, whatever the version; None: all."""
    subresources: ClassVar[Collection[str] | None] = ("",)
    """None: all."""

    def __init__(self, context: PluginContext) -> None:
        self.context = context
        self.cache = context.cache

    def concerns(self, operation: Operation, resource: Resource, subresource: str) -> bool:
        """Whether requests of this shape are for the plugin; asked once a shape."""
        if operation not in self.operations:
            return False
        if self.subresources is not None and subresource not in self.subresources:
            return False
        return self.resources is None or any(
            known.plural == resource.plural and known.group == resource.group for known in self.resources
        )

    async def admit(self, request: AdmissionRequest) -> None:
        """Change the object (mutating phase)."""

    async def validate(self, request: AdmissionRequest) -> None:
        """Refuse the final object (validating phase)."""
