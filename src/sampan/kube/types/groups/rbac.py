"""rbac.authorization.k8s.io/v1: roles and their bindings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names, selectors
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare
from sampan.kube.types.problems import Problems
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

    def check(self, obj: Object, problems: Problems) -> None:
        for index, rule in enumerate(obj.get("rules") or ()):
            here, outside = f"rules[{index}]", rule.get("nonResourceURLs") or ()
            if not rule.get("verbs"):
                problems.required(f"{here}.verbs", "verbs must contain at least one value")
            if outside and self.namespaced:
                why = "namespaced rules cannot apply to non-resource URLs"
                problems.invalid(f"{here}.nonResourceURLs", list(outside), why)
            elif outside and (rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames")):
                why = "rules cannot apply to both regular resources and non-resource URLs"
                problems.invalid(f"{here}.nonResourceURLs", list(outside), why)
            elif not outside:
                if not rule.get("apiGroups"):
                    problems.required(f"{here}.apiGroups", "resource rules must supply at least one api group")
                if not rule.get("resources"):
                    problems.required(f"{here}.resources", "resource rules must supply at least one resource")
        for index, selector in enumerate((obj.get("aggregationRule") or {}).get("clusterRoleSelectors") or ()):
            selectors.validate_object(selector, f"aggregationRule.clusterRoleSelectors[{index}]", problems)


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
        reference = obj.setdefault("roleRef", {})
        if not reference.get("apiGroup"):
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

    def check(self, obj: Object, problems: Problems) -> None:
        reference = obj.get("roleRef") or {}
        if reference.get("apiGroup") != GROUP:
            problems.unsupported("roleRef.apiGroup", reference.get("apiGroup") or "", (GROUP,))
        kinds = ("ClusterRole", "Role") if self.namespaced else ("ClusterRole",)
        if reference.get("kind") not in kinds:
            problems.unsupported("roleRef.kind", reference.get("kind") or "", kinds)
        if not reference.get("name"):
            problems.required("roleRef.name")
        else:
            problems.invalid_all("roleRef.name", reference["name"], names.path_segment(reference["name"]))
        for index, subject in enumerate(obj.get("subjects") or ()):
            here, kind, group = f"subjects[{index}]", subject.get("kind"), subject.get("apiGroup") or ""
            if not subject.get("name"):
                problems.required(f"{here}.name")
            if kind == "ServiceAccount":
                if group:
                    problems.unsupported(f"{here}.apiGroup", group, ("",))
                if not subject.get("namespace"):
                    problems.required(f"{here}.namespace")
            elif kind in ("User", "Group"):
                if group != GROUP:
                    problems.unsupported(f"{here}.apiGroup", group, (GROUP,))
            else:
                problems.unsupported(f"{here}.kind", kind or "", ("Group", "ServiceAccount", "User"))

    def check_update(self, new: Object, old: Object, problems: Problems) -> None:
        if new.get("roleRef") != old.get("roleRef"):
            problems.invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


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
