"""The SQL92 subset of message filters, compiled to closures over a message's properties.

::

    condition   = conjunction { OR conjunction }
    conjunction = negation { AND negation }
    negation    = NOT negation | predicate
    predicate   = operand [ (= | <> | != | > | >= | < | <=) operand | IS [NOT] NULL
                          | [NOT] BETWEEN operand AND operand | [NOT] IN ( string {, string} )
                          | [NOT] (CONTAINS | STARTSWITH | ENDSWITH) string ]
    operand     = ( condition ) | - number | number | string | TRUE | FALSE | NULL | identifier

Logic is three-valued: a missing property is NULL, comparing with NULL gives unknown (None here), AND, OR and NOT follow SQL,
and only TRUE selects a message. Property values are strings; compared with a number they are read as numbers, and a value that
is none does not match. Ordering is only defined for numbers: ``a > 'x'`` is refused when parsed. Keywords are
case-insensitive, identifiers are not.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

from sampan.parts.messaging.errors import MessagingError, Reason

Value = str | int | float | bool | None
Evaluate = Callable[[Mapping[str, str]], Value]

MAX_LENGTH = 16 * 1024
MAX_DEPTH = 50
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[lLfFdD]?)
      | (?P<string>'(?:[^']|'')*')
      | (?P<name>[A-Za-z_$][A-Za-z0-9_$.\-]*)
      | (?P<symbol><>|<=|>=|!=|=|<|>|\(|\)|,|-|\+)
    )""",
    re.VERBOSE,
)
_KEYWORDS = frozenset(
    ("AND", "OR", "NOT", "BETWEEN", "IN", "IS", "NULL", "TRUE", "FALSE", "CONTAINS", "STARTSWITH", "ENDSWITH")
)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_STRING_TESTS: dict[str, Callable[[str, str], bool]] = {
    "CONTAINS": lambda text, part: part in text,
    "STARTSWITH": str.startswith,
    "ENDSWITH": str.endswith,
}


def parse(expression: str) -> Evaluate:
    """Compile a condition; calling the result gives True, False or None (unknown).

    Raises:
        MessagingError: ILLEGAL_FILTER, with what was wrong and where.
    """
    parser = _Parser(expression)
    condition = parser.condition()
    parser.end()
    return _truth(condition)


class _Parser:
    def __init__(self, expression: str) -> None:
        if not expression.strip():
            raise _refused("the filter is empty")
        if len(expression) > MAX_LENGTH:
            raise _refused(f"the filter is longer than {MAX_LENGTH} characters")
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        text = expression.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _refused(f"unexpected {text[at:].strip()[:20]!r} at character {at + 1}")
            kind = match.lastgroup or ""
            token, start = match.group(kind), match.start(kind) + 1
            if kind == "name" and token.upper() in _KEYWORDS:
                kind, token = "keyword", token.upper()
            self._tokens.append((kind, token, start))
            at = match.end()
        self._tokens.append(("end", "the end", len(text) + 1))
        self._at = 0
        self._depth = 0

    def end(self) -> None:
        if self._tokens[self._at][0] != "end":
            raise self._unexpected()

    def condition(self) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"the filter is nested deeper than {MAX_DEPTH}")
        terms = [self._conjunction()]
        while self._take("keyword", "OR"):
            terms.append(self._conjunction())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else _any([_truth(term) for term in terms])

    def _conjunction(self) -> Evaluate:
        terms = [self._negation()]
        while self._take("keyword", "AND"):
            terms.append(self._negation())
        return terms[0] if len(terms) == 1 else _all([_truth(term) for term in terms])

    def _negation(self) -> Evaluate:
        negations = 0
        while self._take("keyword", "NOT"):
            negations += 1
        inner = self._predicate()
        if not negations:
            return inner
        return _not(_truth(inner)) if negations % 2 else _truth(inner)

    def _predicate(self) -> Evaluate:
        left, kind = self._operand()
        if (symbol := self._symbol("=", "<>", "!=", ">", ">=", "<", "<=")) is not None:
            at = self._at
            right, right_kind = self._operand()
            if symbol in _ORDER:
                if "string" in (kind, right_kind) or "boolean" in (kind, right_kind):
                    raise _refused(f"{symbol} compares numbers, not strings (character {self._tokens[at][2]})")
                return _ordered(_ORDER[symbol], left, right)
            equal = _equal(left, right)
            return equal if symbol == "=" else _not(equal)
        if self._take("keyword", "IS"):
            negated = self._take("keyword", "NOT")
            self._expect("keyword", "NULL")
            return lambda p: (left(p) is None) is not negated
        negated = self._take("keyword", "NOT")
        test: Evaluate
        if self._take("keyword", "BETWEEN"):
            low, low_kind = self._operand()
            self._expect("keyword", "AND")
            high, high_kind = self._operand()
            if "string" in (low_kind, high_kind):
                raise _refused("BETWEEN compares numbers, not strings")
            test = _all([_ordered(operator.ge, left, low), _ordered(operator.le, left, high)])
        elif self._take("keyword", "IN"):
            choices = self._strings()
            test = lambda p: None if (v := left(p)) is None else v in choices  # noqa: E731
        elif (name := self._keyword(*_STRING_TESTS)) is not None:
            compare, part = _STRING_TESTS[name], self._string()
            test = lambda p: None if (v := left(p)) is None else isinstance(v, str) and compare(v, part)  # noqa: E731
        elif negated:
            raise self._unexpected()
        else:
            return left
        return _not(test) if negated else test

    def _operand(self) -> tuple[Evaluate, str]:
        kind, text, _ = self._tokens[self._at]
        self._at += 1
        if kind == "name":
            return (lambda p: p.get(text)), "name"
        if kind == "string":
            literal = text[1:-1].replace("''", "'")
            return (lambda p: literal), "string"
        if kind == "number":
            number = _number(text)
            return (lambda p: number), "number"
        if (kind, text) in (("symbol", "-"), ("symbol", "+")) and self._tokens[self._at][0] == "number":
            number = _number(self._tokens[self._at][1])
            signed = -number if text == "-" else number
            self._at += 1
            return (lambda p: signed), "number"
        if (kind, text) == ("symbol", "("):
            inner = self.condition()
            self._expect("symbol", ")")
            return inner, "condition"
        if kind == "keyword" and text in ("TRUE", "FALSE"):
            truth = text == "TRUE"
            return (lambda p: truth), "boolean"
        if (kind, text) == ("keyword", "NULL"):
            return (lambda p: None), "null"
        self._at -= 1
        raise self._unexpected()

    def _strings(self) -> frozenset[str]:
        self._expect("symbol", "(")
        strings = [self._string()]
        while self._take("symbol", ","):
            strings.append(self._string())
        self._expect("symbol", ")")
        return frozenset(strings)

    def _string(self) -> str:
        kind, token, _ = self._tokens[self._at]
        if kind != "string":
            raise self._unexpected()
        self._at += 1
        return token[1:-1].replace("''", "'")

    def _take(self, kind: str, token: str) -> bool:
        if self._tokens[self._at][:2] != (kind, token):
            return False
        self._at += 1
        return True

    def _symbol(self, *symbols: str) -> str | None:
        return next((symbol for symbol in symbols if self._take("symbol", symbol)), None)

    def _keyword(self, *keywords: str) -> str | None:
        return next((keyword for keyword in keywords if self._take("keyword", keyword)), None)

    def _expect(self, kind: str, token: str) -> None:
        if not self._take(kind, token):
            raise self._unexpected(f", expected {token}")

    def _unexpected(self, hint: str = "") -> MessagingError:
        _, token, at = self._tokens[self._at]
        return _refused(f"unexpected {token} at character {at}{hint}")


def _refused(why: str) -> MessagingError:
    return MessagingError(Reason.ILLEGAL_FILTER, f"the SQL filter cannot be read: {why}")


def _number(token: str) -> int | float:
    digits = token.rstrip("lLfFdD")
    if "." in digits or "e" in digits.lower():
        return float(digits)
    if len(digits.lstrip("0")) > 19 or int(digits.lstrip("0") or 0) >= 1 << 63:
        raise _refused(f"{token[:40]} does not fit a long")
    return int(digits.lstrip("0") or 0)


def _as_number(value: Value) -> int | float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        try:
            return int(value) if value.lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return None
    return value


def _truth(evaluate: Evaluate) -> Evaluate:
    """A bare operand as a condition: a boolean, or a property that says ``true``."""

    def truth(properties: Mapping[str, str]) -> Value:
        value = evaluate(properties)
        if isinstance(value, str):
            return True if value.lower() == "true" else False if value.lower() == "false" else None
        return value if isinstance(value, bool) else None

    return truth


def _equal(left: Evaluate, right: Evaluate) -> Evaluate:
    def equal(properties: Mapping[str, str]) -> Value:
        a, b = left(properties), right(properties)
        if a is None or b is None:
            return None
        if isinstance(a, bool) or isinstance(b, bool):
            return str(a).lower() == str(b).lower()
        if isinstance(a, str) and isinstance(b, str):
            return a == b
        x, y = _as_number(a), _as_number(b)
        return None if x is None or y is None else x == y

    return equal


def _ordered(compare: Callable[[float, float], bool], left: Evaluate, right: Evaluate) -> Evaluate:
    def ordered(properties: Mapping[str, str]) -> Value:
        a, b = _as_number(left(properties)), _as_number(right(properties))
        return None if a is None or b is None else compare(a, b)

    return ordered


def _all(terms: list[Evaluate]) -> Evaluate:
    def conjunction(properties: Mapping[str, str]) -> Value:
        result: Value = True
        for term in terms:
            value = term(properties)
            if value is False:
                return False
            if value is None:
                result = None
        return result

    return conjunction


def _any(terms: list[Evaluate]) -> Evaluate:
    def disjunction(properties: Mapping[str, str]) -> Value:
        result: Value = False
        for term in terms:
            value = term(properties)
            if value is True:
                return True
            if value is None:
                result = None
        return result

    return disjunction


def _not(term: Evaluate) -> Evaluate:
    def negation(properties: Mapping[str, str]) -> Value:
        value = term(properties)
        return None if value is None else not value

    return negation
