"""CESQL 1.0: the SQL-like expressions of Trigger filters, compiled to functions of an event's attributes. No I/O.

Values are strings, 32-bit integers and booleans. Operators cast as the specification says; what cannot be cast, an attribute
that is not there, a division by zero are an `EvaluationError` (for a filter: no match). Binding, tightest first: function
call, NOT, unary minus, LIKE/EXISTS/IN, ``* / %``, ``+ -``, comparisons, and AND/OR/XOR on one level from the right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sampan.parts.eventing.errors import EvaluationError, ExpressionError

Value = str | int | bool
Attributes = Mapping[str, Value]
Evaluate = Callable[[Attributes], Value]

INT_LOW, INT_HIGH = -(2**31), 2**31 - 1
DEPTH_LIMIT = 100
OPERATORS_LIMIT = 300
"""Nesting at most, so that an expression cannot exhaust the stack."""
LENGTH_LIMIT = 16 * 1024
"""Characters of an expression at most."""
_KEYWORDS = {"AND", "OR", "XOR", "NOT", "LIKE", "EXISTS", "IN", "TRUE", "FALSE"}
_COMPARISONS = ("=", "!=", "<>", ">=", "<=", "<", ">")
_INTEGER = re.compile(r"[+-]?\d+")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
    | (?P<number>\d+)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator><>|!=|>=|<=|[-=<>+*/%(),])
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def compile_expression(expression: str) -> Evaluate:
    """The function of a CESQL expression.

    Raises:
        ExpressionError: it does not parse, or calls an unknown function.
    """
    if len(expression) > LENGTH_LIMIT:
        raise ExpressionError(f"the expression is longer than {LENGTH_LIMIT} characters")
    parser = _Parser(_tokens(expression))
    found = parser.logic(0)
    parser.expect_end()
    return found


def matches(evaluate: Evaluate, attributes: Attributes) -> bool:
    """Whether an expression holds for an event; one that has no value does not."""
    try:
        return to_bool(evaluate(attributes))
    except EvaluationError:
        return False


def _tokens(expression: str) -> list[_Token]:
    tokens, at = [], 0
    end = len(expression.rstrip())
    while at < end:
        found = _TOKEN.match(expression, at)
        if found is None:
            raise ExpressionError(f"unexpected {expression[at:].strip()[:10]!r} at character {at + 1}")
        kind = found.lastgroup or ""
        token = found.group(kind)
        if kind == "name" and token.upper() in _KEYWORDS:
            kind, token = "keyword", token.upper()
        tokens.append(_Token(kind, token, found.start(found.lastgroup or 0) + 1))
        at = found.end()
    return tokens


def _unquote(token: str) -> str:
    quote = token[0]
    return re.sub(rf"\\(.)|{quote}{quote}", lambda m: m.group(1) or quote, token[1:-1], flags=re.DOTALL)


# -- casts


def to_bool(value: Value) -> bool:
    """A Boolean, or an `EvaluationError`."""
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise EvaluationError(f"{value!r} is not a Boolean")
    return bool(value)


def to_int(value: Value) -> int:
    """An Integer, or an `EvaluationError`."""
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value) or len(value) > 12:
            raise EvaluationError(f"{value!r} is not an Integer")
        return _bounded(int(value))
    return int(value)


def to_text(value: Value) -> str:
    """A String."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _bounded(value: int) -> int:
    if not INT_LOW <= value <= INT_HIGH:
        raise EvaluationError("the Integer does not fit 32 bits")
    return value


def _cast(value: Value, like: Value) -> Value:
    if isinstance(like, bool):
        return to_bool(value)
    return to_int(value) if isinstance(like, int) else to_text(value)


def _equal(left: Value, right: Value) -> bool:
    return _cast(left, right) == right


# -- the parser: one method a level, loosest first


class _Parser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._operators = 0

    def _peek(self, *texts: str) -> bool:
        if self._at >= len(self._tokens):
            return False
        token = self._tokens[self._at]
        return token.kind in ("keyword", "operator") and token.text in texts

    def _take(self, *texts: str) -> str | None:
        if self._peek(*texts):
            self._at += 1
            return self._tokens[self._at - 1].text
        return None

    def _operator(self, *texts: str) -> str | None:
        """Take an operator; evaluating nests once for each."""
        taken = self._take(*texts)
        if taken is not None:
            self._operators += 1
            if self._operators > OPERATORS_LIMIT:
                raise ExpressionError(f"the expression has more than {OPERATORS_LIMIT} operators")
        return taken

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            raise self._unexpected(f"expected {text!r}")

    def expect_end(self) -> None:
        """Nothing may follow."""
        if self._at < len(self._tokens):
            raise self._unexpected("expected the end")

    def _unexpected(self, wanted: str) -> ExpressionError:
        if self._at >= len(self._tokens):
            return ExpressionError(f"{wanted}, but the expression ends")
        token = self._tokens[self._at]
        return ExpressionError(f"{wanted}, but found {token.text!r} at character {token.at}")

    def logic(self, depth: int) -> Evaluate:
        """AND, OR, XOR: one level, from the right."""
        if depth > DEPTH_LIMIT:
            raise ExpressionError(f"the expression is nested more than {DEPTH_LIMIT} deep")
        operands = [self._comparison(depth)]
        operators = []
        while (operator := self._operator("AND", "OR", "XOR")) is not None:
            operators.append(operator)
            operands.append(self._comparison(depth))
        right = operands.pop()
        while operators:
            right = _logical(operators.pop(), operands.pop(), right)
        return right

    def _comparison(self, depth: int) -> Evaluate:
        left = self._sum(depth)
        while (operator := self._operator(*_COMPARISONS)) is not None:
            left = _compared(operator, left, self._sum(depth))
        return left

    def _sum(self, depth: int) -> Evaluate:
        left = self._product(depth)
        while (operator := self._operator("+", "-")) is not None:
            left = _computed(operator, left, self._product(depth))
        return left

    def _product(self, depth: int) -> Evaluate:
        left = self._test(depth)
        while (operator := self._operator("*", "/", "%")) is not None:
            left = _computed(operator, left, self._test(depth))
        return left

    def _test(self, depth: int) -> Evaluate:
        """LIKE, IN, EXISTS."""
        if self._take("EXISTS"):
            name = self._name("an attribute name after EXISTS")
            return lambda attributes: name in attributes
        left = self._unary(depth)
        while self._peek("LIKE", "IN") or self._not_test():
            negated = self._take("NOT") is not None
            if self._take("LIKE"):
                left = _like(left, self._pattern(), negated)
            else:
                self._expect("IN")
                left = _in(left, self._list(depth), negated)
        return left

    def _not_test(self) -> bool:
        following = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else None
        return self._peek("NOT") and following is not None and following.text in ("LIKE", "IN")

    def _unary(self, depth: int) -> Evaluate:
        if depth > DEPTH_LIMIT:
            raise ExpressionError(f"the expression is nested more than {DEPTH_LIMIT} deep")
        if self._take("-"):
            operand = self._unary(depth + 1)
            return lambda attributes: _bounded(-to_int(operand(attributes)))
        if self._take("NOT"):
            operand = self._unary(depth + 1)
            return lambda attributes: not to_bool(operand(attributes))
        if self._peek("EXISTS"):
            return self._test(depth + 1)
        return self._primary(depth)

    def _primary(self, depth: int) -> Evaluate:
        if self._take("("):
            inner = self.logic(depth + 1)
            self._expect(")")
            return inner
        if (truth := self._take("TRUE", "FALSE")) is not None:
            return _constant(truth == "TRUE")
        if self._at >= len(self._tokens):
            raise self._unexpected("expected a value")
        token = self._tokens[self._at]
        if token.kind == "string":
            self._at += 1
            return _constant(_unquote(token.text))
        if token.kind == "number":
            self._at += 1
            if len(token.text) > 12 or int(token.text) > INT_HIGH:
                raise ExpressionError(f"{token.text} does not fit a 32-bit integer")
            return _constant(int(token.text))
        if token.kind == "name":
            self._at += 1
            if self._peek("("):
                return _called(token, self._list(depth, empty=True))
            return _attribute(token.text)
        raise self._unexpected("expected a value")

    def _name(self, wanted: str) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at].kind == "name":
            self._at += 1
            return self._tokens[self._at - 1].text
        raise self._unexpected(f"expected {wanted}")

    def _pattern(self) -> re.Pattern[str]:
        if self._at >= len(self._tokens) or self._tokens[self._at].kind != "string":
            raise self._unexpected("expected a string after LIKE")
        token = self._tokens[self._at].text
        self._at += 1
        # in a pattern a backslash keeps its % or _ literal, so only the quotes are unescaped here
        quote = token[0]
        body = token[1:-1].replace(f"\\{quote}", quote).replace(quote * 2, quote)
        parts = re.findall(r"\\[%_]|%|_|[^%_\\]+|\\", body)
        pieces = [""]
        for part in parts:
            if part == "%":
                pieces.append("")
            else:
                pieces[-1] += "." if part == "_" else re.escape(part[1:] if part in ("\\%", "\\_") else part)
        first, *middle, last = pieces if len(pieces) > 1 else (pieces[0], None)
        if last is None:
            return re.compile(first, re.S)
        # the first place a piece fits is as good as any later one: never tried again, or many % would take for ever
        return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last, re.S)

    def _list(self, depth: int, *, empty: bool = False) -> list[Evaluate]:
        self._expect("(")
        if empty and self._take(")"):
            return []
        items = [self.logic(depth + 1)]
        while self._take(","):
            items.append(self.logic(depth + 1))
        self._expect(")")
        return items


# -- what the nodes do


def _constant(value: Value) -> Evaluate:
    return lambda attributes: value


def _attribute(name: str) -> Evaluate:
    def evaluate(attributes: Attributes) -> Value:
        try:
            return attributes[name]
        except KeyError:
            raise EvaluationError(f"the event has no attribute {name}") from None

    return evaluate


def _logical(operator: str, left: Evaluate, right: Evaluate) -> Evaluate:
    if operator == "AND":
        return lambda attributes: to_bool(left(attributes)) and to_bool(right(attributes))
    if operator == "OR":
        return lambda attributes: to_bool(left(attributes)) or to_bool(right(attributes))
    return lambda attributes: to_bool(left(attributes)) != to_bool(right(attributes))


def _compared(operator: str, left: Evaluate, right: Evaluate) -> Evaluate:
    if operator == "=":
        return lambda attributes: _equal(left(attributes), right(attributes))
    if operator in ("!=", "<>"):
        return lambda attributes: not _equal(left(attributes), right(attributes))

    def evaluate(attributes: Attributes) -> Value:
        one, other = to_int(left(attributes)), to_int(right(attributes))
        match operator:
            case "<":
                return one < other
            case "<=":
                return one <= other
            case ">":
                return one > other
        return one >= other

    return evaluate


def _computed(operator: str, left: Evaluate, right: Evaluate) -> Evaluate:
    def evaluate(attributes: Attributes) -> Value:
        one, other = to_int(left(attributes)), to_int(right(attributes))
        match operator:
            case "+":
                return _bounded(one + other)
            case "-":
                return _bounded(one - other)
            case "*":
                return _bounded(one * other)
        if other == 0:
            raise EvaluationError("division by zero")
        quotient = abs(one) // abs(other) * (1 if (one < 0) == (other < 0) else -1)  # towards zero
        return _bounded(quotient) if operator == "/" else one - quotient * other

    return evaluate


def _like(left: Evaluate, pattern: re.Pattern[str], negated: bool) -> Evaluate:
    return lambda attributes: (pattern.fullmatch(to_text(left(attributes))) is not None) != negated


def _in(left: Evaluate, items: Sequence[Evaluate], negated: bool) -> Evaluate:
    def evaluate(attributes: Attributes) -> Value:
        value = left(attributes)
        return any(_cast(item(attributes), value) == value for item in items) != negated

    return evaluate


# -- functions


def _castable(cast: Callable[[Value], Value], value: Value) -> bool:
    try:
        cast(value)
    except EvaluationError:
        return False
    return True


def _length(value: Value, count: Value) -> int:
    wanted = to_int(count)
    if wanted < 0:
        raise EvaluationError("a length below 0")
    return min(wanted, len(to_text(value)))


def _substring(value: Value, position: Value, length: Value | None = None) -> str:
    whole, place = to_text(value), to_int(position)
    if place == 0:
        return ""
    if abs(place) > len(whole):
        raise EvaluationError(f"position {place} is outside the string")
    start = place - 1 if place > 0 else len(whole) + place
    if length is None:
        return whole[start:]
    count = to_int(length)
    if count < 0:
        raise EvaluationError("a length below 0")
    return whole[start : start + count]


_FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., Value]]] = {
    # name: arguments at least, at most (-1: any number), what it does
    "LENGTH": (1, 1, lambda value: len(to_text(value))),
    "CONCAT": (0, -1, lambda *values: "".join(map(to_text, values))),
    "CONCAT_WS": (1, -1, lambda by, *values: to_text(by).join(map(to_text, values))),
    "LOWER": (1, 1, lambda value: to_text(value).lower()),
    "UPPER": (1, 1, lambda value: to_text(value).upper()),
    "TRIM": (1, 1, lambda value: to_text(value).strip()),
    "LEFT": (2, 2, lambda value, count: to_text(value)[: _length(value, count)]),
    "RIGHT": (2, 2, lambda value, count: to_text(value)[len(to_text(value)) - _length(value, count) :]),
    "SUBSTRING": (2, 3, _substring),
    "INT": (1, 1, to_int),
    "BOOL": (1, 1, to_bool),
    "STRING": (1, 1, to_text),
    "IS_INT": (1, 1, lambda value: _castable(to_int, value)),
    "IS_BOOL": (1, 1, lambda value: _castable(to_bool, value)),
    "ABS": (1, 1, lambda value: _bounded(abs(to_int(value)))),
}


def _called(token: _Token, arguments: Sequence[Evaluate]) -> Evaluate:
    known = _FUNCTIONS.get(token.text.upper())
    if known is None:
        raise ExpressionError(f"there is no function {token.text} (at character {token.at})")
    least, most, function = known
    if len(arguments) < least or (most >= 0 and len(arguments) > most):
        raise ExpressionError(f"{token.text} does not take {len(arguments)} arguments (at character {token.at})")
    return lambda attributes: function(*(argument(attributes) for argument in arguments))
