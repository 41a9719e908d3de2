"""Who owns whom: the graph behind garbage collection, without any I/O.

A node stands for an object, an edge for an owner reference, both by uid, because a name may be taken again by another
object. `OwnershipGraph.put` and `remove` follow the watched objects and return the uids that deserve a visit by the collector:
those whose owners are missing, are waiting for them, or that themselves are being deleted with a policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import intern
from typing import NamedTuple

from sampan.kube.objects import Key, Object, Resource

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


class OwnerReference(NamedTuple):
    """One entry of ``metadata.ownerReferences``."""

    uid: str
    api_version: str
    kind: str
    name: str
    blocking: bool
    """The owner's foreground deletion waits for the dependent."""


@dataclass(slots=True, eq=False)
class Node:
    """What the collector knows of one object."""

    uid: str
    resource: Resource
    key: Key
    kind: str
    api_version: str
    owners: tuple[OwnerReference, ...]
    deleting: bool
    foreground: bool
    """It has the finalizer that keeps it until its blocking dependents are gone."""
    orphan: bool
    """It has the finalizer that keeps it until its dependents have forgotten it."""

    @staticmethod
    def of(resource: Resource, obj: Object) -> Node:
        """The node of an object."""
        metadata = obj["metadata"]
        finalizers = metadata.get("finalizers") or ()
        return Node(
            uid=metadata["uid"],
            resource=resource,
            key=Key(intern(metadata.get("namespace") or ""), metadata["name"]),
            kind=intern(obj.get("kind", "")),
            api_version=intern(obj.get("apiVersion", "")),
            owners=tuple(
                OwnerReference(
                    reference.get("uid", ""),
                    intern(reference.get("apiVersion", "")),
                    intern(reference.get("kind", "")),
                    reference.get("name", ""),
                    bool(reference.get("blockOwnerDeletion")),
                )
                for reference in metadata.get("ownerReferences") or ()
            ),
            deleting="deletionTimestamp" in metadata,
            foreground=FOREGROUND in finalizers,
            orphan=ORPHAN in finalizers,
        )

    @property
    def waits_for_dependents(self) -> bool:
        return self.deleting and self.foreground

    def misplaced_under(self, owner: Node) -> bool:
        """The reference crosses namespaces: such an owner does not count."""
        return bool(owner.key.namespace) and owner.key.namespace != self.key.namespace

    def is_named(self, reference: OwnerReference) -> bool:
        """The reference's coordinates are this object's (in whatever version)."""
        group = self.api_version.rpartition("/")[0]
        return (group, self.kind, self.key.name) == (
            reference.api_version.rpartition("/")[0],
            reference.kind,
            reference.name,
        )


class OwnershipGraph:
    """Nodes by uid, and the dependents of each owner uid (whether or not the owner is known).

    One stands for every object there is, so what many say alike is kept once: the references of siblings, kinds, namespaces.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._dependents: dict[str, Node | dict[str, Node]] = {}
        """Most owners have one dependent, which then stands by itself."""

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, uid: str) -> Node | None:
        """The node of an object."""
        return self._nodes.get(uid)

    def dependents(self, uid: str) -> list[Node]:
        """The nodes that name ``uid`` as an owner."""
        return list(self._of(uid))

    def _of(self, uid: str) -> Iterable[Node]:
        found = self._dependents.get(uid, ())
        if isinstance(found, Node):
            return (found,)
        return found.values() if isinstance(found, dict) else ()

    def blocking(self, uid: str) -> list[Node]:
        """The dependents that the foreground deletion of ``uid`` waits for."""
        return [node for node in self.dependents(uid) if _blocks(node, uid)]

    def blocked(self, uid: str) -> bool:
        """Some dependent holds up the foreground deletion of ``uid``."""
        return any(_blocks(node, uid) for node in self._of(uid))

    def settled(self, node: Node) -> bool:
        """Every owner is known, in its place and staying: nothing to do for the node."""
        for reference in node.owners:
            owner = self._nodes.get(reference.uid)
            if (
                owner is None
                or owner.waits_for_dependents
                or node.misplaced_under(owner)
                or not owner.is_named(reference)
            ):
                return False
        return True

    def put(self, node: Node) -> set[str]:
        """Follow an object's creation or change; returns whom to visit."""
        old = self._nodes.get(node.uid)
        self._nodes[node.uid] = node
        before = old.owners if old is not None else ()
        self._unlink(node.uid, before)
        node.owners = tuple(map(self._shared, node.owners))
        for reference in node.owners:
            self._link(reference.uid, node)
        visits: set[str] = set()
        if node.deleting and (node.foreground or node.orphan):
            visits.add(node.uid)
            if node.foreground and (old is None or not old.waits_for_dependents):
                visits.update(dependent.uid for dependent in self.blocking(node.uid))
        if not self.settled(node):
            visits.add(node.uid)
        if before != node.owners:
            visits |= self._waiting(before)
        return visits

    def remove(self, uid: str) -> set[str]:
        """Follow an object's end; returns whom to visit."""
        node = self._nodes.pop(uid, None)
        if node is None:
            return set()
        self._unlink(uid, node.owners)
        return {dependent.uid for dependent in self.dependents(uid)} | self._waiting(node.owners)

    def _shared(self, reference: OwnerReference) -> OwnerReference:
        """The reference, as one that refers to the same owner in the same words has it already."""
        for sibling in self._of(reference.uid):
            return next((each for each in sibling.owners if each == reference), reference)
        owner = self._nodes.get(reference.uid)
        if owner is None:
            return reference
        name = owner.key.name if owner.key.name == reference.name else reference.name
        return reference._replace(uid=owner.uid, name=name)

    def _link(self, owner: str, node: Node) -> None:
        found = self._dependents.setdefault(owner, node)
        if isinstance(found, dict):
            found[node.uid] = node
        elif found.uid != node.uid:
            self._dependents[owner] = {found.uid: found, node.uid: node}
        else:
            self._dependents[owner] = node

    def _unlink(self, uid: str, owners: Iterable[OwnerReference]) -> None:
        for reference in owners:
            dependents = self._dependents.get(reference.uid)
            if isinstance(dependents, dict):
                dependents.pop(uid, None)
                if not dependents:
                    del self._dependents[reference.uid]
            elif dependents is not None and dependents.uid == uid:
                del self._dependents[reference.uid]

    def _waiting(self, owners: Iterable[OwnerReference]) -> set[str]:
        """Owners whose deletion waits and may now go on."""
        found = (self._nodes.get(reference.uid) for reference in owners)
        # Only the last blocking dependent's end concerns an owner: otherwise each of a thousand would call for it in vain.
        return {
            owner.uid
            for owner in found
            if owner is not None and owner.waits_for_dependents and not self.blocked(owner.uid)
        }


def _blocks(node: Node, uid: str) -> bool:
    return any(reference.uid == uid and reference.blocking for reference in node.owners)
