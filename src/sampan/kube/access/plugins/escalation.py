"""Nobody hands out more rights than they hold: the escalation checks on roles and bindings.

Writing a role needs every right the role grants (or the verb ``escalate`` on it); writing a binding needs every right of the
role it refers to (or the verb ``bind`` on it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sampan.kube.access.interface import AdmissionRequest, Attributes
from sampan.kube.access.plugins.plugin import Plugin, PluginContext
from sampan.kube.access.rbac import EVERYTHING, MASTERS, RbacAuthorizer, describe_rule, uncovered
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Resource
from sampan.kube.resources import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES
from sampan.kube.status import not_found


class Escalation(Plugin):
    """Guards writes of roles and bindings."""

    operations = ("CREATE", "UPDATE")
    resources = (ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS)

    def __init__(self, context: PluginContext) -> None:
        super().__init__(context)
        self._rbac = RbacAuthorizer(context.cache)

    async def validate(self, request: AdmissionRequest) -> None:
        if MASTERS in request.user.groups:
            return
        if request.type.resource.plural in ("roles", "clusterroles"):
            self._role(request)
        else:
            self._binding(request)

    def _role(self, request: AdmissionRequest) -> None:
        role, old = request.object or {}, request.old_object or {}
        same = role.get("rules") == old.get("rules") and role.get("aggregationRule") == old.get("aggregationRule")
        if (request.operation == "UPDATE" and same) or self._may(
            request, "escalate", request.type.resource, request.name
        ):
            return
        held = self._rbac.rules(request.user, request.namespace)
        if role.get("aggregationRule") and uncovered(held, EVERYTHING):
            raise refused(request, "must have cluster-admin privileges to use the aggregationRule")
        self._check(request, held, role.get("rules") or ())

    def _binding(self, request: AdmissionRequest) -> None:
        binding, old = request.object or {}, request.old_object or {}
        same = binding.get("roleRef") == old.get("roleRef") and binding.get("subjects") == old.get("subjects")
        if request.operation == "UPDATE" and same:
            return
        reference = binding["roleRef"]
        resource = CLUSTER_ROLES if reference.get("kind") == "ClusterRole" else ROLES
        if self._may(request, "bind", resource, reference.get("name") or ""):
            return
        rules = self._rbac.role_rules(reference, request.namespace)
        if rules is None:
            raise not_found(resource, reference.get("name") or "")
        self._check(request, self._rbac.rules(request.user, request.namespace), rules)

    def _may(self, request: AdmissionRequest, verb: str, resource: Resource, name: str) -> bool:
        attributes = Attributes(request.user, verb, resource, "", request.namespace, name)
        return self.context.authorizer.authorize(attributes).allowed

    def _check(
        self, request: AdmissionRequest, held: list[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]
    ) -> None:
        missing = uncovered(held, wanted)
        if missing:
            groups = " ".join(f'"{group}"' for group in request.user.groups)
            listed = "\n".join(describe_rule(rule) for rule in missing)
            raise refused(
                request,
                f'user "{request.user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions not currently '
                f"held:\n{listed}",
            )
