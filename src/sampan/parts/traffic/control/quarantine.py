"""Rules that Envoy refuses, found and left out.

Envoy takes a route configuration whole or not at all, so one rule it dislikes would hold back every later change on its port.
When it refuses one, the rules in it that it had never taken are set aside, and everything else goes out at once. Then the
suspects come back in trials, one a publication: a half that is taken is trusted, a half that is refused is halved again, until
the culprits stand alone. Those stay out until their object changes; what Envoy said of them is told in its status.

Finding one among n takes about 2 log2 n publications, and usually one: the rule that was just changed is the only suspect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sampan.parts.traffic.model import Rule


class Quarantine:
    """The groups of suspects that wait for their trial."""

    def __init__(self) -> None:
        self._waiting: deque[list[Rule]] = deque()

    @property
    def waiting(self) -> bool:
        """Some suspects have not had their trial."""
        return bool(self._waiting)

    def trial(self) -> bool:
        """Let the next group into the next publication; False when none waits."""
        if not self._waiting:
            return False
        for rule in self._waiting.popleft():
            rule.wire.standing = "new"
        return True

    def refused(self, suspects: Sequence[Rule], reason: str) -> None:
        """Envoy refused what these rules were part of."""
        if len(suspects) == 1:
            (culprit,) = suspects
            culprit.wire.standing, culprit.wire.reason = "refused", reason
            return
        for rule in suspects:
            rule.wire.standing = "waiting"
        middle = len(suspects) // 2
        self._waiting.extendleft([list(suspects[middle:]), list(suspects[:middle])])
