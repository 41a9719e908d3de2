"""What an evaluation may cost."""

from __future__ import annotations

from sampan.kube.cel.errors import BudgetError

BUDGET = 1_000_000
"""Cost units of one evaluation at most; a unit is about one node visited or ten characters looked at."""


class Budget:
    """What may still be spent; share one between programs to bound them together."""

    __slots__ = ("left",)

    def __init__(self, units: int = BUDGET) -> None:
        self.left = units

    def charge(self, units: int) -> None:
        """Spend.

        Raises:
            BudgetError: nothing is left.
        """
        self.left -= units
        if self.left < 0:
            raise BudgetError("operation cancelled: actual cost limit exceeded")
