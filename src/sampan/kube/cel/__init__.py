"""The Common Expression Language as Kubernetes speaks it: CRD rules, admission policies, match conditions.

`compile` once, `Program.evaluate` as often as needed. Values are plain JSON; the language, its optional syntax, its macros
and Kubernetes' function libraries are all here, and no evaluation costs more than its budget (see
``docs/decisions/cel.md``). Importing the package is cheap: the compiler and the libraries load with the first `compile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from sampan.kube.cel.budget import BUDGET, Budget
from sampan.kube.cel.errors import BudgetError, CelError, CompileError
from sampan.kube.cel.functions import Functions, Overload, overload
from sampan.kube.cel.types import BOOL, DYN, STRING, Type, of_schema
from sampan.kube.cel.values import Lazy

if TYPE_CHECKING:
    from sampan.kube.cel.program import Program

__all__ = [
    "BOOL",
    "BUDGET",
    "DYN",
    "STRING",
    "Budget",
    "BudgetError",
    "CelError",
    "CompileError",
    "Lazy",
    "Overload",
    "Program",
    "Type",
    "compile",
    "of_schema",
    "overload",
]


@cache
def _functions(extra: tuple[Overload, ...]) -> Functions:
    from sampan.kube.cel import formats, lists, network, quantities, standard, strings

    libraries = (standard, strings, lists, network, quantities, formats)
    return Functions([*(one for library in libraries for one in library.library.overloads), *extra])


def compile(expression: str, variables: Mapping[str, Type], functions: Iterable[Overload] = ()) -> Program:
    """Compile an expression over these variables (`DYN` for JSON of unknown shape, `of_schema` for a known one).

    ``functions`` are the embedder's own, made by `overload`.

    Raises:
        CompileError: it does not parse, names something undeclared, or applies something that does not fit.
    """
    from sampan.kube.cel.program import build

    return build(expression, variables, _functions(tuple(functions)))
