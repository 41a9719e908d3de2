"""Kubernetes objects as plain data: JSON-shaped dicts, their identity, and their canonical encoding.

An object is the dict that JSON decoding gives; there are no classes per kind. Objects a client call returns belong to the
caller; objects from an informer's cache are shared and must be copied (`copy`) before a change.

The canonical encoding puts ``metadata.resourceVersion`` first, at a fixed place, so that the revision can be set on encoded
bytes without decoding them::

    {"metadata":{"resourceVersion":"<revision>", ...rest of metadata }, ...rest of the object }
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec

Object: TypeAlias = dict[str, Any]
"""One API object in its JSON shape."""

_PREFIX = b'{"metadata":{"resourceVersion":"'
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])
_any_decoder = msgspec.json.Decoder()


class Resource(NamedTuple):
    """A served resource: group ("" is core), version and plural name, as they stand in a URL."""

    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """``pods`` or ``deployments.apps``, as error messages name resources."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of the collection, an object, or a subresource."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [base]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.qualified}/{self.version}"


class Kind(NamedTuple):
    """A group, version and kind, as they stand in an object."""

    group: str
    version: str
    kind: str

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @staticmethod
    def of(obj: Mapping[str, Any]) -> Kind:
        """The kind an object declares; missing fields are empty."""
        return Kind.parse(obj.get("apiVersion") or "", obj.get("kind") or "")

    @staticmethod
    def parse(api_version: str, kind: str) -> Kind:
        """From ``apps/v1`` and ``Deployment``."""
        group, _, version = api_version.rpartition("/")
        return Kind(group, version, kind)


class Key(NamedTuple):
    """An object's place among its kind: namespace ("" when cluster-scoped) and name."""

    namespace: str
    name: str

    @staticmethod
    def of(obj: Mapping[str, Any]) -> Key:
        """The key of an object."""
        metadata = obj["metadata"]
        return Key(metadata.get("namespace") or "", metadata["name"])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def encode(obj: Mapping[str, Any], revision: int) -> bytes:
    """Canonical JSON with ``metadata.resourceVersion`` set to ``revision`` and placed first."""
    metadata = dict(obj.get("metadata") or ())
    metadata.pop("resourceVersion", None)
    head = _encoder.encode(metadata)
    rest = _encoder.encode({key: value for key, value in obj.items() if key != "metadata"})
    middle = b'"' if head == b"{}" else b'",' + head[1:-1]
    tail = b"}}" if rest == b"{}" else b"}," + rest[1:]
    return b"".join((_PREFIX, str(revision).encode(), middle, tail))


def with_revision(encoded: bytes, revision: int) -> bytes:
    """The same canonical encoding at another revision, without decoding it."""
    end = encoded.index(b'"', len(_PREFIX))
    return b"".join((_PREFIX, str(revision).encode(), encoded[end:]))


def decode(encoded: bytes) -> Object:
    """The object of an encoding (canonical or any other JSON object).

    Raises:
        msgspec.DecodeError: not a JSON object.
    """
    return _decoder.decode(encoded)


def copy(obj: Any) -> Any:
    """A deep copy of JSON-shaped data: through its encoding, which takes a quarter of the time of a walk in Python."""
    if not isinstance(obj, (dict, list)):
        return obj
    try:
        return _any_decoder.decode(_encoder.encode(obj))
    except (TypeError, ValueError):
        return _walked(obj)  # a lone surrogate, which JSON text cannot hold: the store refuses it


def _walked(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {key: _walked(value) for key, value in obj.items()}
    return [_walked(value) for value in obj] if isinstance(obj, list) else obj


def alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal as JSON: to Python 1, 1.0 and true are equal, also deep inside."""
    if a is b:
        return True
    if type(a) is not type(b) or a != b:
        return False
    if not isinstance(a, (dict, list)):
        return True
    try:
        if _encoder.encode(a) == _encoder.encode(b):
            return True
    except (TypeError, ValueError):
        pass  # what JSON text cannot hold
    if isinstance(a, dict):
        return all(alike(value, b[key]) for key, value in a.items())
    return all(map(alike, a, b))


def dig(obj: Any, *path: str | int, default: Any = None) -> Any:
    """The value at a path of keys and indexes, or ``default`` where a step is missing or null."""
    for step in path:
        try:
            obj = obj[step]
        except (KeyError, IndexError, TypeError):
            return default
        if obj is None:
            return default
    return obj


def controller_of(obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The owner reference marked ``controller``, or None."""
    references: Iterable[Mapping[str, Any]] = obj["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def owner_reference(owner: Mapping[str, Any]) -> Object:
    """A controller owner reference to ``owner``, with ``blockOwnerDeletion`` as upstream controllers set it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
