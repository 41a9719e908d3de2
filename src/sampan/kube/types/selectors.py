"""Label and field selectors: parsed once, then asked for every object.

A query string such as ``app in (a,b),!canary`` or a LabelSelector object becomes a `LabelSelector`, a field query a
`FieldSelector`; both are immutable, cached by their text (short ones), and match in well under a microsecond a requirement.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from sampan.kube.status import ApiError, bad_request
from sampan.kube.types import names
from sampan.kube.types.problems import Problems, quoted

Operator = Literal["=", "==", "!=", "in", "notin", "exists", "!", "gt", "lt"]

_token = re.compile(r"\s*(==|!=|[=!<>(),]|[^\s=!<>(),]+)")
_OPERATORS = "in, notin, =, ==, !=, gt, lt"
_NEGATIVE = ("!=", "notin")
REMEMBERED_LENGTH = 4096
"""Characters in the text of a selector that is remembered; a longer one, which any client may send, is read each time."""


class Requirement(NamedTuple):
    """One term of a label selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy the term."""
        operator = self.operator
        value = labels.get(self.key)
        if operator in ("=", "==", "in"):
            return value in self.values
        if operator in _NEGATIVE:
            return value not in self.values
        if operator == "exists":
            return value is not None
        if operator == "!":
            return value is None
        if value is None:
            return False
        try:
            number, bound = int(value), int(next(iter(self.values)))
        except ValueError:
            return False
        return number > bound if operator == "gt" else number < bound

    def __str__(self) -> str:
        if self.operator == "exists":
            return self.key
        if self.operator == "!":
            return f"!{self.key}"
        listed = ",".join(sorted(self.values))
        if self.operator in ("in", "notin"):
            return f"{self.key} {self.operator} ({listed})"
        return f"{self.key}{ {'gt': '>', 'lt': '<', '==': '='}.get(self.operator, self.operator) }{listed}"


class LabelSelector(NamedTuple):
    """All of the requirements; ``nothing`` selects no object whatever its labels."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    @property
    def everything(self) -> bool:
        return not self.requirements and not self.nothing

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether labels (None: no labels) satisfy every requirement."""
        if self.nothing:
            return False
        labels = labels or {}
        return all(requirement.matches(labels) for requirement in self.requirements)

    def selects(self, obj: Mapping[str, Any]) -> bool:
        """Whether an object's labels satisfy every requirement."""
        return self.everything or self.matches(obj["metadata"].get("labels"))

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


EVERYTHING = LabelSelector()
NOTHING = LabelSelector(nothing=True)


class _Tokens:
    """The tokens of a selector, one ahead."""

    def __init__(self, text: str) -> None:
        self._stream: Iterator[str] = (match.group(1) for match in _token.finditer(text))
        self.next = next(self._stream, "")

    def take(self) -> str:
        token, self.next = self.next, next(self._stream, "")
        return token


def _is_word(token: str) -> bool:
    return bool(token) and token not in ("=", "==", "!=", "!", "<", ">", "(", ")", ",")


def parse_labels(text: str) -> LabelSelector:
    """The label selector of a query string; an empty one selects everything.

    Raises:
        ApiError: 400, bad syntax or a bad key or value.
    """
    return _remembered_labels(text) if len(text) <= REMEMBERED_LENGTH else _labels(text)


def _labels(text: str) -> LabelSelector:
    tokens = _Tokens(text)
    requirements: list[Requirement] = []
    while tokens.next:
        requirements.append(_requirement(tokens))
        separator = tokens.take()
        if separator == ",":
            if not (_is_word(tokens.next) or tokens.next == "!"):
                raise bad_request(f"found '{tokens.next}', expected: identifier after ','")
        elif separator:
            raise bad_request(f"found '{separator}', expected: ',' or 'end of string'")
    return LabelSelector(tuple(sorted(requirements, key=lambda requirement: requirement.key)))


_remembered_labels = lru_cache(maxsize=1024)(_labels)


def _requirement(tokens: _Tokens) -> Requirement:
    first = tokens.take()
    if first == "!":
        return _checked(Requirement(_key(tokens.take()), "!"))
    key = _key(first)
    if tokens.next in ("", ","):
        return _checked(Requirement(key, "exists"))
    operator = tokens.take()
    if operator in ("=", "==", "!="):
        value = tokens.take() if _is_word(tokens.next) else ""
        if not value and tokens.next not in ("", ","):
            raise _unparsed(f"found '{tokens.next}', expected: identifier")
        return _checked(Requirement(key, "!=" if operator == "!=" else "=", frozenset({value})))
    if operator in ("in", "notin"):
        return _checked(Requirement(key, "in" if operator == "in" else "notin", _values(tokens)))
    if operator in (">", "<", "gt", "lt"):
        value = tokens.take()
        if not re.fullmatch(r"[+-]?\d+", value):
            raise _unparsed(
                f"values[0][{key}]: Invalid value: {quoted(value)}: for 'Gt', 'Lt' operators, the value must be an integer"
            )
        return _checked(Requirement(key, "gt" if operator in (">", "gt") else "lt", frozenset({value})))
    raise _unparsed(f"found '{operator}', expected: {_OPERATORS}")


def _values(tokens: _Tokens) -> frozenset[str]:
    opening = tokens.take()
    if opening != "(":
        raise _unparsed(f"found '{opening}' expected: '('")
    values: set[str] = set()
    expecting = True
    while True:
        word = tokens.take()
        if word == ")":
            if expecting:
                values.add("")
            return frozenset(values)
        if word == ",":
            if expecting:
                values.add("")
            expecting = True
        elif _is_word(word) and expecting:
            values.add(word)
            expecting = False
        else:
            raise _unparsed(f"found '{word}', expected: ',' or ')'")


def _key(token: str) -> str:
    if not _is_word(token):
        raise _unparsed(f"found '{token}', expected: identifier")
    return token


def _checked(requirement: Requirement) -> Requirement:
    for why in names.qualified_name(requirement.key):
        raise _unparsed(f"key: Invalid value: {quoted(requirement.key)}: {why}")
    if requirement.operator not in ("gt", "lt"):
        for value in requirement.values:
            for why in names.label_value(value):
                raise _unparsed(f"values[0][{requirement.key}]: Invalid value: {quoted(value)}: {why}")
    return requirement


def _unparsed(why: str) -> ApiError:
    return bad_request(f"unable to parse requirement: {why}")


_OBJECT_OPERATORS: Mapping[str, Operator] = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def of_object(selector: Mapping[str, Any] | None) -> LabelSelector:
    """The selector of a LabelSelector object; None selects nothing, an empty one everything.

    The object must be valid (`validate_object`): an operator that is not known selects nothing.
    """
    if selector is None:
        return NOTHING
    requirements = [
        Requirement(key, "=", frozenset({value})) for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for expression in selector.get("matchExpressions") or ():
        operator = _OBJECT_OPERATORS.get(expression.get("operator") or "")
        if operator is None:
            return NOTHING
        requirements.append(Requirement(expression["key"], operator, frozenset(expression.get("values") or ())))
    return LabelSelector(tuple(requirements))


def matches(selector: Mapping[str, Any] | None, labels: Mapping[str, str] | None) -> bool:
    """Whether labels satisfy a LabelSelector object, for who asks once; `of_object` for who asks often.

    None matches nothing, an empty selector everything, an operator that does not exist nothing.
    """
    if selector is None:
        return False
    labels = labels or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression.get("key", ""), expression.get("operator")
    values = expression.get("values") or ()
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    return operator == "DoesNotExist" and key not in labels


def of_map(labels: Mapping[str, str] | None) -> LabelSelector:
    """The selector of a plain map, as Services and ReplicationControllers have; None or empty selects nothing."""
    if not labels:
        return NOTHING
    return LabelSelector(tuple(Requirement(key, "=", frozenset({value})) for key, value in labels.items()))


def validate_object(selector: Mapping[str, Any] | None, path: str, problems: Problems) -> None:
    """Report what is wrong with a LabelSelector object."""
    if not selector:
        return
    for key, value in (selector.get("matchLabels") or {}).items():
        problems.invalid_all(f"{path}.matchLabels", key, names.qualified_name(key))
        problems.invalid_all(f"{path}.matchLabels", value, names.label_value(value))
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        here = f"{path}.matchExpressions[{index}]"
        key, operator, values = expression.get("key") or "", expression.get("operator"), expression.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                problems.required(f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                problems.forbidden(
                    f"{here}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                )
        else:
            problems.invalid(f"{here}.operator", operator or "", "not a valid selector operator")
        problems.invalid_all(f"{here}.key", key, names.qualified_name(key))
        for place, value in enumerate(values):
            problems.invalid_all(f"{here}.values[{place}]", value, names.label_value(value))


class FieldTerm(NamedTuple):
    """One term of a field selector."""

    field: str
    equal: bool
    value: str


class FieldSelector(NamedTuple):
    """All of the terms."""

    terms: tuple[FieldTerm, ...] = ()

    @property
    def everything(self) -> bool:
        return not self.terms

    def matches(self, fields: Mapping[str, str]) -> bool:
        """Whether field values (``Strategy.fields``) satisfy every term; a missing field is empty."""
        return all((fields.get(term.field, "") == term.value) == term.equal for term in self.terms)

    def exact(self, field: str) -> str | None:
        """The value the field must have, None when any of several would do."""
        return next((term.value for term in self.terms if term.equal and term.field == field), None)

    def check(self, selectable: Collection[str]) -> None:
        """Refuse fields the kind cannot be selected by.

        Raises:
            ApiError: 400.
        """
        for term in self.terms:
            if term.field in selectable:
                continue
            if set(selectable) <= {"metadata.name", "metadata.namespace"}:
                raise bad_request(
                    f'"{term.field}" is not a known field selector: only "metadata.name", "metadata.namespace"'
                )
            raise bad_request(f"field label not supported: {term.field}")

    def __str__(self) -> str:
        return ",".join(f"{term.field}{'=' if term.equal else '!='}{_escape(term.value)}" for term in self.terms)


ALL_FIELDS = FieldSelector()


def parse_fields(text: str) -> FieldSelector:
    r"""The field selector of a query string. Values escape ``,``, ``=`` and ``\`` with a backslash.

    Raises:
        ApiError: 400, bad syntax.
    """
    return _remembered_fields(text) if len(text) <= REMEMBERED_LENGTH else _fields(text)


def _fields(text: str) -> FieldSelector:
    terms = []
    for part in _split(text):
        if not part:
            continue
        match = re.match(r"((?:[^=!\\]|\\.|!(?!=))*?)(!=|==|=)", part)
        if match is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        value = part[match.end() :]
        terms.append(FieldTerm(match.group(1), match.group(2) != "!=", _unescape(value, text)))
    return FieldSelector(tuple(terms))


_remembered_fields = lru_cache(maxsize=1024)(_fields)


def _split(text: str) -> list[str]:
    parts, current, escaped = [], "", False
    for character in text:
        if character == "," and not escaped:
            parts.append(current)
            current = ""
            continue
        escaped = character == "\\" and not escaped
        current += character
    parts.append(current)
    return parts


def _unescape(value: str, text: str) -> str:
    out, escaped = "", False
    for character in value:
        if escaped:
            if character not in ",=\\":
                raise bad_request(f"invalid field selector: invalid escape sequence: \\{character} in '{text}'")
            out, escaped = out + character, False
        elif character == "\\":
            escaped = True
        elif character == "=":
            raise bad_request(f"invalid field selector: unhandled, unescaped '=' in '{text}'")
        else:
            out += character
    if escaped:
        raise bad_request(f"invalid field selector: invalid escape sequence at the end of '{text}'")
    return out


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")
