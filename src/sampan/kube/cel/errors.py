"""What can go wrong with an expression: at compilation, at evaluation, or in the price."""

from __future__ import annotations

from sampan.kernel.errors import SampanError


class CelError(SampanError):
    """An expression failed: the message is what upstream reports after ``failed rule: `` or ``evaluation error: ``."""


class CompileError(CelError):
    """An expression does not parse or does not fit its variables' types; the message shows the place."""

    def __init__(self, expression: str, position: int, what: str) -> None:
        line_start = expression.rfind("\n", 0, position) + 1
        line = expression.count("\n", 0, position) + 1
        column = position - line_start + 1
        text = expression[line_start:].split("\n", 1)[0]
        super().__init__(f"ERROR: <input>:{line}:{column}: {what}\n | {text}\n | {'.' * (column - 1)}^")


class BudgetError(CelError):
    """The evaluation cost more than it may."""
