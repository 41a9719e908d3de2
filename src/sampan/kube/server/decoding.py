"""Request bodies: JSON, YAML and Kubernetes protobuf into JSON-shaped data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from sampan.kube.objects import Object
from sampan.kube.status import bad_request, unsupported_media_type
from sampan.kube.types import protobuf

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
_YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml"})
_JSON_TYPES = frozenset({JSON, "", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded"})

EXPANDED_LIMIT = 500_000
"""Values that a YAML document may hold with its aliases written out."""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_decoder = msgspec.json.Decoder()


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def decode_object(body: bytes, content_type: str) -> Object:
    """The object in a body.

    Raises:
        ApiError: 400, malformed or not an object; 415, a media type that is not served.
    """
    media = media_type(content_type)
    if media == PROTOBUF:
        try:
            return protobuf.decode(body)
        except ValueError as error:
            raise bad_request(f"the object provided is unrecognized: {error}") from None
    if media in _YAML_TYPES:
        value = decode_yaml(body)
    elif media in _JSON_TYPES:
        value = decode_json(body)
    else:
        accepted = ", ".join((JSON, YAML, PROTOBUF))
        raise unsupported_media_type(
            f"the body of the request was in an unknown format - accepted media types include: {accepted}"
        )
    if not isinstance(value, dict):
        raise bad_request("the object provided is unrecognized: expected a JSON object")
    return value


def decode_json(body: bytes) -> Any:
    """Any JSON value.

    Raises:
        ApiError: 400, malformed.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if not body:
            raise bad_request("the body of the request is empty: unexpected end of JSON input") from None
        raise bad_request(
            f"the object provided is unrecognized: couldn't get version/kind; json parse error: {error}"
        ) from None


def decode_yaml(body: bytes) -> Any:
    """Any JSON-shaped value in YAML (or JSON).

    Raises:
        ApiError: 400, malformed, or something that JSON cannot say.
    """
    stripped = body.lstrip()
    if stripped[:1] == b"{":
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass  # flow-style YAML looks like JSON at its start
    import yaml

    try:
        value = yaml.load(body, Loader=_loader())  # noqa: S506 (a safe loader)
        if b"*" in body and _expanded(value, {}) > EXPANDED_LIMIT:
            raise bad_request("error converting YAML to JSON: yaml: document contains excessive aliasing")
        # Encoding refuses what JSON cannot say; decoding again gives every alias a copy of its own.
        value = _decoder.decode(msgspec.json.encode(value))
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"error converting YAML to JSON: {error}") from None
    except (TypeError, ValueError) as error:
        raise bad_request(f"error converting YAML to JSON: {error}") from None
    return value


def _expanded(value: Any, known: dict[int, int]) -> int:
    """How many values a document has once its aliases are written out; found without writing them out."""
    if not isinstance(value, dict | list):
        return 1
    size = known.get(id(value))
    if size is None:
        known[id(value)] = EXPANDED_LIMIT + 1  # an alias to what contains it never ends
        items = value.values() if isinstance(value, dict) else value
        size = known[id(value)] = 1 + sum(_expanded(item, known) for item in items)
    return size


_loaders: list[Any] = []


def _loader() -> Any:
    """A safe YAML loader that leaves times as the strings they are in JSON."""
    if not _loaders:
        import yaml

        base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        loader: Any = type("JsonLoader", (base,), {})
        loader.yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }
        _loaders.append(loader)
    return _loaders[0]


def duplicates(body: bytes, content_type: str) -> list[str]:
    """What upstream says of keys that a body gives more than once: paths for JSON, lines for YAML."""
    media = media_type(content_type)
    if media in _JSON_TYPES:
        return [f'duplicate field "{path}"' for path in _json_duplicates(body)]
    return yaml_duplicates(body) if media in _YAML_TYPES else []


def yaml_duplicates(body: bytes) -> list[str]:
    """One text for each key that a YAML body (which can be decoded) gives again, with its line."""
    if body.lstrip()[:1] == b"{":
        try:
            if not _json_duplicates(body):
                return []  # JSON, as kubectl applies it: no need for the slow way
        except ValueError:
            pass  # flow-style YAML
    import yaml

    found: list[str] = []
    seen: set[int] = set()

    def look(node: Any) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                look(item)
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                look(value)
                name = key.value if isinstance(key, yaml.ScalarNode) and key.value != "<<" else None
                if name is not None and name in keys:
                    shown = json.dumps(name) if key.tag.endswith(":str") else name
                    found.append(f"line {value.start_mark.line + 1}: key {shown} already set in map")
                elif name is not None:
                    keys.add(name)

    look(yaml.compose(body, Loader=_loader()))
    return found


def _json_duplicates(body: bytes) -> list[str]:
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> Any:
        seen: dict[str, Any] = {}
        repeated: list[str] = []
        for key, value in items:
            if key in seen:
                repeated.append(key)
            seen[key] = value
        return _Node(seen, repeated) if repeated else seen

    _collect(json.loads(body, object_pairs_hook=pairs), "", found)
    return found


class _Node(dict[str, Any]):
    def __init__(self, items: Mapping[str, Any], repeated: list[str]) -> None:
        super().__init__(items)
        self.repeated = repeated


def _collect(value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, dict):
        if isinstance(value, _Node):
            found.extend(f"{path}.{key}".lstrip(".") for key in value.repeated)
        for key, item in value.items():
            _collect(item, f"{path}.{key}", found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _collect(item, f"{path}[{index}]", found)
