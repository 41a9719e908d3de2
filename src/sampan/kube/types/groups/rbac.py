"""rbac.authorization.k8s.io/v1: roles and their bindings."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.types import names
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy

GROUP = "rbac.authorization.k8s.io"


class RoleStrategy(BuiltinStrategy):
    """Roles."""

    has_status = False
    create_on_update = True
    name_rule = staticmethod(names.path_segment)


class ClusterRoleStrategy(RoleStrategy):
    """ClusterRoles."""

    namespaced = False


class RoleBindingStrategy(BuiltinStrategy):
    """RoleBindings."""

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
