"""Sources that translate all their objects at once, and keep the outcome while nothing changes that they depend on."""

from __future__ import annotations

from collections.abc import Callable

from sampan.kube.objects import Key
from sampan.parts.traffic.model import Rule
from sampan.parts.traffic.references import Backends
from sampan.parts.traffic.sources.gateway_api import Result


class WholeSource:
    """What Ingress and Knative share: the last outcome, the clusters it holds, the Services it asked for."""

    def __init__(self) -> None:
        self._result = Result()
        self._clusters: frozenset[str] = frozenset()
        self._services: frozenset[Key] = frozenset()
        self._rules: dict[Rule, Rule] = {}
        """Rules of the last outcome, to be found by their equals: they have their wire form already."""

    def _kept(self) -> Result:
        """The last outcome, which still stands."""
        self._result.changed = set()
        return self._result

    def _anew(self, backends: Backends, translate: Callable[[], Result]) -> Result:
        """A new outcome: its clusters are held, those of the last one let go, and the statuses that differ are marked."""
        backends.used, backends.asked = set(), set()
        result = translate()
        held, self._clusters, self._services = self._clusters, frozenset(backends.used), frozenset(backends.asked)
        backends.hold(self._clusters)
        self._let_go(backends, held)
        before, self._result = self._result.statuses, result
        result.changed = {
            entry for entry in before.keys() | result.statuses.keys() if before.get(entry) != result.statuses.get(entry)
        }
        return result

    def _let_go(self, backends: Backends, names: frozenset[str]) -> None:
        """The last outcome's clusters are no longer needed for it."""
        backends.release(names)
