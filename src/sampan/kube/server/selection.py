"""Which objects of a collection a list or watch is about: its selectors, with an exact name taken out of them.

``metadata.name=x`` is what waiting clients ask most, so it is answered from the key alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from sampan.kube.types.resource import ResourceType
from sampan.kube.types.selectors import FieldSelector, LabelSelector, parse_fields, parse_labels


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a collection a request is about."""

    labels: LabelSelector | None = None
    fields: FieldSelector | None = None
    """What must hold beyond ``name``."""
    name: str = ""
    """The only name that can match; empty: any."""

    @property
    def everything(self) -> bool:
        """Nothing has to be looked at beyond the key."""
        return self.labels is None and self.fields is None


EVERYTHING = Selection()


class _Labels(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct):
    metadata: _Labels


_labelled = msgspec.json.Decoder(_Labelled)


def labels_of(value: bytes) -> Mapping[str, str]:
    """The labels of an encoded object, without decoding the rest."""
    return _labelled.decode(value).metadata.labels or {}


def select(type: ResourceType, label_selector: str, field_selector: str) -> Selection:
    """The selection of a request.

    Raises:
        ApiError: 400, a selector cannot be parsed or names a field that the kind cannot be selected by.
    """
    if not label_selector and not field_selector:
        return EVERYTHING
    labels: LabelSelector | None = parse_labels(label_selector)
    if labels is not None and labels.everything:
        labels = None
    if not field_selector:
        return Selection(labels)
    fields = parse_fields(field_selector)
    fields.check(type.strategy.selectable)
    name = fields.exact("metadata.name") or ""
    rest = tuple(
        term for term in fields.terms if not (term.field == "metadata.name" and term.equal and term.value == name)
    )
    return Selection(labels, FieldSelector(rest) if rest else None, name)
