"""The status of ResourceQuotas: how much of each limit is used.

Admission refuses what would exceed a quota and keeps its own account; this controller publishes the sums in
``status.hard`` and ``status.used``. It watches only the resources that some quota actually limits.
"""

from __future__ import annotations

from sampan.kube.access.quota import counted_resource, used
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.resources import RESOURCE_QUOTAS
from sampan.kube.types.resource import TypeRegistry


class QuotaController(Controller):
    """Keeps the status of quotas."""

    name = "resourcequota-controller"
    workers = 2

    def __init__(self, context: ControlContext, types: TypeRegistry) -> None:
        super().__init__(context)
        self._types = types
        self._watched: set[Resource] = set()

    def sources(self) -> list[Source]:
        """Quotas; what they count is watched from the first quota on that counts it."""
        return [For(RESOURCE_QUOTAS)]

    async def reconcile(self, key: Key) -> float | None:
        """Sum up one quota."""
        quota = self.informer(RESOURCE_QUOTAS).get(key)
        if quota is None or "deletionTimestamp" in quota["metadata"]:
            return None
        known = [type.resource for type in self._types.all() if type.namespaced]
        for name in dig(quota, "spec", "hard", default={}):
            resource = counted_resource(name, known)
            if resource is not None and self._types.find(resource) is not None:
                await self._watch(resource)
        hard = dig(quota, "spec", "hard", default={})
        status = {
            "hard": hard,
            "used": used(
                quota,
                lambda resource: self.informer(resource).objects(key.namespace) if resource in self._watched else (),
                known,
            ),
        }
        if quota.get("status") != status:
            await self.client.update(RESOURCE_QUOTAS, copy(quota) | {"status": status}, subresource="status")
        return None

    async def _watch(self, resource: Resource) -> None:
        informer = self.informer(resource)
        await informer.wait_synced()
        if resource in self._watched:
            return
        self._watched.add(resource)

        def changed(old: Object | None, new: Object | None) -> None:
            obj = new or old
            assert obj is not None
            namespace = obj["metadata"].get("namespace") or ""
            for quota in self.informer(RESOURCE_QUOTAS).objects(namespace):
                self.queue.add(Key.of(quota))

        informer.on_change(changed)
