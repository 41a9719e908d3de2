"""Aggregated ClusterRoles: their rules are the union of the rules of the roles their selectors choose."""

from __future__ import annotations

from typing import Any

from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.resources import CLUSTER_ROLES
from sampan.kube.types import selectors


class ClusterRoleAggregation(Controller):
    """Fills the rules of ClusterRoles that have an ``aggregationRule``."""

    name = "clusterrole-aggregation-controller"

    def sources(self) -> list[Source]:
        """ClusterRoles; a change of any concerns all that aggregate."""
        return [For(CLUSTER_ROLES), Watches(CLUSTER_ROLES, self._aggregating)]

    def _aggregating(self, _: Object) -> list[Key]:
        return [Key.of(role) for role in self.informer(CLUSTER_ROLES).objects() if role.get("aggregationRule")]

    async def reconcile(self, key: Key) -> float | None:
        """Write one role's rules where they differ."""
        role = self.informer(CLUSTER_ROLES).get(key)
        if role is None or not role.get("aggregationRule") or "deletionTimestamp" in role["metadata"]:
            return None
        rules = aggregated(role, self.informer(CLUSTER_ROLES).objects())
        if rules != (role.get("rules") or []):
            await self.client.update(CLUSTER_ROLES, copy(role) | {"rules": rules})
        return None


def aggregated(role: Object, roles: list[Object]) -> list[Any]:
    """The rules an aggregating role should have: those of every selected role, by name, each once."""
    chosen = [
        selectors.of_object(selector) for selector in dig(role, "aggregationRule", "clusterRoleSelectors", default=())
    ]
    rules: list[Any] = []
    for other in sorted(roles, key=lambda other: other["metadata"]["name"]):
        if other["metadata"]["name"] != role["metadata"]["name"] and any(
            selector.selects(other) for selector in chosen
        ):
            rules += [rule for rule in other.get("rules") or () if rule not in rules]
    return rules
