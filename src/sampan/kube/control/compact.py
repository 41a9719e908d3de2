"""Decoded objects, made small: equal strings and equal subtrees are kept once.

Objects of one kind repeat each other: every pod of a Deployment has the same containers, tolerations and image, and says
"True" and "TCP" many times. `Compactor.compact` rebuilds an object bottom-up from what it has seen before, so a cache of
similar objects costs a fraction (a typical pod 3 KB instead of 11). It takes about as long as decoding did.

What is shared must not be changed, which holds for everything in an informer's cache anyway.
"""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object

MEMORY = 1 << 15
"""Strings and subtrees remembered; then all are forgotten and sharing starts anew."""
LONGEST = 256
"""Characters of the longest string worth remembering."""


class Compactor:
    """What has been seen so far; one for the caches of a process."""

    def __init__(self) -> None:
        self._strings: dict[str, str] = {}
        self._trees: dict[tuple[Any, ...], Any] = {}

    def compact(self, obj: Object) -> Object:
        """An equal object without ``metadata.managedFields``; the argument stays as it is."""
        if len(self._strings) > MEMORY:
            self._strings.clear()
        if len(self._trees) > MEMORY:
            self._trees.clear()
        small: Object = {}
        for key, value in obj.items():
            if key == "metadata":
                value = {name: each for name, each in value.items() if name != "managedFields"}
                # Names, uids and revisions are an object's own; what is below (labels, owners) is shared.
                small[key] = {name: each if type(each) is str else self._shared(each) for name, each in value.items()}
            elif type(value) is dict:
                small[key] = {name: self._shared(each) for name, each in value.items()}
            else:
                small[key] = self._shared(value)
        return small

    def _shared(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return self._strings.setdefault(value, value) if len(value) <= LONGEST else value
        if kind is dict:
            tree: Any = {key: self._shared(each) for key, each in value.items()}
            identity: tuple[Any, ...] = (dict, *tree, *map(_identity, tree.values()))
        elif kind is list:
            tree = [self._shared(each) for each in value]
            identity = (list, *map(_identity, tree))
        else:
            return value
        # Subtrees are told apart by the identity of their parts, which lasts as long as the table holds them.
        return self._trees.setdefault(identity, tree)


def _identity(value: Any) -> Any:
    # 1, 1.0 and True are equal to Python but not to JSON.
    return (type(value), value) if isinstance(value, (int, float)) else id(value)
