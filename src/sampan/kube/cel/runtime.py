"""The steps of an evaluation: reading typed JSON, selecting fields and items, calling, deciding.

Compiled programs (see ``program``) are closures over these functions.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import cmp_to_key
from typing import Any, TypeAlias

from sampan.kube.cel import operators, types
from sampan.kube.cel.budget import Budget
from sampan.kube.cel.errors import BudgetError, CelError
from sampan.kube.cel.functions import Overload, select
from sampan.kube.cel.types import Type
from sampan.kube.cel.values import NONE, Duration, Lazy, Optional, Timestamp, UInt, equal, type_name

Env: TypeAlias = dict[str, Any]
"""The variables of an evaluation, and under `BUDGET_KEY` its budget."""
Code: TypeAlias = Callable[[Env], Any]

BUDGET_KEY = "\0budget"
SIZED = frozenset({str, list, bytes})
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "_<_": lambda a, b: operators.compared(a, b) < 0,
    "_<=_": lambda a, b: operators.compared(a, b) <= 0,
    "_>_": lambda a, b: operators.compared(a, b) > 0,
    "_>=_": lambda a, b: operators.compared(a, b) >= 0,
}


def read_timestamp(value: Any) -> Any:
    if type(value) is not str:
        return value
    return Timestamp.parse(value if len(value) > 10 else f"{value}T00:00:00Z")


def read_bytes(value: Any) -> Any:
    if type(value) is not str:
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise CelError("illegal base64 data") from None


READERS: dict[str, Callable[[Any], Any]] = {
    "double": lambda value: float(value) if type(value) is int else value,
    "timestamp": read_timestamp,
    "duration": lambda value: Duration.parse(value) if type(value) is str else value,
    "bytes": read_bytes,
}


def as_is(value: Any) -> Any:
    return value


def field_of(value: Any, name: str) -> Any:
    if type(value) is dict:
        try:
            return value[name]
        except KeyError:
            if "__" in name and (real := types.unescape(name)) in value:
                return value[real]
            raise CelError(f"no such key: {name}") from None
    if isinstance(value, Optional):
        return optional_field(value, name)
    if isinstance(value, Lazy) and name in value:
        return value[name]
    raise CelError("no such key: " + name if value is None else f"no such overload: {type_name(value)}.{name}")


def optional_field(value: Any, name: str) -> Optional:
    if isinstance(value, Optional):
        if not value.present:
            return NONE
        value = value.value
    if type(value) is not dict:
        raise CelError(f"no such overload: {type_name(value)}.?{name}")
    if name in value:
        return Optional(value[name])
    real = types.unescape(name)
    return Optional(value[real]) if real in value else NONE


def item_of(container: Any, key: Any) -> Any:
    kind = type(container)
    if kind is list:
        if type(key) is float and key.is_integer():
            key = int(key)
        if type(key) not in (int, UInt):
            raise CelError(f"unsupported index type '{type_name(key)}' in list")
        if not 0 <= key < len(container):
            raise CelError(f"index out of bounds: {key}")
        return container[key]
    if kind is dict:
        try:
            return container[key]
        except (KeyError, TypeError):
            raise CelError(f"no such key: {key}") from None
    if isinstance(container, Optional):
        return optional_item(container, key)
    raise CelError(f"no such overload: {type_name(container)}[{type_name(key)}]")


def optional_item(container: Any, key: Any) -> Optional:
    if isinstance(container, Optional):
        if not container.present:
            return NONE
        container = container.value
    if type(container) is list:
        return Optional(container[key]) if type(key) in (int, UInt) and 0 <= key < len(container) else NONE
    if type(container) is dict:
        return Optional(container[key]) if key in container else NONE
    raise CelError(f"no such overload: {type_name(container)}[?{type_name(key)}]")


def present(value: Any, name: str) -> bool:
    if type(value) is dict:
        return name in value or ("__" in name and types.unescape(name) in value)
    if isinstance(value, Optional):
        return optional_field(value, name).present
    if isinstance(value, Lazy):
        return name in value
    raise CelError(f"no such overload: has({type_name(value)}.{name})")


def truth(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise CelError(f"no such overload: expected bool, found {type_name(value)}")


def by_key(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    def order(a: tuple[Any, Any], b: tuple[Any, Any]) -> int:
        return operators.compared(a[0], b[0])

    return sorted(pairs, key=cmp_to_key(order))


def calling(found: list[Overload], codes: list[Code]) -> Code:
    def called(env: Env) -> Any:
        args = [code(env) for code in codes]
        price = 1
        for arg in args:
            if type(arg) in SIZED:
                price += len(arg) // 10
        env[BUDGET_KEY].charge(price)
        return select(found, args).call(*args)

    return called


def logical(codes: list[Code], decisive: bool) -> Code:
    """``&&`` and ``||``: one operand that decides outweighs another that fails."""

    def decided(env: Env) -> bool:
        failure: CelError | None = None
        for code in codes:
            try:
                if truth(code(env)) is decisive:
                    return decisive
            except BudgetError:
                raise
            except CelError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return not decisive

    return decided


def joining(left: Code, right: Code, kind: Type) -> Code:
    """``+`` of lists that are sets (a union) or maps (the right side's items replace those of equal keys)."""

    def joined(env: Env) -> list[Any]:
        a, b = left(env), right(env)
        if type(a) is not list or type(b) is not list:
            return [*operators.arithmetic("_+_", a, b)]
        env[BUDGET_KEY].charge(len(a) * len(b) + 1)
        if kind.list_type == "set" or not kind.map_keys:
            return a + [item for item in b if not operators.contained(item, a)]

        def identity(item: Any) -> list[Any]:
            return [item.get(key) for key in kind.map_keys]

        replaced = [next((new for new in b if equal(identity(new), identity(item))), item) for item in a]
        return replaced + [item for item in b if not any(equal(identity(item), identity(old)) for old in a)]

    return joined


LAZY = frozenset({type(as_is), type(Budget().charge)})
"""Bindings of these classes are called when first read."""
