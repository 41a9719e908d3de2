"""From syntax tree to program: one pass resolves names, checks types and builds nested Python closures.

Evaluation works on the JSON values as they are, so a program costs what it reads and not what the object weighs. A static
type that JSON cannot express (a double written as ``1``, a date-time) is converted where it is read. Where nothing is known
(`DYN`) everything is decided at run time.

Every evaluation has a budget: loops pay for each turn by the size of their body, calls by the size of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from sampan.kube.cel import operators, syntax, types
from sampan.kube.cel.budget import Budget
from sampan.kube.cel.errors import BudgetError, CelError, CompileError
from sampan.kube.cel.functions import Functions
from sampan.kube.cel.runtime import (
    BUDGET_KEY,
    LAZY,
    ORDER,
    READERS,
    SIZED,
    Code,
    Env,
    as_is,
    by_key,
    calling,
    field_of,
    item_of,
    joining,
    logical,
    optional_field,
    optional_item,
    present,
    truth,
)
from sampan.kube.cel.syntax import (
    Call,
    Ident,
    Index,
    ListNode,
    Literal,
    MapNode,
    Node,
    Select,
    dotted,
    root_declared,
    weight,
)
from sampan.kube.cel.types import BOOL, DYN, ObjectType, Type
from sampan.kube.cel.values import (
    NONE,
    Optional,
    TypeValue,
    UInt,
    equal,
    same_set,
    type_name,
)

Compiled: TypeAlias = tuple[Code, Type]
Scope: TypeAlias = Mapping[str, Type]

_TYPES = {
    name: TypeValue(name)
    for name in (
        "bool",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "list",
        "map",
        "null_type",
        "type",
        "optional_type",
    )
} | {"google.protobuf.Duration": TypeValue("duration"), "google.protobuf.Timestamp": TypeValue("timestamp")}


class Program:
    """A compiled expression; safe to share and to evaluate any number of times."""

    __slots__ = ("_code", "expression", "type", "variables")

    def __init__(self, expression: str, code: Code, result: Type, variables: frozenset[str]) -> None:
        self.expression = expression
        self.type = result
        """The static type of the result (`DYN` when unknown)."""
        self.variables = variables
        """The variables it reads."""
        self._code = code

    def evaluate(self, bindings: Mapping[str, Any], budget: Budget | None = None) -> Any:
        """The value under these variable bindings (shared, never changed).

        A binding that is a function without parameters is called when the expression first reads it.

        Raises:
            BudgetError: it costs more than ``budget`` has left (default: `BUDGET` of its own).
            CelError: the evaluation fails (no such key, division by zero, ...).
        """
        env: Env = dict(bindings)
        purse = budget or Budget()
        env[BUDGET_KEY] = purse
        try:
            return self._code(env)
        except RecursionError:
            raise CelError("expression is nested too deeply") from None


@lru_cache(maxsize=4096)
def parsed(expression: str) -> Node:
    """The syntax tree, remembered."""
    return syntax.parse(expression)


def build(expression: str, variables: Scope, functions: Functions) -> Program:
    """Compile one expression.

    Raises:
        CompileError: it does not parse, names what is not declared, or applies what does not fit.
    """
    compiler = _Compiler(expression, functions, variables)
    try:
        code, result = compiler.emit(parsed(expression), variables)
    except RecursionError:
        raise CompileError(expression, 0, "expression recursion limit exceeded") from None
    return Program(expression, code, result, frozenset(compiler.used))


def _reading(code: Code, kind: Type) -> Compiled:
    reader = READERS.get(kind.name)
    return (code if reader is None else (lambda env: reader(code(env)))), kind


class _Compiler:
    """Builds one program; `used` collects the variables it reads."""

    def __init__(self, expression: str, functions: Functions, variables: Scope) -> None:
        self._expression = expression
        self._functions = functions
        self._variables = variables
        self.used: set[str] = set()

    def _fail(self, node: Node, what: str) -> CompileError:
        return CompileError(self._expression, node.position, what)

    def emit(self, node: Node, scope: Scope) -> Compiled:
        """Code and static type of a node."""
        match node:
            case Literal():
                value = node.value
                name = type_name(value)
                return (lambda env: value), Type(name)
            case Ident():
                return self._ident(node, scope)
            case Select():
                return self._select(node, scope)
            case Index():
                return self._index(node, scope)
            case ListNode():
                return self._list(node, scope)
            case MapNode():
                return self._map(node, scope)
            case Call():
                return self._call(node, scope)

    # -- names

    def _ident(self, node: Ident, scope: Scope) -> Compiled:
        name = node.name
        kind = scope.get(name)
        if kind is not None:
            if self._variables.get(name) is kind:
                self.used.add(name)

            def read(env: Env) -> Any:
                try:
                    value = env[name]
                except KeyError:
                    raise CelError(f"no such attribute: {name}") from None
                if type(value) in LAZY:
                    value = env[name] = value()
                return value

            return _reading(read, kind)
        if name in _TYPES:
            value = _TYPES[name]
            return (lambda env: value), types.TYPE
        raise self._fail(node, f"undeclared reference to '{name}' (in container '')")

    def _select(self, node: Select, scope: Scope) -> Compiled:
        if (full := dotted(node)) in _TYPES and not root_declared(node, scope):
            value = _TYPES[full]
            return (lambda env: value), types.TYPE
        code, kind = self.emit(node.operand, scope)
        name, field = self._field(node, kind)
        if node.optional:
            reader = READERS.get(field.name, as_is)

            def maybe(env: Env) -> Optional:
                found = optional_field(code(env), name)
                return Optional(reader(found.value)) if found.present else NONE

            return maybe, types.optional_of(field)
        if kind.name == "optional_type":
            return (lambda env: optional_field(code(env), name)), types.optional_of(field)
        return _reading(lambda env: field_of(code(env), name), field)

    def _field(self, node: Select, kind: Type) -> tuple[str, Type]:
        """The real name and the type of a selected field."""
        if kind.name == "optional_type":
            kind = kind.element
        if isinstance(kind, ObjectType):
            found = kind.field(node.field)
            if found is None:
                raise self._fail(node, f"undefined field '{node.field}'")
            return found
        if kind.name == "map":
            return node.field, kind.element
        if kind.name in ("dyn", "object"):
            return node.field, DYN
        raise self._fail(node, f"type '{kind}' does not support field selection")

    def _index(self, node: Index, scope: Scope) -> Compiled:
        code, kind = self.emit(node.operand, scope)
        key, key_kind = self.emit(node.key, scope)
        inner = kind.element if kind.name == "optional_type" else kind
        if inner.name not in ("list", "map", "dyn", "object"):
            raise self._fail(node, f"found no matching overload for '_[_]' applied to '({kind}, {key_kind})'")
        if inner.name == "list" and key_kind.name not in ("int", "uint", "double", "dyn"):
            raise self._fail(node, f"found no matching overload for '_[_]' applied to '({kind}, {key_kind})'")
        element = inner.element if inner.name in ("list", "map") else DYN
        if node.optional or kind.name == "optional_type":
            reader = READERS.get(element.name, as_is)

            def maybe(env: Env) -> Optional:
                found = optional_item(code(env), key(env))
                return Optional(reader(found.value)) if found.present else NONE

            return maybe, types.optional_of(element)
        return _reading(lambda env: item_of(code(env), key(env)), element)

    # -- literals of aggregates

    def _list(self, node: ListNode, scope: Scope) -> Compiled:
        items = [(optional, *self.emit(item, scope)) for optional, item in node.items]
        kinds = {str(kind.element if optional else kind): kind for optional, _, kind in items}
        element = next(iter(kinds.values())) if len(kinds) == 1 and not any(item[0] for item in items) else DYN
        if not any(optional for optional, _, _ in items):
            codes = [code for _, code, _ in items]
            return (lambda env: [code(env) for code in codes]), types.list_of(element)

        def build_list(env: Env) -> list[Any]:
            out = []
            for optional, code, _ in items:
                value = code(env)
                if not optional:
                    out.append(value)
                elif not isinstance(value, Optional):
                    raise CelError(
                        f"cannot initialize optional list element from non-optional value {type_name(value)}"
                    )
                elif value.present:
                    out.append(value.value)
            return out

        return build_list, types.list_of(element)

    def _map(self, node: MapNode, scope: Scope) -> Compiled:
        entries = [(optional, self.emit(key, scope), self.emit(value, scope)) for optional, key, value in node.entries]

        def build_map(env: Env) -> dict[Any, Any]:
            out: dict[Any, Any] = {}
            for optional, (key_code, _), (value_code, _) in entries:
                key, value = key_code(env), value_code(env)
                if type(key) not in (str, int, UInt, bool):
                    raise CelError(f"unsupported key type: {type_name(key)}")
                if optional:
                    if not isinstance(value, Optional):
                        raise CelError(f"cannot initialize optional entry from non-optional value {type_name(value)}")
                    if not value.present:
                        continue
                    value = value.value
                if key in out:
                    raise CelError(f"Failed with repeated key: {key}")
                out[key] = value
            return out

        keys = {str(kind) for _, (_, kind), _ in entries}
        values = {str(kind): kind for _, _, (_, kind) in entries}
        key_kind = Type(keys.pop()) if len(keys) == 1 else DYN
        return build_map, types.map_of(key_kind, next(iter(values.values())) if len(values) == 1 else DYN)

    # -- calls

    def _call(self, node: Call, scope: Scope) -> Compiled:
        function = node.function
        if node.target is None:
            if function == "has":
                return self._has(node, scope)
            operator = self._operator(node, scope)
            if operator is not None:
                return operator
            return self._apply(node, function, False, node.args, scope)
        macro = _MACROS.get((function, len(node.args)))
        if macro is not None and all(isinstance(arg, Ident) for arg in node.args[: macro[0]]):
            return macro[1](self, node, scope)
        full = dotted(node.target)
        if full is not None and not root_declared(node.target, scope):
            if full == "cel" and function == "bind" and len(node.args) == 3:
                return self._bind(node, scope)
            if self._functions.known(f"{full}.{function}", False):
                return self._apply(node, f"{full}.{function}", False, node.args, scope)
        return self._apply(node, function, True, (node.target, *node.args), scope)

    def _apply(self, node: Call, name: str, method: bool, args: Sequence[Node], scope: Scope) -> Compiled:
        if not self._functions.known(name, method):
            raise self._fail(node, f"undeclared reference to '{name}' (in container '')")
        compiled = [self.emit(arg, scope) for arg in args]
        kinds = [kind for _, kind in compiled]
        found = self._functions.find(name, method, kinds)
        if not found:
            shown = ", ".join(map(str, kinds))
            if method:
                receiver, _, rest = shown.partition(", ")
                shown = f"{receiver}.({rest})"
            else:
                shown = f"({shown})"
            raise self._fail(node, f"found no matching overload for '{name}' applied to '{shown}'")
        results = {str(one.result_for(kinds)): one.result_for(kinds) for one in found}
        result = next(iter(results.values())) if len(results) == 1 else DYN
        return calling(found, [code for code, _ in compiled]), result

    def _has(self, node: Call, scope: Scope) -> Compiled:
        if len(node.args) != 1 or not isinstance(node.args[0], Select):
            raise self._fail(node, "invalid argument to has() macro")
        selected = node.args[0]
        code, kind = self.emit(selected.operand, scope)
        name, _ = self._field(selected, kind)
        return (lambda env: present(code(env), name)), BOOL

    def _boolean(self, node: Node, scope: Scope, what: str) -> Code:
        code, kind = self.emit(node, scope)
        if kind.name not in ("bool", "dyn"):
            raise self._fail(node, f"expected type 'bool' but found '{kind}'{what}")
        return code

    def _operator(self, node: Call, scope: Scope) -> Compiled | None:
        function = node.function
        if function in ("_&&_", "_||_"):
            codes = [self._boolean(arg, scope, "") for arg in node.args]
            return logical(codes, function == "_||_"), BOOL
        if function == "!_":
            inner = self._boolean(node.args[0], scope, "")
            return (lambda env: not truth(inner(env))), BOOL
        if function == "_?_:_":
            test = self._boolean(node.args[0], scope, "")
            (yes, yes_kind), (no, no_kind) = self.emit(node.args[1], scope), self.emit(node.args[2], scope)
            kind = yes_kind if yes_kind == no_kind else DYN
            return (lambda env: yes(env) if truth(test(env)) else no(env)), kind
        if function == "-_":
            code, kind = self.emit(node.args[0], scope)
            if kind.name not in ("int", "double", "dyn"):
                raise self._fail(node, f"found no matching overload for '-_' applied to '({kind})'")
            return (lambda env: operators.negated(code(env))), kind
        if function in _BINARY or function in operators.ARITHMETIC:
            return self._binary(node, scope)
        return None

    def _binary(self, node: Call, scope: Scope) -> Compiled:
        function = node.function
        (left, a), (right, b) = self.emit(node.args[0], scope), self.emit(node.args[1], scope)
        if not _operands_fit(function, a, b):
            raise self._fail(node, f"found no matching overload for '{function}' applied to '({a}, {b})'")
        if function in ("_==_", "_!=_"):
            same = equal
            if a.name == b.name == "list" and "atomic" not in (a.list_type, b.list_type):
                same = same_set
            if function == "_==_":
                return (lambda env: same(left(env), right(env))), BOOL
            return (lambda env: not same(left(env), right(env))), BOOL
        if function == "@in":

            def within(env: Env) -> bool:
                item, container = left(env), right(env)
                if type(container) is list:
                    env[BUDGET_KEY].charge(len(container))
                return operators.contained(item, container)

            return within, BOOL
        if function in ORDER:
            holds = ORDER[function]
            return (lambda env: holds(left(env), right(env))), BOOL
        if function == "_+_" and a.name == "list" and a.list_type != "atomic":
            return joining(left, right, a), a
        result = operators.RESULTS[function].get((a.name, b.name))
        kind = a if result == "list" and a == b else Type(result) if result and result != "list" else DYN
        table = operators.ARITHMETIC[function]

        def combined(env: Env) -> Any:
            x, y = left(env), right(env)
            implementation = table.get((type(x), type(y)))
            if implementation is None:
                return operators.arithmetic(function, x, y)
            value = implementation(x, y)
            if type(value) in SIZED:
                env[BUDGET_KEY].charge(1 + len(value) // 10)
            return value

        return combined, kind

    # -- macros

    def _inner(self, scope: Scope, names: Mapping[str, Type]) -> Scope:
        return {**scope, **names}

    def _bind(self, node: Call, scope: Scope) -> Compiled:
        name, value, body = node.args
        if not isinstance(name, Ident):
            raise self._fail(name, "cel.bind() variable names must be simple identifiers")
        code, kind = self.emit(value, scope)
        inner, result = self.emit(body, self._inner(scope, {name.name: kind}))
        return (lambda env: inner({**env, name.name: code(env)})), result

    def optional_map(self, node: Call, scope: Scope) -> Compiled:
        """``optMap`` and ``optFlatMap``."""
        assert node.target is not None
        code, kind = self.emit(node.target, scope)
        name = _name(node.args[0])
        body, result = self.emit(node.args[1], self._inner(scope, {name: kind.element}))
        flat = node.function == "optFlatMap"

        def mapped(env: Env) -> Any:
            value = code(env)
            if not isinstance(value, Optional):
                raise CelError(f"no such overload: {type_name(value)}.{node.function}")
            if not value.present:
                return NONE
            produced = body({**env, name: value.value})
            return produced if flat else Optional(produced)

        return mapped, result if flat else types.optional_of(result)

    def _loop(self, node: Call, scope: Scope, names: int) -> tuple[Callable[[Env], Iterator[Env]], Scope, Type]:
        """The iteration of a macro: environments one by one, the scope of its body, and the range's type."""
        assert node.target is not None
        code, kind = self.emit(node.target, scope)
        if kind.name not in ("list", "map", "dyn", "object"):
            raise self._fail(
                node.target,
                f"expression of type '{kind}' cannot be range of a comprehension (must be list, map, or dynamic)",
            )
        variables = [_name(arg) for arg in node.args[:names]]
        price = 2 + sum(weight(arg) for arg in node.args[names:])
        if kind.name == "list":
            kinds = [kind.element] if names == 1 else [types.INT, kind.element]
        elif kind.name == "map":
            kinds = [kind.key, kind.element][:names]
        else:
            kinds = [DYN] * names
        # The loop variables hold values as they are in JSON; reading one converts it (see `_ident`).

        def turns(env: Env) -> Iterator[Env]:
            value = code(env)
            inner = dict(env)
            charge = env[BUDGET_KEY].charge
            first = variables[0]
            if type(value) is list:
                if names == 1:
                    for item in value:
                        charge(price)
                        inner[first] = item
                        yield inner
                else:
                    for at, item in enumerate(value):
                        charge(price)
                        inner[first] = at
                        inner[variables[1]] = item
                        yield inner
            elif type(value) is dict:
                for key, item in value.items():
                    charge(price)
                    inner[first] = key
                    if names == 2:
                        inner[variables[1]] = item
                    yield inner
            else:
                raise CelError(f"got '{type_name(value)}', expected iterable type")

        return turns, self._inner(scope, dict(zip(variables, kinds, strict=True))), kind

    def quantifier(self, node: Call, scope: Scope) -> Compiled:
        """``all``, ``exists`` and ``existsOne``, over one variable or two."""
        names = len(node.args) - 1
        turns, inner, _ = self._loop(node, scope, names)
        test = self._boolean(node.args[-1], inner, "")
        if node.function in ("exists_one", "existsOne"):
            return (lambda env: sum(1 for turn in turns(env) if truth(test(turn))) == 1), BOOL
        wanted = node.function == "exists"

        def decided(env: Env) -> bool:
            failure: CelError | None = None
            for turn in turns(env):
                try:
                    if truth(test(turn)) is wanted:
                        return wanted
                except BudgetError:
                    raise
                except CelError as error:
                    failure = failure or error
            if failure is not None:
                raise failure
            return not wanted

        return decided, BOOL

    def mapping(self, node: Call, scope: Scope) -> Compiled:
        """``map`` (with or without a filter) and ``filter``."""
        turns, inner, kind = self._loop(node, scope, 1)
        if node.function == "filter":
            test = self._boolean(node.args[1], inner, "")
            variable = _name(node.args[0])
            element = kind.element if kind.name == "list" else kind.key if kind.name == "map" else DYN
            return (lambda env: [turn[variable] for turn in turns(env) if truth(test(turn))]), types.list_of(element)
        body, result = self.emit(node.args[-1], inner)
        if len(node.args) == 2:
            return (lambda env: [body(turn) for turn in turns(env)]), types.list_of(result)
        chosen = self._boolean(node.args[1], inner, "")
        return (lambda env: [body(turn) for turn in turns(env) if truth(chosen(turn))]), types.list_of(result)

    def transform(self, node: Call, scope: Scope) -> Compiled:
        """``transformList``, ``transformMap`` and ``transformMapEntry``, with or without a filter."""
        turns, inner, kind = self._loop(node, scope, 2)
        body, result = self.emit(node.args[-1], inner)
        chosen = self._boolean(node.args[2], inner, "") if len(node.args) == 4 else (lambda env: True)
        if node.function == "transformList":
            return (lambda env: [body(turn) for turn in turns(env) if truth(chosen(turn))]), types.list_of(result)
        key = _name(node.args[0])
        if node.function == "transformMap":
            keys = kind.key if kind.name == "map" else types.INT if kind.name == "list" else DYN
            return (lambda env: {turn[key]: body(turn) for turn in turns(env) if truth(chosen(turn))}), types.map_of(
                keys, result
            )

        def entries(env: Env) -> dict[Any, Any]:
            out: dict[Any, Any] = {}
            for turn in turns(env):
                if truth(chosen(turn)):
                    produced = body(turn)
                    if type(produced) is not dict:
                        raise CelError("transformMapEntry must give a map")
                    if any(one in out for one in produced):
                        raise CelError("insert failed: key already exists")
                    out.update(produced)
            return out

        return entries, result if result.name == "map" else types.MAP

    def sort_by(self, node: Call, scope: Scope) -> Compiled:
        """``sortBy``: a list ordered by a key of its elements."""
        turns, inner, kind = self._loop(node, scope, 1)
        body, _ = self.emit(node.args[1], inner)
        variable = _name(node.args[0])

        def ordered(env: Env) -> list[Any]:
            return [item for _, item in by_key([(body(turn), turn[variable]) for turn in turns(env)])]

        return ordered, kind


def _operands_fit(function: str, a: Type, b: Type) -> bool:
    """Whether an operator may apply, as far as static types tell."""
    x, y = a.name, b.name
    if "dyn" in (x, y):
        return True
    numbers = ("int", "uint", "double")
    if function in ("_==_", "_!=_"):
        return types.assignable(a, b) or "null_type" in (x, y) or (x in numbers and y in numbers)
    if function == "@in":
        if y == "list":
            return types.assignable(a, b.element) or (x in numbers and b.element.name in numbers) or x == "null_type"
        return y in ("map", "object")
    if function in ORDER:
        return (x in numbers and y in numbers) or (x == y and x in ("string", "bytes", "bool", "duration", "timestamp"))
    return (x, y) in operators.RESULTS[function]


def _name(node: Node) -> str:
    assert isinstance(node, Ident)
    return node.name


_BINARY = frozenset({"_==_", "_!=_", "@in", "_<_", "_<=_", "_>_", "_>=_"})
_Macro: TypeAlias = tuple[int, Callable[[_Compiler, Call, Scope], Compiled]]
_MACROS: dict[tuple[str, int], _Macro] = {
    ("all", 2): (1, _Compiler.quantifier),
    ("exists", 2): (1, _Compiler.quantifier),
    ("exists_one", 2): (1, _Compiler.quantifier),
    ("existsOne", 2): (1, _Compiler.quantifier),
    ("all", 3): (2, _Compiler.quantifier),
    ("exists", 3): (2, _Compiler.quantifier),
    ("exists_one", 3): (2, _Compiler.quantifier),
    ("existsOne", 3): (2, _Compiler.quantifier),
    ("map", 2): (1, _Compiler.mapping),
    ("map", 3): (1, _Compiler.mapping),
    ("filter", 2): (1, _Compiler.mapping),
    ("transformList", 3): (2, _Compiler.transform),
    ("transformList", 4): (2, _Compiler.transform),
    ("transformMap", 3): (2, _Compiler.transform),
    ("transformMap", 4): (2, _Compiler.transform),
    ("transformMapEntry", 3): (2, _Compiler.transform),
    ("transformMapEntry", 4): (2, _Compiler.transform),
    ("sortBy", 2): (1, _Compiler.sort_by),
    ("optMap", 2): (1, _Compiler.optional_map),
    ("optFlatMap", 2): (1, _Compiler.optional_map),
}
"""Macros by name and number of arguments: how many arguments are variables, and what expands them."""
