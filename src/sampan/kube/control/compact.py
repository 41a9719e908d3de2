"""Decoded objects, made small: equal strings and equal subtrees are kept once.

Objects of one kind repeat each other: every pod of a Deployment has the same containers, tolerations and image, and says
"True" and "TCP" many times. `Compactor.compact` rebuilds an object bottom-up from what it has seen before, so a cache of
similar objects costs a fraction (a typical pod 3 KB instead of 11). That takes several times as long as decoding did, so what
did not change since the object's last state is taken from there without looking into it.

What is shared must not be changed, which holds for everything in an informer's cache anyway.
"""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object, alike

MEMORY = 1 << 15
"""Strings and subtrees remembered; then all are forgotten and sharing starts anew."""
LONGEST = 256
"""Characters of the longest string worth remembering."""


class Compactor:
    """What has been seen so far; one for the caches of a process."""

    def __init__(self) -> None:
        self._strings: dict[str, str] = {}
        self._trees: dict[tuple[Any, ...], Any] = {}

    def clear(self) -> None:
        """Forget what was seen: sharing starts anew, and nothing is held any more for its sake."""
        self._strings.clear()
        self._trees.clear()

    def compact(self, obj: Object, old: Object | None = None) -> Object:
        """An equal object without ``metadata.managedFields``; the argument stays as it is.

        ``old``: a compacted object that this one is like, usually its state before.
        """
        if len(self._strings) > MEMORY:
            self._strings.clear()
        if len(self._trees) > MEMORY:
            self._trees.clear()
        before: Object = old or {}
        small: Object = {}
        for key, value in obj.items():
            known = before.get(key)
            if key == "metadata":
                known = known or {}
                # Names, uids and revisions are an object's own; what is below (labels, owners) is shared.
                small[key] = {
                    name: each if type(each) is str else self._like(each, known.get(name))
                    for name, each in value.items()
                    if name != "managedFields"
                }
            elif type(value) is dict and not (known and alike(known, value)):
                known = known if type(known) is dict else {}
                small[key] = {name: self._like(each, known.get(name)) for name, each in value.items()}
            else:
                small[key] = self._like(value, known)
        return small

    def _like(self, value: Any, old: Any) -> Any:
        if old is None:
            return self._shared(value)
        if alike(old, value):
            return old
        kind = type(value)
        if kind is not type(old) or (kind is not dict and kind is not list):
            return self._shared(value)
        if kind is dict:
            tree: Any = {key: self._like(each, old.get(key)) for key, each in value.items()}
            identity: tuple[Any, ...] = (dict, *tree, *map(_identity, tree.values()))
        else:
            if len(old) < len(value):
                old = [*old, *(None for _ in range(len(value) - len(old)))]
            tree = [self._like(each, old[at]) for at, each in enumerate(value)]
            identity = (list, *map(_identity, tree))
        return self._trees.setdefault(identity, tree)

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
