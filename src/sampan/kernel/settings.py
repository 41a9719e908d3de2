"""Settings: one typed, documented struct a part, filled from file, environment and flags.

The sources, each overriding the one before::

    sampan.yaml in the data directory (or --config FILE)     messaging: {grpc_port: 8081}
    environment                                              SAMPAN_MESSAGING_GRPC_PORT=8081
    flags                                                    --set messaging.grpc_port=8081

A part declares a `PartSettings` struct; each field's ``msgspec.Meta(description=...)`` is its documentation, from which
`document` writes ``docs/settings.md``. Whatever is not declared is an error that names the nearest known word, so that a
misspelt setting is never silently ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import msgspec

from sampan.kernel.errors import SettingsError

Section: TypeAlias = dict[str, Any]
"""One part's raw settings, as the sources gave them."""
Types: TypeAlias = Mapping[str, type[msgspec.Struct]]
"""The settings struct of each section."""

PREFIX = "SAMPAN_"

S = TypeVar("S", bound=msgspec.Struct)


def load(
    types: Types,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    others: Collection[str] = (),
) -> dict[str, Section]:
    """The raw settings of every section, merged from all sources; decode each with `decode`.

    ``file`` may be absent from the disk. ``flags`` are ``part.field=value``. ``others`` are sections that exist but are not
    wanted now; what is set in them is passed over.

    Raises:
        SettingsError: a source cannot be read, or names a section or field that does not exist.
    """
    merged: dict[str, Section] = {name: {} for name in types}
    if file is not None and file.exists():
        for section, fields in _read(file).items():
            if section in others:
                continue
            _merge(merged, types, section, fields, str(file))
    for name, text in sorted((environment or {}).items()):
        found = _from_environment(types, name)
        if found is not None:
            _assign(merged[found[0]], found[1], _value(types[found[0]], found[1], text))
    for flag in flags:
        path, equals, text = flag.partition("=")
        section, *fields = path.strip().split(".")
        if not equals or not fields:
            raise SettingsError(f"--set {flag}: write it as part.field=value")
        if section in others:
            continue
        _merge(merged, types, section, _nested(fields, None), "--set")
        _assign(merged[section], fields, _value(types[section], fields, text))
    return merged


def decode(section: str, raw: Section, struct: type[S]) -> S:
    """One section as its struct.

    Raises:
        SettingsError: a value has the wrong type or is out of range; the message names the field.
    """
    try:
        return msgspec.convert(raw, struct, strict=False)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise SettingsError(f"setting {section}{place.rstrip('`')}: {reason}") from None


def document(types: Types) -> str:
    """Every section's fields with type, default and meaning, as Markdown."""
    lines: list[str] = []
    for section, struct in types.items():
        rows = list(_rows(struct))
        if not rows:
            continue
        lines += [f"## {section}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{section}.{name}` | {kind} | {default} | {text} |" for name, kind, default, text in rows]
        lines.append("")
    return "\n".join(lines)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for a misspelt word, or ``""``."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


# -- sources


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must map part names to their settings")
    return content


def _merge(merged: dict[str, Section], types: Types, section: str, fields: Any, source: str) -> None:
    if section not in types:
        raise SettingsError(f"{source}: there is no part named {section}{nearest(str(section), types)}")
    if fields is None:
        return
    if not isinstance(fields, dict):
        raise SettingsError(f"{source}: {section} must map settings to values")
    _check(types[section], section, fields, source)
    _overlay(merged[section], fields)


def _check(struct: type[msgspec.Struct], path: str, fields: Mapping[str, Any], source: str) -> None:
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, value in fields.items():
        if name not in known:
            raise SettingsError(f"{source}: there is no setting {path}.{name}{nearest(str(name), known)}")
        inner = _struct(known[name].type)
        if inner is not None and isinstance(value, dict):
            _check(inner, f"{path}.{name}", value, source)


def _from_environment(types: Types, name: str) -> tuple[str, list[str]] | None:
    """The section and field path that an environment variable names; None for a variable that is not a setting."""
    for section in sorted(types, key=len, reverse=True):
        start = f"{PREFIX}{_shout(section)}_"
        if name.startswith(start):
            fields = _match(types[section], name[len(start) :])
            if fields is None:
                known = [start + _shout(field.encode_name) for field in msgspec.structs.fields(types[section])]
                raise SettingsError(f"environment: {name} names no setting of {section}{nearest(name, known)}")
            return section, fields
    return None


def _match(struct: type[msgspec.Struct], rest: str) -> list[str] | None:
    for field in msgspec.structs.fields(struct):
        shout = _shout(field.encode_name)
        if rest == shout:
            return [field.encode_name]
        inner = _struct(field.type)
        if inner is not None and rest.startswith(f"{shout}_"):
            deeper = _match(inner, rest[len(shout) + 1 :])
            if deeper is not None:
                return [field.encode_name, *deeper]
    return None


def _shout(name: str) -> str:
    return name.upper().replace("-", "_").replace(".", "_")


def _value(struct: type[msgspec.Struct], fields: Sequence[str], text: str) -> Any:
    """A textual value: ``[...]`` and ``{...}`` are JSON; a plain text for a list field is split at commas."""
    if text[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise SettingsError(f"setting {'.'.join(fields)}: {text} is not JSON ({error})") from None
    kind: Any = struct
    for name in fields:
        inner = _struct(kind)
        kind = next((f.type for f in msgspec.structs.fields(inner) if f.encode_name == name), None) if inner else None
    if get_origin(_plain(kind)) in (list, tuple, set, frozenset):
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _nested(fields: Sequence[str], value: Any) -> Section:
    for name in reversed(fields):
        value = {name: value}
    section: Section = value
    return section


def _assign(section: Section, fields: Sequence[str], value: Any) -> None:
    for name in fields[:-1]:
        inner = section.get(name)
        if not isinstance(inner, dict):
            inner = section[name] = {}
        section = inner
    section[fields[-1]] = value


def _overlay(under: Section, over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        below = under.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            _overlay(below, value)
        else:
            under[name] = value


# -- types


def _plain(kind: Any) -> Any:
    """A field's type without its annotations and its None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    options = [option for option in get_args(kind) if option is not type(None)]
    if type(None) in get_args(kind) and len(options) == 1:
        return _plain(options[0])
    return kind


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    kind = _plain(kind)
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _rows(struct: type[msgspec.Struct], prefix: str = "") -> Iterable[tuple[str, str, str, str]]:
    for field in msgspec.structs.fields(struct):
        inner = _struct(field.type)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{field.encode_name}.")
            continue
        yield prefix + field.encode_name, _type_name(field.type), _default(field), _description(field.type)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if isinstance(kind, type) and not get_args(kind):
        return "none" if kind is type(None) else kind.__name__
    origin = get_origin(kind)
    if origin is not None and getattr(origin, "__name__", "") == "Literal":
        return " or ".join(f"`{option}`" for option in get_args(kind))
    if isinstance(origin, type) and origin.__module__ == "builtins":
        return f"{origin.__name__} of {', '.join(_type_name(item) for item in get_args(kind) if item is not ...)}"
    return " or ".join(_type_name(option) for option in get_args(kind)) or str(kind)


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "required"
    return "" if value in (None, "", [], {}, ()) else f"`{msgspec.json.encode(value, enc_hook=str).decode()}`"


def _description(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        for note in get_args(kind)[1:]:
            if isinstance(note, msgspec.Meta) and note.description:
                return " ".join(note.description.split())
        return _description(get_args(kind)[0])
    for option in get_args(kind):
        text = _description(option)
        if text:
            return text
    return ""
