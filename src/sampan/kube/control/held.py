"""What an informer holds: each object decoded while somebody uses it, encoded otherwise.

Decoded, an object takes several times the memory of its encoding, and beside the store the encoding is in memory anyway:
holding on to that costs a pointer. Most objects of a platform are not looked at for hours (all of a sleeping Service, say),
while a few are looked at all the time. So `Held` remembers what was used since `unused` was last asked; what was not is
frozen (`freeze`) by the informers' sweep (`informer.SharedInformers`), and the next to ask for it has it decoded again and kept.

A key's encoding is that of the very state the listeners were told of, never a newer one: readers see no change before its
time, and the state before a change can always be had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from sampan.kube.objects import Key, Object, decode
from sampan.kube.server.selection import labels_of

SCANNED = 6
"""Sweeps for which what was read as a whole stays decoded: to decode it again takes the more the more of it there is."""

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
        self._by_namespace = KeysByValue()
        self._warm: set[Key] = set()
        """The keys of what is decoded; kept only once `freezable`."""
        self._used: set[Key] = set()
        """Keys that were read or written since the last sweep."""
        self._scanned: dict[str | None, int] = {}
        """Namespaces (None: all) that were read as a whole, and for how many sweeps they stay for that."""
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
        if kept is not None and self._encoding is not None:
            self._used.add(key)
        return self._thaw(key, kept) if isinstance(kept, bytes) else kept

    def of(self, keys: Iterable[Key]) -> list[Object]:
        """The objects of keys that are all there."""
        get = self.get
        return [get(key) for key in keys]  # type: ignore[misc]

    def within(self, namespace: str | None) -> list[Object]:
        """All objects (None), or those of a namespace."""
        if self._encoding is not None:
            self._scanned[namespace] = SCANNED
            if len(self._warm) < len(self._kept):
                for key in self._keys(namespace):
                    encoded = self._kept[key]
                    if isinstance(encoded, bytes):
                        self._thaw(key, encoded)
        kept = self._kept
        if namespace is None:
            return list(kept.values())  # type: ignore[arg-type]
        return [kept[key] for key in self._keys(namespace)]  # type: ignore[misc]

    def labelled(self, namespace: str | None, fits: Callable[[Mapping[str, str]], bool]) -> list[Object]:
        """All objects (None), or those of a namespace, whose labels fit."""
        if self._encoding is None or len(self._warm) == len(self._kept) or self._keeps_warm(namespace):
            return [obj for obj in self.within(namespace) if fits(obj["metadata"].get("labels") or {})]
        # Once is no reason to decode them all: the labels are found in a tenth of the time.
        self._scanned[namespace] = SCANNED
        found: list[Object] = []
        for key in self._keys(namespace):
            kept = self._kept[key]
            if isinstance(kept, bytes):
                if fits(labels_of(kept)):
                    found.append(self._thaw(key, kept))
            elif fits(kept["metadata"].get("labels") or {}):
                found.append(kept)
        return found

    def _keys(self, namespace: str | None) -> Iterable[Key]:
        return self._kept if namespace is None else self._by_namespace.of(namespace)

    def _keeps_warm(self, namespace: str | None) -> bool:
        return namespace in self._scanned or None in self._scanned

    def _thaw(self, key: Key, encoded: bytes) -> Object:
        obj = self._kept[key] = thawed(encoded)
        self._warm.add(key)
        self._thawed.add(key)
        self.thaws += 1
        return obj

    # -- writing

    def put(self, key: Key, obj: Object) -> None:
        """Hold this object under the key from now on."""
        if key not in self._kept:
            self._by_namespace.add(key.namespace, key)
        self._kept[key] = obj
        if self._encoding is not None:
            self._warm.add(key)
            self._used.add(key)

    def drop(self, key: Key) -> None:
        """Forget the key."""
        self._kept.pop(key, None)
        self._warm.discard(key)
        self._used.discard(key)
        self._by_namespace.discard(key.namespace, key)

    # -- freezing

    def freezable(self, encoding: Encoding) -> None:
        """From now on there are encodings of what is held."""
        self._encoding = encoding
        self._warm.update(self._kept)

    def unused(self) -> tuple[list[Key], list[Key]]:
        """What is decoded though nobody used it since this was last asked; and what was decoded again before that, and used since."""
        scanned = self._scanned
        unused = [] if None in scanned else [key for key in self._warm - self._used if key.namespace not in scanned]
        self._used = set()
        self._scanned = {namespace: left - 1 for namespace, left in scanned.items() if left > 1}
        lasting = self._again.difference(unused) if self._again else ()
        self._again, self._thawed = self._thawed, set()
        return unused, list(lasting)

    def freeze(self, key: Key) -> bool:
        """Hold only the encoding of a key; False when it was used, or is not decoded."""
        obj = self._kept.get(key)
        if self._encoding is None or obj is None or isinstance(obj, bytes) or key in self._used:
            return False
        self._kept[key] = self._encoding(key, obj)
        self._warm.discard(key)
        return True

    def improve(self, key: Key, better: Callable[[Object], Object]) -> None:
        """Replace a decoded object by an equal one."""
        obj = self._kept.get(key)
        if obj is not None and not isinstance(obj, bytes):
            self._kept[key] = better(obj)


class KeysByValue:
    """An index's keys by value, in the order in which they came. What a single key has, as most do, costs no collection."""

    def __init__(self) -> None:
        self._keys: dict[str, Key | dict[Key, None]] = {}

    def of(self, value: str) -> Iterable[Key]:
        """The keys that have this value."""
        found = self._keys.get(value, ())
        return found if isinstance(found, dict) or not found else (found,)

    def add(self, value: str, key: Key) -> None:
        """Note that a key has a value; a no-op when it is noted."""
        found = self._keys.setdefault(value, key)
        if isinstance(found, dict):
            found[key] = None
        elif found != key:
            self._keys[value] = {found: None, key: None}

    def discard(self, value: str, key: Key) -> None:
        """Note that a key no longer has a value; a no-op when it had not."""
        found = self._keys.get(value)
        if isinstance(found, dict):
            found.pop(key, None)
            if not found:
                del self._keys[value]
        elif found == key:
            del self._keys[value]
