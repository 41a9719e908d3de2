"""rbac.authorization.k8s.io/v1: roles and their bindings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import CREATED_AT, NAME, BuiltinStrategy, columns

GROUP = "rbac.authorization.k8s.io"


class RoleStrategy(BuiltinStrategy):
    """Roles."""

    columns = (NAME, CREATED_AT)
    has_status = False
    create_on_update = True
    name_rule = staticmethod(names.path_segment)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], cells.created(obj)]


class ClusterRoleStrategy(RoleStrategy):
    """ClusterRoles."""

    namespaced = False


class RoleBindingStrategy(BuiltinStrategy):
    """RoleBindings."""

    columns = columns("Role", wide=("Users", "Groups", "ServiceAccounts"))
    has_status = False
    create_on_update = True
    name_rule = staticmethod(names.path_segment)

    def default(self, obj: Object) -> None:
        reference = obj.get("roleRef")
        if reference is not None and not reference.get("apiGroup"):
            reference["apiGroup"] = GROUP
        for subject in obj.get("subjects") or ():
            if subject.get("kind") in ("User", "Group") and not subject.get("apiGroup"):
                subject["apiGroup"] = GROUP

    def row(self, obj: Object, now: datetime) -> list[Any]:
        reference = obj.get("roleRef") or {}
        subjects: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
        for subject in obj.get("subjects") or ():
            name = subject.get("name") or ""
            if subject.get("kind") == "ServiceAccount":
                name = f"{subject.get('namespace') or ''}/{name}"
            subjects.setdefault(subject.get("kind") or "", []).append(name)
        return [
            obj["metadata"]["name"],
            f"{reference.get('kind')}/{reference.get('name')}",
            cells.age(obj, now),
            *(", ".join(subjects[kind]) for kind in ("User", "Group", "ServiceAccount")),
        ]


class ClusterRoleBindingStrategy(RoleBindingStrategy):
    """ClusterRoleBindings."""

    namespaced = False


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(f"{GROUP}/v1", "clusterrolebindings", "ClusterRoleBinding", ClusterRoleBindingStrategy()),
        declare(f"{GROUP}/v1", "clusterroles", "ClusterRole", ClusterRoleStrategy()),
        declare(f"{GROUP}/v1", "rolebindings", "RoleBinding", RoleBindingStrategy()),
        declare(f"{GROUP}/v1", "roles", "Role", RoleStrategy()),
    ]
