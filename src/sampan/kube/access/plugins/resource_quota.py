"""ResourceQuota: a namespace does not outgrow its quotas, also when many writes come at once.

What a namespace uses is summed from its live objects at each check, so it is never out of date. Between the check and the
moment the object appears lies the commit: for that time the write holds a reservation that counts like an object, which
closes the gap through which two writes could both take the last place. Costs of objects are remembered by their revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from sampan.kube.access import quota as accounting
from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin, PluginContext
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object, Resource, dig
from sampan.kube.resources import RESOURCE_QUOTAS
from sampan.kube.types import quantity

REMEMBERED = 20_000
"""Costs of objects remembered; beyond it they are forgotten all at once."""


class _Reservation(NamedTuple):
    """A write on its way to the store: what it will add, and the object by which scopes judge it."""

    added: accounting.Usage
    object: Object
    before: str | None
    """The revision the write replaces; None: it creates."""

    def arrived(self, live: Object | None) -> bool:
        """Whether the write has become visible, so that the live object counts and the reservation must not."""
        if live is None:
            return False
        if self.before is None:
            return bool(live["metadata"].get("uid") == self.object["metadata"].get("uid"))
        return bool(live["metadata"].get("resourceVersion") != self.before)


class ResourceQuota(Plugin):
    """Refuses what would exceed a quota."""

    operations = ("CREATE", "UPDATE")

    def __init__(self, context: PluginContext) -> None:
        super().__init__(context)
        self._pending: dict[tuple[str, Resource], dict[int, _Reservation]] = {}
        self._costs: dict[tuple[str, str], accounting.Usage] = {}

    async def validate(self, request: AdmissionRequest) -> None:
        if not request.namespace or request.object is None:
            return
        quotas = self.cache.objects(RESOURCE_QUOTAS, request.namespace)
        if not quotas:
            return
        resource = request.type.stored_as
        added = accounting.usage(resource, request.object)
        if request.operation == "UPDATE":
            before = accounting.usage(resource, request.old_object or {})
            added = {name: amount - before.get(name, Decimal(0)) for name, amount in added.items()}
            added = {name: amount for name, amount in added.items() if amount > 0}
        if not added:
            return
        for each in sorted(quotas, key=lambda found: str(found["metadata"]["name"])):
            self._check(request, resource, each, added)
        if not request.dry_run:
            self._reserve(request, resource, added)

    def _check(self, request: AdmissionRequest, resource: Resource, found: Object, added: accounting.Usage) -> None:
        assert request.object is not None
        if not accounting.covers(found, resource, request.object):
            return
        hard: Mapping[str, Any] = dig(found, "spec", "hard", default={})
        name = found["metadata"]["name"]
        if resource.plural == "pods" and not resource.group and request.operation == "CREATE":
            missing = accounting.unspecified(hard, request.object.get("spec") or {})
            if missing:
                raise refused(request, f"failed quota: {name}: {missing}")
        limited = [each for each in hard if each in added]
        if not limited:
            return
        totals = self._totals(request.namespace, resource, found, limited)
        over = sorted(each for each in limited if totals[each] + added[each] > quantity.parse(hard[each]))
        if over:
            wanted = accounting.written({each: added[each] for each in over}, hard)
            taken = accounting.written({each: totals[each] for each in over}, hard)
            limits = {each: quantity.canonical(hard[each]) for each in over}
            raise refused(
                request,
                f"exceeded quota: {name}, requested: {_listed(wanted)}, used: {_listed(taken)}, limited: {_listed(limits)}",
            )

    def _totals(self, namespace: str, resource: Resource, found: Object, names: list[str]) -> accounting.Usage:
        totals = {name: Decimal(0) for name in names}
        spec = found.get("spec") or {}
        scoped = bool(spec.get("scopes") or spec.get("scopeSelector"))
        for obj in self.cache.objects(resource, namespace):
            if not scoped or accounting.covers(found, resource, obj):
                cost = self._cost(resource, obj)
                for name in names:
                    if (amount := cost.get(name)) is not None:
                        totals[name] += amount
        for reservation in self._pending.get((namespace, resource), {}).values():
            live = self.cache.get(resource, namespace, reservation.object["metadata"]["name"])
            if accounting.covers(found, resource, reservation.object) and not reservation.arrived(live):
                for name in names:
                    if name in reservation.added:
                        totals[name] += reservation.added[name]
        return totals

    def _cost(self, resource: Resource, obj: Object) -> accounting.Usage:
        metadata = obj["metadata"]
        uid, revision = metadata.get("uid"), metadata.get("resourceVersion")
        if not uid or not revision:
            return accounting.usage(resource, obj)
        key = (uid, revision)
        cost = self._costs.get(key)
        if cost is None:
            if len(self._costs) >= REMEMBERED:
                self._costs.clear()
            cost = self._costs[key] = accounting.usage(resource, obj)
        return cost

    def _reserve(self, request: AdmissionRequest, resource: Resource, added: accounting.Usage) -> None:
        assert request.object is not None
        key = (request.namespace, resource)
        token = id(request)
        before = None if request.old_object is None else request.old_object["metadata"].get("resourceVersion") or ""
        self._pending.setdefault(key, {})[token] = _Reservation(added, request.object, before)

        def release() -> None:
            pending = self._pending.get(key, {})
            pending.pop(token, None)
            if not pending:
                self._pending.pop(key, None)

        request.finished.append(release)


def _listed(amounts: Mapping[str, str]) -> str:
    return ",".join(f"{name}={amount}" for name, amount in amounts.items())
