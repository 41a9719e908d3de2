"""What an informer holds: each object decoded while somebody uses it, encoded otherwise.

Decoded, an object takes several times the memory of its encoding, and beside the store the encoding is in memory anyway:
holding on to that costs a pointer. Most objects of a platform are not looked at for hours (all of a sleeping Service, say),
while a few are looked at all the time. So `Held` remembers what was used since `unused` was last asked; what was not is
frozen (`freeze`) by the informers' sweep (`informer.SharedInformers`), and the next to ask for it has it decoded again and kept.

A key's encoding is that of the very state the listeners were told of, never a newer one: readers see no change before its
time, and the state before a change can always be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sampan.kube.objects import Key, Object, decode

Encoding = Callable[[Key, Object], bytes]
"""Gives what decodes to a held object, but for its managed fields."""


def thawed(encoded: bytes) -> Object:
    """The object of an encoding as informers hold it, without ``metadata.managedFields``."""
    obj = decode(encoded)
    obj["metadata"].pop("managedFields", None)
    return obj


class Held:
    """Objects by key and by namespace, in the order in which they came."""

    def __init__(self) -> None:
        self._kept: dict[Key, Object | bytes] = {}
        self._by_namespace: dict[str, dict[Key, None]] = {}
        self._warm: set[Key] = set()
        """The keys of what is decoded; kept only once `freezable`."""
        self._used: set[Key] = set()
        """Keys that were read or written since the last sweep."""
        self._scanned: set[str | None] = set()
        """Namespaces (None: all) that were read as a whole since the last sweep."""
        self._thawed: set[Key] = set()
        """Keys decoded again since the last sweep."""
        self._again: set[Key] = set()
        """The same of the time before."""
        self._encoding: Encoding | None = None
        self.thaws = 0
        """Objects that had to be decoded again so far."""

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def __iter__(self) -> Iterator[Key]:
        return iter(self._kept)

    # -- reading

    def get(self, key: Key) -> Object | None:
        """The object of a key."""
        kept = self._kept.get(key)
        if kept is None or self._encoding is None:
            return kept  # type: ignore[return-value]  # nothing is frozen without an encoding
        self._used.add(key)
        return self._thaw(key, kept) if type(kept) is bytes else kept  # type: ignore[return-value]

    def of(self, keys: Iterable[Key]) -> list[Object]:
        """The objects of keys that are all there."""
        get = self.get
        return [get(key) for key in keys]  # type: ignore[misc]

    def within(self, namespace: str | None) -> list[Object]:
        """All objects (None), or those of a namespace."""
        if self._encoding is not None:
            self._scanned.add(namespace)
            if len(self._warm) < len(self._kept):
                self._thaw_all(self._kept if namespace is None else self._by_namespace.get(namespace, ()))
        kept = self._kept
        if namespace is None:
            return list(kept.values())  # type: ignore[arg-type]
        return [kept[key] for key in self._by_namespace.get(namespace, ())]  # type: ignore[misc]

    def _thaw(self, key: Key, encoded: bytes) -> Object:
        obj = self._kept[key] = thawed(encoded)
        self._warm.add(key)
        self._thawed.add(key)
        self.thaws += 1
        return obj

    def _thaw_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            encoded = self._kept[key]
            if type(encoded) is bytes:
                self._thaw(key, encoded)

    # -- writing

    def put(self, key: Key, obj: Object) -> None:
        """Hold this object under the key from now on."""
        if key not in self._kept:
            self._by_namespace.setdefault(key.namespace, {})[key] = None
        self._kept[key] = obj
        if self._encoding is not None:
            self._warm.add(key)
            self._used.add(key)

    def drop(self, key: Key) -> None:
        """Forget the key."""
        self._kept.pop(key, None)
        self._warm.discard(key)
        self._used.discard(key)
        discard(self._by_namespace, key.namespace, key)

    # -- freezing

    def freezable(self, encoding: Encoding) -> None:
        """From now on there are encodings of what is held."""
        self._encoding = encoding
        self._warm.update(self._kept)

    def unused(self) -> tuple[list[Key], list[Key]]:
        """What is decoded though nobody used it since this was last asked; and what was decoded again before that, and used since."""
        if None in self._scanned:
            unused = []
        else:
            scanned = self._scanned
            unused = [key for key in self._warm - self._used if key.namespace not in scanned]
        self._used, self._scanned = set(), set()
        lasting = self._again.difference(unused) if self._again else ()
        self._again, self._thawed = self._thawed, set()
        return unused, list(lasting)

    def freeze(self, key: Key) -> bool:
        """Hold only the encoding of a key; False when it was used, or is not decoded."""
        obj = self._kept.get(key)
        if self._encoding is None or obj is None or type(obj) is bytes or key in self._used:
            return False
        self._kept[key] = self._encoding(key, obj)  # type: ignore[arg-type]
        self._warm.discard(key)
        return True

    def improve(self, key: Key, better: Callable[[Object], Object]) -> None:
        """Replace a decoded object by an equal one."""
        obj = self._kept.get(key)
        if obj is not None and type(obj) is not bytes:
            self._kept[key] = better(obj)  # type: ignore[arg-type]


def discard(table: dict[str, dict[Key, None]], value: str, key: Key) -> None:
    """Take a key out of a table of keys by value."""
    keys = table.get(value)
    if keys is not None:
        keys.pop(key, None)
        if not keys:
            del table[value]
