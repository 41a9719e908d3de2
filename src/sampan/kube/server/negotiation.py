"""Which representation of an object or list a client asked for in its Accept header.

Besides the plain object there are the forms of meta.k8s.io: a Table (for kubectl's columns) and PartialObjectMetadata
(metadata only). Everything can be had as JSON or YAML; the protobuf flavours that current clients list first fall through to
the JSON clause behind them, because no client insists on protobuf answers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from sampan.kube.status import not_acceptable

Shape = Literal["", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"]

OFFERED = ("application/json", "application/yaml")
_JSON = frozenset({"application/json", "application/*", "*/*"})
_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
_SHAPES = frozenset({"Table", "PartialObjectMetadata", "PartialObjectMetadataList"})


class Format(NamedTuple):
    """One representation."""

    yaml: bool = False
    shape: Shape = ""
    version: str = "v1"
    """Version of meta.k8s.io the shape is asked in."""

    @property
    def content_type(self) -> str:
        return "application/yaml" if self.yaml else "application/json"

    @property
    def plain(self) -> bool:
        """Stored bytes can be sent as they are."""
        return not self.yaml and not self.shape


PLAIN = Format()


@lru_cache(maxsize=512)
def clauses(accept: str) -> tuple[tuple[str, dict[str, str]], ...]:
    """The media types of an Accept header with their parameters, best first (by ``q``, then as written)."""
    found: list[tuple[float, int, str, dict[str, str]]] = []
    for index, clause in enumerate(accept.split(",")):
        media, *pieces = (piece.strip() for piece in clause.split(";"))
        if not media:
            continue
        parameters = dict(piece.split("=", 1) for piece in pieces if "=" in piece)
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 1.0
        if quality > 0:
            found.append((-quality, index, media.lower(), parameters))
    found.sort(key=lambda item: item[:2])
    return tuple((media, parameters) for _, _, media, parameters in found)


@lru_cache(maxsize=512)
def negotiate(accept: str) -> Format:
    """The first acceptable representation.

    Raises:
        ApiError: 406, nothing that is asked for can be served.
    """
    if not accept:
        return PLAIN
    for media, parameters in clauses(accept):
        yaml = media in _YAML
        if not yaml and media not in _JSON:
            continue
        shape = parameters.get("as", "")
        if not shape:
            return Format(yaml)
        version = parameters.get("v", "v1")
        if shape in _SHAPES and parameters.get("g") == "meta.k8s.io" and version in ("v1", "v1beta1"):
            return Format(yaml, shape, version)  # type: ignore[arg-type]
    raise not_acceptable(OFFERED)
