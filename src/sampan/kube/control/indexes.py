"""Look-ups by what an object says, instead of going over a whole namespace for each event.

A `Lookup` is an index of an informer with its name; asking it adds the index where it is not there yet. Values carry the
namespace, for an index is one for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sampan.kube.control.interface import Index, Informer
from sampan.kube.objects import Object
from sampan.kube.resources import SERVICE_NAME


@dataclass(frozen=True)
class Lookup:
    """An index under its name; informers know indexes by name alone."""

    name: str
    index: Index

    def __call__(self, informer: Informer, value: str) -> list[Object]:
        """The cached objects with this value."""
        informer.add_index(self.name, self.index)
        return informer.indexed(self.name, value)


def service_of(one: Object) -> Iterable[str]:
    """``namespace/name`` of an EndpointSlice's Service."""
    metadata = one["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_NAME)
    return (f"{metadata['namespace']}/{name}",) if name else ()


SLICES_OF_SERVICE = Lookup("service", service_of)
"""EndpointSlices by the ``namespace/name`` of their Service."""


@dataclass(frozen=True)
class BySelector:
    """Objects that select others by labels, found by the labels of what they may select.

    Each stands under one of the labels it wants, or, wanting none in particular, under its namespace; so few have to be
    compared with what a pod carries.
    """

    selector: Callable[[Object], Mapping[str, Any] | None]
    """An object's LabelSelector."""

    def _wanted(self, obj: Object) -> Iterable[str]:
        selector = self.selector(obj)
        if selector is None:
            return ()
        namespace = obj["metadata"]["namespace"]
        wanted: Mapping[str, Any] = selector.get("matchLabels") or {}
        # The longest value is usually the rarest: a hash, a uid, a generated name. Which one it is must not rest on the order, for
        # that of an equal object may be another one.
        label = max(wanted, key=lambda name: (len(str(wanted[name])), name), default=None)
        return (f"{namespace}/" if label is None else f"{namespace}/{label}={wanted[label]}",)

    def candidates(self, informer: Informer, namespace: str, labels: Mapping[str, str]) -> Iterator[Object]:
        """Objects of a namespace that may select these labels; all that do are among them."""
        lookup = Lookup("selector", self._wanted)
        yield from lookup(informer, f"{namespace}/")
        for key, value in labels.items():
            yield from lookup(informer, f"{namespace}/{key}={value}")
