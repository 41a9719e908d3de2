"""Namespaces in the course of deletion: everything in them is deleted, then they are.

A namespace that has a deletion timestamp keeps its ``kubernetes`` finalizer (in ``spec.finalizers``) until no object of any
served type is left in it. Pods go last, with their grace. What remains, and which finalizers hold it, is told in the
namespace's conditions, under upstream's types, reasons and messages.
"""

from __future__ import annotations

from collections import Counter

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, Resource, copy
from sampan.kube.resources import NAMESPACES, PODS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_time
from sampan.kube.types.resource import TypeRegistry

FINALIZER = "kubernetes"
LOOK_AGAIN = 1.0
"""Seconds between looks at what has not gone yet."""
PAGE = 500


class NamespaceController(Controller):
    """Empties and removes namespaces."""

    name = "namespace-controller"
    workers = 10

    def __init__(self, context: ControlContext, types: TypeRegistry) -> None:
        super().__init__(context)
        self._types = types

    def sources(self) -> list[Source]:
        """Namespaces."""
        return [For(NAMESPACES)]

    async def reconcile(self, key: Key) -> float | None:
        """Move a namespace's deletion on."""
        cached = self.informer(NAMESPACES).get(key)
        if cached is None or "deletionTimestamp" not in cached["metadata"]:
            return None
        try:
            namespace = await self.client.get(NAMESPACES, key.name)
        except ApiError as error:
            if error.not_found:
                return None
            raise
        if "deletionTimestamp" not in namespace["metadata"]:
            return None
        if FINALIZER not in (namespace.get("spec") or {}).get("finalizers", ()):
            return None
        remaining, failures = await self._empty(key.name)
        if remaining or failures:
            await self._tell(namespace, remaining, failures)
            return LOOK_AGAIN
        await self._finalize(namespace)
        return None

    async def _empty(self, name: str) -> tuple[dict[Resource, list[Object]], list[str]]:
        """Delete what is there; returns what is left, by resource, and what went wrong."""
        remaining: dict[Resource, list[Object]] = {}
        failures: list[str] = []
        resources = namespaced_resources(self._types)
        for resource in sorted(resources, key=lambda resource: resource == PODS):
            if resource == PODS and remaining:
                break
            try:
                page = await self.client.list(resource, name, limit=1)
                if not page.items:
                    continue
                await self.client.delete_collection(resource, name, propagation="Background")
                left = (await self.client.list(resource, name, limit=PAGE)).items
            except ApiError as error:
                # The type may have been removed since; whatever else is wrong is told and tried again.
                if error.code != 404:
                    failures.append(f"{resource.qualified}: {error.message}")
                continue
            if left:
                remaining[resource] = left
        return remaining, failures

    async def _tell(self, namespace: Object, remaining: dict[Resource, list[Object]], failures: list[str]) -> None:
        told = copy(namespace)
        status = told.setdefault("status", {})
        status["phase"] = "Terminating"
        now = format_time(self.clock.now())
        before = {condition["type"]: condition for condition in status.get("conditions") or ()}
        for condition in conditions(remaining, failures):
            old = before.get(condition["type"])
            same = old is not None and old["status"] == condition["status"]
            before[condition["type"]] = condition | {
                "lastTransitionTime": old["lastTransitionTime"] if same and old else now
            }
        status["conditions"] = list(before.values())
        if told != namespace:
            await self.client.update(NAMESPACES, told, subresource="status")

    async def _finalize(self, namespace: Object) -> None:
        final = copy(namespace)
        final["spec"]["finalizers"] = [each for each in final["spec"]["finalizers"] if each != FINALIZER]
        try:
            await self.client.update(NAMESPACES, final, subresource="finalize")
        except ApiError as error:
            if not error.not_found:
                raise


def namespaced_resources(types: TypeRegistry) -> list[Resource]:
    """One served version of every stored, namespaced resource that can be listed and deleted."""
    chosen: dict[tuple[str, str], Resource] = {}
    for type in types.all():
        stored = type.stored_as
        place = (stored.group, stored.plural)
        deletable = type.namespaced and {"list", "delete", "deletecollection"} <= set(type.verbs)
        if deletable and (place not in chosen or type.resource == stored):
            chosen[place] = type.resource
    return list(chosen.values())


def conditions(remaining: dict[Resource, list[Object]], failures: list[str]) -> list[Object]:
    """The conditions that tell why a namespace is not gone yet."""
    counted = ", ".join(
        f"{resource.plural}.{resource.group} has {len(left)} resource instances"
        for resource, left in sorted(remaining.items())
    )
    finalizers = Counter(
        finalizer
        for left in remaining.values()
        for obj in left
        for finalizer in obj["metadata"].get("finalizers") or ()
    )
    held = ", ".join(f"{finalizer} in {count} resource instances" for finalizer, count in sorted(finalizers.items()))

    def condition(kind: str, bad: str, bad_reason: str, good_reason: str, good: str) -> Object:
        return {
            "type": kind,
            "status": "True" if bad else "False",
            "reason": bad_reason if bad else good_reason,
            "message": bad or good,
        }

    return [
        condition(
            "NamespaceDeletionDiscoveryFailure",
            "",
            "DiscoveryFailed",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            "",
            "GroupVersionParsingFailed",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        condition(
            "NamespaceDeletionContentFailure",
            f"Failed to delete all resource types, {len(failures)} remaining: {', '.join(failures)}"
            if failures
            else "",
            "ContentDeletionFailed",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        condition(
            "NamespaceContentRemaining",
            f"Some resources are remaining: {counted}" if counted else "",
            "SomeResourcesRemain",
            "ContentRemoved",
            "All content successfully removed",
        ),
        condition(
            "NamespaceFinalizersRemaining",
            f"Some content in the namespace has finalizers remaining: {held}" if held else "",
            "SomeFinalizersRemain",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ]
