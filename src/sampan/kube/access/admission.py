"""The admission chain: every gate that a write passes between authorization and the store, in upstream's order.

Mutating phase (`AdmissionChain.admit`): the built-in plugins, the parts' own plugins, mutating policies and webhooks.
Validating phase (`AdmissionChain.validate`), after the server has defaulted and validated the object again: the same plugins'
second halves, validating policies and webhooks, and last the quota, which must see what is really going to be stored.

Which plugins a request concerns depends only on its shape (operation, resource, subresource), so that is worked out once a
shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sampan.kube.access.interface import AdmissionPlugin, AdmissionRequest, Operation
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.objects import Resource


class _Steps(NamedTuple):
    """The plugins that a shape of request concerns, by phase."""

    admit: list[AdmissionPlugin]
    validate: list[AdmissionPlugin]


class AdmissionChain:
    """Runs the plugins; ``first`` before those that parts add, ``last`` after them (policies, webhooks, quota).

    Plugins' `admit` must be idempotent: a webhook that changes the object makes the mutating phase run a second time.
    """

    def __init__(self, first: Iterable[AdmissionPlugin], last: Iterable[AdmissionPlugin] = ()) -> None:
        self._first = list(first)
        self._added: list[AdmissionPlugin] = []
        self._last = list(last)
        self._steps: dict[tuple[Operation, Resource, str], _Steps] = {}

    @property
    def plugins(self) -> list[AdmissionPlugin]:
        """Every plugin, in the order in which it runs."""
        return [*self._first, *self._added, *self._last]

    def add(self, plugin: AdmissionPlugin) -> None:
        """Append a part's own plugin."""
        self._added.append(plugin)
        self._steps.clear()

    async def admit(self, request: AdmissionRequest) -> None:
        """The mutating phase.

        Raises:
            ApiError: a plugin refuses.
        """
        steps = self._concerned(request).admit
        for plugin in steps:
            await plugin.admit(request)
        if request.reinvoke:
            # Once: what others changed may need the plugins' (and other webhooks') attention again.
            for plugin in steps:
                await plugin.admit(request)

    async def validate(self, request: AdmissionRequest) -> None:
        """The validating phase.

        Raises:
            ApiError: a plugin refuses.
        """
        for plugin in self._concerned(request).validate:
            await plugin.validate(request)

    def _concerned(self, request: AdmissionRequest) -> _Steps:
        shape = (request.operation, request.type.resource, request.subresource)
        steps = self._steps.get(shape)
        if steps is None:
            concerned = [plugin for plugin in self.plugins if not isinstance(plugin, Plugin) or plugin.concerns(*shape)]
            steps = self._steps[shape] = _Steps(
                [plugin for plugin in concerned if _overrides(plugin, "admit")],
                [plugin for plugin in concerned if _overrides(plugin, "validate")],
            )
        return steps


def _overrides(plugin: AdmissionPlugin, method: str) -> bool:
    """Whether a built-in plugin has something to do in a phase; others are always asked."""
    return getattr(type(plugin), method, None) is not getattr(Plugin, method)
