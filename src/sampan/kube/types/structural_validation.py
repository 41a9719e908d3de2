"""Validating custom resources against the OpenAPI part of their structural schema.

`compile_schema` turns a schema into one closure that walks a value once and reports field errors with the texts of the real
server. An old value, where there is one, makes the walk tolerant as upstream's ratcheting is: a part that did not change is
not judged again. Items of lists that are one piece have no old value and are judged again, unless it is known that the
old object passed these very checks. Rules in CEL are not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sampan.kube.objects import alike
from sampan.kube.status import FieldError
from sampan.kube.types.formats import FORMATS
from sampan.kube.types.problems import Problems, quoted
from sampan.kube.types.resource import Schema
from sampan.kube.types.structural import beside

Validator = Callable[[Any, str, Problems, Any, bool], None]
"""Checks ``value`` at ``path``, reports to ``problems``; then comes the old value or `MISSING`, and whether all of it is known
to pass."""


class _Missing:
    """No old value."""


MISSING = _Missing()
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
}


def validate(value: Any, schema: Schema, old: Any = MISSING, path: str = "") -> list[FieldError]:
    """Field errors of a value; for repeated use keep the closure of `compile_schema`."""
    problems = Problems()
    compile_schema(schema)(value, path, problems, old, False)
    return problems


def go_value(value: Any) -> str:
    """A value in Go's notation, as messages about custom resources show it."""
    if isinstance(value, dict):
        return (
            "map[string]interface {}{" + ", ".join(f"{quoted(k)}:{go_value(v)}" for k, v in sorted(value.items())) + "}"
        )
    if isinstance(value, list):
        return "[]interface {}{" + ", ".join(map(go_value, value)) + "}"
    if value is None:
        return "interface {}(nil)"
    return quoted(value)


def _shown(value: Any) -> str:
    return '"null"' if value is None else go_value(value)


def _report(problems: Problems, path: str, value: Any, why: str, reason: str = "FieldValueInvalid") -> None:
    message = f"Invalid value: {_shown(value)}: {path}{' ' if path else ''}{why}"
    problems.append(FieldError(path or "<nil>", reason, message))


def compile_schema(schema: Schema) -> Validator:
    """One closure for a schema node and all below it."""
    checks: list[Validator] = [
        make(schema)
        for make, keys in (
            (_enum, ("enum",)),
            (_text, ("maxLength", "minLength", "pattern", "format")),
            (_number, ("minimum", "maximum", "multipleOf")),
            (_list, ("items", "minItems", "maxItems", "x-kubernetes-list-type", "uniqueItems")),
            (_map, ("properties", "required", "additionalProperties", "minProperties", "maxProperties")),
            (_alternatives, ("allOf", "anyOf", "oneOf", "not")),
        )
        if any(key in schema for key in keys)
    ]
    of_type = _type(schema)

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if old is not MISSING and alike(old, value):
            return
        if value is None and schema.get("nullable"):
            return
        if of_type is not None and not of_type(value):
            wanted = "integer,string" if schema.get("x-kubernetes-int-or-string") else schema["type"]
            shown = "null" if value is None else _json_type(value)
            detail = quoted(shown)
            message = f"Invalid value: {detail}: {path}{' ' if path else ''}in body must be of type {wanted}: {detail}"
            problems.append(FieldError(path or "<nil>", "FieldValueTypeInvalid", message))
            return
        for each in checks:
            each(value, path, problems, old, sure)

    return check


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _is_integer(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _type(schema: Schema) -> Callable[[Any], bool] | None:
    """Whether a value is of the schema's type; None: any type."""
    if schema.get("x-kubernetes-int-or-string"):
        return lambda value: type(value) is str or _is_integer(value)
    kind = schema.get("type")
    if kind == "integer":
        return _is_integer
    if kind == "number":
        return lambda value: type(value) is int or type(value) is float
    expected = _JSON_TYPES.get(kind or "")
    if expected is None:
        return None
    return lambda value: type(value) in expected


def _enum(schema: Schema) -> Validator:
    allowed: Sequence[Any] = schema["enum"]
    listed = ", ".join(quoted(item) for item in allowed)

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if not any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed):
            message = f"Unsupported value: {_shown(value)}: supported values: {listed}"
            problems.append(FieldError(path or "<nil>", "FieldValueNotSupported", message))

    return check


def _text(schema: Schema) -> Validator:
    longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
    form = schema.get("format")
    fits = FORMATS.get(form or "")
    search: Callable[[str], Any] | None = None
    if pattern is not None:
        search = _search(pattern)

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if type(value) is not str:
            return
        if longest is not None and len(value) > longest:
            problems.append(
                FieldError(path or "<nil>", "FieldValueTooLong", f"Too long: may not be more than {longest} bytes")
            )
        if shortest is not None and len(value) < shortest:
            _report(problems, path, value, f"in body should be at least {shortest} chars long")
        if search is not None and not search(value):
            _report(problems, path, value, f"in body should match '{pattern}'")
        if fits is not None and not fits(value):
            _report(problems, path, value, f"in body must be of type {form}: {quoted(value)}")

    return check


def _search(pattern: str) -> Callable[[str], Any] | None:
    """Looks for a pattern; None for one that does not compile, which the check of its definition reports."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return cast(Callable[[str], Any], re2.compile(pattern, options).search)
    except re2.error:
        return None


def _number(schema: Schema) -> Validator:
    least, most, factor = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    above, below = bool(schema.get("exclusiveMinimum")), bool(schema.get("exclusiveMaximum"))

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if type(value) is not int and type(value) is not float:
            return
        if least is not None and (value <= least if above else value < least):
            _report(
                problems,
                path,
                value,
                f"in body should be greater than {'' if above else 'or equal to '}{_plain(least)}",
            )
        if most is not None and (value >= most if below else value > most):
            _report(
                problems, path, value, f"in body should be less than {'' if below else 'or equal to '}{_plain(most)}"
            )
        if factor and abs(value / factor - round(value / factor)) > 1e-9:
            _report(problems, path, value, f"in body should be a multiple of {_plain(factor)}")

    return check


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _list(schema: Schema) -> Validator:
    item = compile_schema(schema["items"]) if isinstance(schema.get("items"), Mapping) else None
    fewest, most = schema.get("minItems"), schema.get("maxItems")
    kind = schema.get("x-kubernetes-list-type")
    keys: Sequence[str] = schema.get("x-kubernetes-list-map-keys") or ()
    defaults = {
        key: field["default"]
        for key, field in ((schema.get("items") or {}).get("properties") or {}).items()
        if key in keys and "default" in field
    }

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if type(value) is not list:
            return
        if most is not None and len(value) > most:
            problems.too_many(path, len(value), most)
        if fewest is not None and len(value) < fewest:
            _report(problems, path, value, f"in body should have at least {fewest} items")
        if item is not None:
            if kind == "map" and type(old) is list:
                by_keys = _by_keys(old, keys, defaults)
                before: Sequence[Any] = [by_keys.get(_key(entry, keys, defaults), MISSING) for entry in value]
            else:
                before = beside(value, old if sure else None, MISSING)
            for index, entry in enumerate(value):
                if before[index] is MISSING or not alike(entry, before[index]):
                    item(entry, f"{path}[{index}]", problems, before[index], sure)
        if kind == "set" or schema.get("uniqueItems"):
            _unique(value, path, problems, lambda entry: entry, go_value)
        elif kind == "map":
            _unique(
                [entry for entry in value if isinstance(entry, dict)],
                path,
                problems,
                lambda entry: {key: entry.get(key, defaults.get(key)) for key in keys},
                go_value,
            )

    return check


def _key(entry: Any, keys: Sequence[str], defaults: Mapping[str, Any]) -> str:
    """The identity of a map-list item as one text."""
    if not isinstance(entry, dict):
        return ""
    return quoted([entry.get(key, defaults.get(key)) for key in keys])


def _by_keys(items: Sequence[Any], keys: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {_key(item, keys, defaults): item for item in items}


def _unique(
    items: Sequence[Any], path: str, problems: Problems, identity: Callable[[Any], Any], show: Callable[[Any], str]
) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(items):
        key = identity(entry)
        text = quoted(key)
        if text in seen:
            message = f"Duplicate value: {show(key)}"
            problems.append(FieldError(f"{path}[{index}]", "FieldValueDuplicate", message))
        seen.add(text)


def _map(schema: Schema) -> Validator:
    properties = {name: compile_schema(field) for name, field in (schema.get("properties") or {}).items()}
    required: Sequence[str] = schema.get("required") or ()
    given = schema.get("additionalProperties")
    others = compile_schema(given) if isinstance(given, Mapping) else None
    fewest, most = schema.get("minProperties"), schema.get("maxProperties")

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if type(value) is not dict:
            return
        prefix = f"{path}." if path else ""
        for name in required:
            if name not in value:
                problems.required(prefix + name)
        if most is not None and len(value) > most:
            problems.too_many(path, len(value), most)
        if fewest is not None and len(value) < fewest:
            _report(problems, path, value, f"in body should have at least {fewest} properties")
        before = old if type(old) is dict else {}
        for name, entry in value.items():
            field = properties.get(name, others)
            if field is not None:
                field(entry, prefix + name, problems, before.get(name, MISSING), sure)

    return check


def _alternatives(schema: Schema) -> Validator:
    all_of = [compile_schema(part) for part in schema.get("allOf") or ()]
    any_of = [compile_schema(part) for part in schema.get("anyOf") or ()]
    one_of = [compile_schema(part) for part in schema.get("oneOf") or ()]
    never = compile_schema(schema["not"]) if schema.get("not") is not None else None

    def fits(part: Validator, value: Any, path: str) -> bool:
        found = Problems()
        part(value, path, found, MISSING, False)
        return not found

    def check(value: Any, path: str, problems: Problems, old: Any, sure: bool) -> None:
        if any_of and not any(fits(part, value, path) for part in any_of):
            _report(problems, path, value, "in body must validate at least one schema (anyOf)")
            any_of[0](value, path, problems, MISSING, False)
        if one_of:
            count = sum(fits(part, value, path) for part in one_of)
            if count != 1:
                found = "none valid" if not count else f"{count} valid alternatives"
                _report(problems, path, value, f"in body must validate one and only one schema (oneOf). Found {found}")
        if all_of:
            before = len(problems)
            for part in all_of:
                part(value, path, problems, MISSING, False)
            if len(problems) > before:
                _report(problems, path, value, "in body must validate all the schemas (allOf)")
        if never is not None and fits(never, value, path):
            _report(problems, path, value, "in body must not validate the schema (not)")

    return check
