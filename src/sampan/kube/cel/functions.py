"""Functions an expression may call: declared by signature, chosen by the types of the arguments.

A signature reads ``<string>.split(string, int) -> list(string)`` for a method and ``sets.contains(list(A), list(A)) -> bool``
for a function; ``A`` is any one type. A library is a list of `Overload`; an embedder adds its own (see ``compile``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.types import DYN, LIST, MAP, Type, assignable
from sampan.kube.cel.values import type_name

_PARAMETER = Type("A")
_SIGNATURE = re.compile(r"(?:<(?P<receiver>[^>]+)>\.)?(?P<name>[\w.]+)\((?P<args>.*)\)\s*->\s*(?P<result>.+)")


@dataclass(frozen=True)
class Overload:
    """One function for one combination of argument types; a method's receiver is its first argument."""

    name: str
    method: bool
    arguments: tuple[Type, ...]
    result: Type
    call: Callable[..., Any]

    def accepts(self, args: Sequence[Any]) -> bool:
        """Whether these values fit."""
        for value, wanted in zip(args, self.arguments, strict=True):
            if wanted.name not in ("dyn", "A") and type_name(value) != wanted.name:
                return False
        return True

    def fits(self, types: Sequence[Type]) -> bool:
        """Whether values of these types may fit."""
        return all(
            wanted.name == "A" or assignable(actual, wanted)
            for actual, wanted in zip(types, self.arguments, strict=True)
        )

    def result_for(self, types: Sequence[Type]) -> Type:
        """The result's type, with ``A`` filled in from the arguments."""
        bound = DYN
        for actual, wanted in zip(types, self.arguments, strict=True):
            if wanted.name == "A":
                bound = actual
                break
            if any(param.name == "A" for param in wanted.params):
                bound = actual.element
                break
        return _filled(self.result, bound)


def _filled(wanted: Type, bound: Type) -> Type:
    if wanted.name == "A":
        return bound
    return Type(wanted.name, tuple(_filled(param, bound) for param in wanted.params)) if wanted.params else wanted


def _split(text: str) -> list[str]:
    """Comma-separated types, minding parentheses."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def parse_type(text: str) -> Type:
    """The type a text such as ``map(string, list(int))`` names."""
    name, bracket, rest = text.strip().partition("(")
    if bracket:
        return Type(name, tuple(parse_type(part) for part in _split(rest[:-1])))
    return {"list": LIST, "map": MAP, "dyn": DYN, "A": _PARAMETER}.get(name) or Type(name)


def overload(signature: str, call: Callable[..., Any]) -> Overload:
    """A function from its signature."""
    match = _SIGNATURE.fullmatch(signature)
    if match is None:
        raise ValueError(f"not a signature: {signature}")
    arguments = [parse_type(part) for part in _split(match["args"])]
    if match["receiver"]:
        arguments.insert(0, parse_type(match["receiver"]))
    return Overload(match["name"], match["receiver"] is not None, tuple(arguments), parse_type(match["result"]), call)


class Library:
    """Functions being declared; ``@library("signature", ...)`` above a function adds it."""

    def __init__(self) -> None:
        self.overloads: list[Overload] = []

    def __call__(self, *signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(call: Callable[..., Any]) -> Callable[..., Any]:
            self.overloads.extend(overload(signature, call) for signature in signatures)
            return call

        return add


class Functions:
    """All functions of an environment, by name, form and number of arguments."""

    def __init__(self, overloads: Iterable[Overload]) -> None:
        self._table: dict[tuple[str, bool, int], list[Overload]] = {}
        self._names: set[tuple[str, bool]] = set()
        self.namespaces: set[str] = set()
        for one in overloads:
            self._table.setdefault((one.name, one.method, len(one.arguments)), []).append(one)
            self._names.add((one.name, one.method))
            if "." in one.name:
                self.namespaces.add(one.name.split(".")[0])

    def known(self, name: str, method: bool) -> bool:
        return (name, method) in self._names

    def find(self, name: str, method: bool, types: Sequence[Type]) -> list[Overload]:
        """Overloads that values of these types may select."""
        return [one for one in self._table.get((name, method, len(types)), ()) if one.fits(types)]


def select(overloads: Sequence[Overload], args: Sequence[Any]) -> Overload:
    """The overload for these values.

    Raises:
        CelError: there is none.
    """
    for one in overloads:
        if one.accepts(args):
            return one
    raise CelError(f"no such overload: {overloads[0].name}({', '.join(map(type_name, args))})")
