"""The roles and bindings every cluster begins with, and how they are kept.

Clients and manifests take them for granted: helm charts bind to ``cluster-admin``, operators aggregate into ``view`` and
``edit``, kubeadm-style joins rely on ``system:node-bootstrapper``. At each start they are reconciled as upstream does: what is
missing is created, rules and subjects that were taken away are given back, additions by the user stay, and an object
annotated ``rbac.authorization.kubernetes.io/autoupdate: "false"`` is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from sampan.kube.access.interface import ObjectCache
from sampan.kube.access.rbac import EVERYTHING, NODE_RULES, uncovered
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.resources import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, NAMESPACES, ROLE_BINDINGS, ROLES
from sampan.kube.status import ApiError

API_GROUP = "rbac.authorization.k8s.io"
API_VERSION = f"{API_GROUP}/v1"
AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"

READ = "get list watch"
WRITE = "create delete deletecollection patch update"
ALL = f"{WRITE} {READ}"


class Writer(Protocol):
    """What of a client the reconciliation needs."""

    async def create(self, resource: Resource, obj: Mapping[str, Any], namespace: str | None = None) -> Object: ...

    async def update(self, resource: Resource, obj: Mapping[str, Any]) -> Object: ...


def rule(groups: str, resources: str, verbs: str, names: str = "") -> Object:
    """A rule from words separated by blanks; ``-`` is the core group."""
    made: Object = {
        "verbs": verbs.split(),
        "apiGroups": ["" if group == "-" else group for group in groups.split()],
        "resources": resources.split(),
    }
    if names:
        made["resourceNames"] = names.split()
    return made


def path_rule(paths: str, verbs: str = "get") -> Object:
    """A rule for paths outside the API."""
    return {"verbs": verbs.split(), "nonResourceURLs": paths.split()}


_NAMESPACED_READ = [
    rule(
        "-",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers "
        "replicationcontrollers/scale serviceaccounts services services/status",
        READ,
    ),
    rule(
        "-",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status "
        "resourcequotas resourcequotas/status",
        READ,
    ),
    rule("-", "namespaces", READ),
    rule("discovery.k8s.io", "endpointslices", READ),
    rule(
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets "
        "replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
        READ,
    ),
    rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
    rule("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
    rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
    rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
]

_NAMESPACED_EDIT = [
    rule("-", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", READ),
    rule("-", "serviceaccounts", "impersonate"),
    rule("-", "pods pods/attach pods/exec pods/portforward pods/proxy", WRITE),
    rule("-", "pods/eviction", "create"),
    rule(
        "-",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets "
        "serviceaccounts services services/proxy",
        WRITE,
    ),
    rule("-", "serviceaccounts/token", "create"),
    rule(
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets "
        "statefulsets/scale",
        WRITE,
    ),
    rule("autoscaling", "horizontalpodautoscalers", WRITE),
    rule("batch", "cronjobs jobs", WRITE),
    rule("policy", "poddisruptionbudgets", WRITE),
    rule("networking.k8s.io", "ingresses networkpolicies", WRITE),
    rule("coordination.k8s.io", "leases", ALL),
]

_NAMESPACED_ADMIN = [
    rule("authorization.k8s.io", "localsubjectaccessreviews", "create"),
    rule(API_GROUP, "rolebindings roles", ALL),
]

_DISCOVERY = "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"

_ROLES: dict[str, list[Any]] = {
    "cluster-admin": list(EVERYTHING),
    "system:discovery": [path_rule(_DISCOVERY)],
    "system:public-info-viewer": [path_rule("/healthz /livez /readyz /version /version/")],
    "system:basic-user": [
        rule("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", "create"),
        rule("authentication.k8s.io", "selfsubjectreviews", "create"),
    ],
    "system:monitoring": [
        path_rule("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*"),
    ],
    "system:service-account-issuer-discovery": [
        path_rule(
            "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/"
        ),
    ],
    "system:auth-delegator": [
        rule("authentication.k8s.io", "tokenreviews", "create"),
        rule("authorization.k8s.io", "subjectaccessreviews", "create"),
    ],
    "system:kube-aggregator": [rule("-", "services endpoints", READ)],
    "system:heapster": [
        rule("-", "events namespaces nodes pods", READ),
        rule("apps", "deployments", READ),
    ],
    "system:node": list(NODE_RULES),
    "system:node-bootstrapper": [rule("certificates.k8s.io", "certificatesigningrequests", f"create {READ}")],
    "system:node-problem-detector": [
        rule("-", "nodes", "get"),
        rule("-", "nodes/status", "patch"),
        rule("- events.k8s.io", "events", "create patch update"),
    ],
    "system:node-proxier": [
        rule("-", "services endpoints", "list watch"),
        rule("-", "nodes", READ),
        rule("- events.k8s.io", "events", "create patch update"),
        rule("discovery.k8s.io", "endpointslices", "list watch"),
    ],
    "system:kube-dns": [rule("-", "endpoints services", "list watch")],
    "system:persistent-volume-provisioner": [
        rule("-", "persistentvolumes", "create delete get list watch"),
        rule("-", "persistentvolumeclaims", f"{READ} update"),
        rule("storage.k8s.io", "storageclasses", READ),
        rule("-", "events", "watch"),
        rule("- events.k8s.io", "events", "create patch update"),
    ],
    "system:volume-scheduler": [
        rule("-", "persistentvolumes persistentvolumeclaims", f"{READ} patch update"),
        rule("storage.k8s.io", "storageclasses", READ),
    ],
    "system:kube-scheduler": [
        rule("- events.k8s.io", "events", "create patch update"),
        rule("coordination.k8s.io", "leases", "create list watch"),
        rule("coordination.k8s.io", "leases", "get update", "kube-scheduler"),
        rule("coordination.k8s.io", "leasecandidates", f"create delete deletecollection {READ} patch update"),
        rule("-", "nodes", READ),
        rule("-", "pods", f"delete {READ}"),
        rule("-", "bindings pods/binding", "create"),
        rule("-", "pods/status", "patch update"),
        rule("-", "replicationcontrollers services", READ),
        rule("apps", "replicasets statefulsets", READ),
        rule("policy", "poddisruptionbudgets", READ),
        rule("-", "persistentvolumeclaims persistentvolumes", READ),
        rule("authentication.k8s.io", "tokenreviews", "create"),
        rule("authorization.k8s.io", "subjectaccessreviews", "create"),
        rule("storage.k8s.io", "csinodes csidrivers csistoragecapacities", READ),
        rule("-", "namespaces", READ),
    ],
    "system:kube-controller-manager": [
        rule("- events.k8s.io", "events", "create patch update"),
        rule("coordination.k8s.io", "leases", "create get update list watch"),
        rule("-", "secrets serviceaccounts", "create get update delete"),
        rule("-", "namespaces configmaps", "get"),
        rule("authentication.k8s.io", "tokenreviews", "create"),
        rule("authorization.k8s.io", "subjectaccessreviews", "create"),
        rule("*", "*", "list watch"),
        rule("-", "serviceaccounts/token", "create"),
    ],
    "system:certificates.k8s.io:certificatesigningrequests:nodeclient": [
        rule("certificates.k8s.io", "certificatesigningrequests/nodeclient", "create")
    ],
    "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": [
        rule("certificates.k8s.io", "certificatesigningrequests/selfnodeclient", "create")
    ],
    "system:certificates.k8s.io:certificatesigningrequests:selfnodeserver": [
        rule("certificates.k8s.io", "certificatesigningrequests/selfnodeserver", "create")
    ],
    # Ours: what a joined node needs to serve Services and policies to its pods, as kube-proxy and a CNI plugin would.
    "sampan:certificatesigningrequests:nodeproxy": [
        rule("certificates.k8s.io", "certificatesigningrequests/nodeproxy", "create")
    ],
    "sampan:node-network": [
        rule("-", "services endpoints nodes namespaces pods", READ),
        rule("discovery.k8s.io", "endpointslices", READ),
        rule("networking.k8s.io", "networkpolicies", READ),
        rule("- events.k8s.io", "events", "create patch update"),
    ],
    "kubeadm:get-nodes": [rule("-", "nodes", "get")],
    "system:certificates.k8s.io:kube-apiserver-client-approver": [
        rule("certificates.k8s.io", "signers", "approve", "kubernetes.io/kube-apiserver-client")
    ],
    "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver": [
        rule("certificates.k8s.io", "signers", "approve", "kubernetes.io/kube-apiserver-client-kubelet")
    ],
    "system:certificates.k8s.io:kubelet-serving-approver": [
        rule("certificates.k8s.io", "signers", "approve", "kubernetes.io/kubelet-serving")
    ],
    "system:certificates.k8s.io:legacy-unknown-approver": [
        rule("certificates.k8s.io", "signers", "approve", "kubernetes.io/legacy-unknown")
    ],
}

_AGGREGATED = {
    # role -> (the part it owns, its rules, the bigger role that part also flows into)
    "view": _NAMESPACED_READ,
    "edit": _NAMESPACED_EDIT,
    "admin": _NAMESPACED_ADMIN,
}
_CONTAINS = {"view": ("view",), "edit": ("edit", "view"), "admin": ("admin", "edit", "view")}

_BINDINGS = {
    "cluster-admin": ("cluster-admin", "Group system:masters"),
    "system:discovery": ("system:discovery", "Group system:authenticated"),
    "system:basic-user": ("system:basic-user", "Group system:authenticated"),
    "system:public-info-viewer": (
        "system:public-info-viewer",
        "Group system:authenticated|Group system:unauthenticated",
    ),
    "system:monitoring": ("system:monitoring", "Group system:monitoring"),
    "system:service-account-issuer-discovery": (
        "system:service-account-issuer-discovery",
        "Group system:serviceaccounts",
    ),
    "system:node-proxier": ("system:node-proxier", "User system:kube-proxy"),
    "system:kube-controller-manager": ("system:kube-controller-manager", "User system:kube-controller-manager"),
    "system:kube-scheduler": ("system:kube-scheduler", "User system:kube-scheduler"),
    "system:volume-scheduler": ("system:volume-scheduler", "User system:kube-scheduler"),
    "system:kube-dns": ("system:kube-dns", "ServiceAccount kube-system/kube-dns"),
    "system:node": ("system:node", ""),
    # Joining a node works out of the box, as after ``kubeadm init``.
    "kubeadm:kubelet-bootstrap": ("system:node-bootstrapper", "Group system:bootstrappers"),
    "kubeadm:node-autoapprove-bootstrap": (
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "Group system:bootstrappers",
    ),
    "kubeadm:node-autoapprove-certificate-rotation": (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "Group system:nodes",
    ),
    "kubeadm:get-nodes": ("kubeadm:get-nodes", "Group system:bootstrappers:kubeadm:default-node-token"),
    "sampan:node-autoapprove-serving": (
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeserver",
        "Group system:nodes",
    ),
    "sampan:node-autoapprove-network": ("sampan:certificatesigningrequests:nodeproxy", "Group system:nodes"),
    "sampan:node-network": ("sampan:node-network", "User system:kube-proxy"),
}

_AUTHENTICATION_READER = rule("-", "configmaps", READ, "extension-apiserver-authentication")
_LEADER_LEASES = {
    "kube-controller-manager": "system:kube-controller-manager",
    "kube-scheduler": "system:kube-scheduler",
}


def default_objects() -> list[tuple[Resource, Object]]:
    """Every default role and binding, roles first."""
    made: list[tuple[Resource, Object]] = []
    for name, rules in _ROLES.items():
        made.append((CLUSTER_ROLES, _role("ClusterRole", name, rules)))
    for name, rules in _AGGREGATED.items():
        into = {f"{AGGREGATE}{name}": "true"}
        made.append((CLUSTER_ROLES, _role("ClusterRole", f"system:aggregate-to-{name}", rules, labels=into)))
        flows = {"view": "edit", "edit": "admin"}.get(name)
        whole = [each for part in _CONTAINS[name] for each in _AGGREGATED[part]]
        role = _role("ClusterRole", name, whole, labels={f"{AGGREGATE}{flows}": "true"} if flows else {})
        role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": into}]}
        made.append((CLUSTER_ROLES, role))
    for name, (role_name, subjects) in _BINDINGS.items():
        made.append((CLUSTER_ROLE_BINDINGS, _binding("ClusterRoleBinding", name, "ClusterRole", role_name, subjects)))
    reader = "extension-apiserver-authentication-reader"
    made.append((ROLES, _role("Role", reader, [_AUTHENTICATION_READER], "kube-system")))
    subjects = "User system:kube-controller-manager|User system:kube-scheduler"
    binding = _binding("RoleBinding", f"system::{reader}", "Role", reader, subjects, "kube-system")
    made.append((ROLE_BINDINGS, binding))
    for lock, user in _LEADER_LEASES.items():
        name = f"system::leader-locking-{lock}"
        rules = [rule("-", "configmaps", "watch"), rule("-", "configmaps", "get update", lock)]
        made.append((ROLES, _role("Role", name, rules, "kube-system")))
        made.append((ROLE_BINDINGS, _binding("RoleBinding", name, "Role", name, f"User {user}", "kube-system")))
    signer = "system:controller:bootstrap-signer"
    info = [rule("-", "configmaps", READ), rule("-", "configmaps", "update", "cluster-info")]
    made.append((ROLES, _role("Role", signer, info, "kube-public")))
    # Who joins knows nobody yet, and is nobody; see ``joining.discovery``.
    public = "kubeadm:bootstrap-signer-clusterinfo"
    made.append((ROLES, _role("Role", public, [rule("-", "configmaps", "get", "cluster-info")], "kube-public")))
    binding = _binding("RoleBinding", public, "Role", public, "User system:anonymous", "kube-public")
    made.append((ROLE_BINDINGS, binding))
    return made


def _metadata(name: str, namespace: str, labels: Mapping[str, str]) -> Object:
    metadata: Object = {"name": name, "labels": {**LABELS, **labels}, "annotations": {AUTOUPDATE: "true"}}
    if namespace:
        metadata["namespace"] = namespace
    return metadata


def _role(
    kind: str, name: str, rules: Iterable[Mapping[str, Any]], namespace: str = "", labels: Mapping[str, str] = {}
) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": _metadata(name, namespace, labels),
        "rules": [copy(dict(each)) for each in rules],
    }


def _binding(kind: str, name: str, role_kind: str, role: str, subjects: str, namespace: str = "") -> Object:
    made: Object = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": _metadata(name, namespace, {}),
        "roleRef": {"apiGroup": API_GROUP, "kind": role_kind, "name": role},
    }
    listed = []
    for subject in filter(None, subjects.split("|")):
        subject_kind, subject_name = subject.split(" ")
        if subject_kind == "ServiceAccount":
            space, subject_name = subject_name.split("/")
            listed.append({"kind": subject_kind, "name": subject_name, "namespace": space})
        else:
            listed.append({"kind": subject_kind, "apiGroup": API_GROUP, "name": subject_name})
    if listed:
        made["subjects"] = listed
    return made


def repaired(existing: Object, wanted: Object) -> Object | None:
    """``existing`` with what a default object must hold given back; None when nothing is missing."""
    metadata = existing["metadata"]
    if (metadata.get("annotations") or {}).get(AUTOUPDATE) == "false":
        return None
    changed = copy(existing)
    for field in ("labels", "annotations"):
        have = changed["metadata"].setdefault(field, {})
        for key, value in wanted["metadata"][field].items():
            have.setdefault(key, value)
    if "aggregationRule" in wanted:
        # The aggregation controller owns the rules of such a role; only the selectors are restored.
        if not existing.get("aggregationRule"):
            changed["aggregationRule"] = copy(wanted["aggregationRule"])
    elif "rules" in wanted:
        missing = uncovered(existing.get("rules") or (), wanted["rules"])
        if missing:
            changed["rules"] = [*(changed.get("rules") or ()), *(copy(dict(each)) for each in missing)]
    for subject in wanted.get("subjects") or ():
        if subject not in (changed.get("subjects") or ()):
            changed.setdefault("subjects", []).append(copy(subject))
    return None if changed == existing else changed


async def reconcile(cache: ObjectCache, writer: Writer) -> int:
    """Bring the default roles and bindings in line; returns how many objects were written.

    ``writer`` acts as a member of ``system:masters``. Namespaces that do not exist (yet) are skipped; a binding whose
    ``roleRef`` was changed by hand cannot be repaired in place and stays.
    """
    writes = []
    for resource, wanted in default_objects():
        namespace = wanted["metadata"].get("namespace") or ""
        if namespace and cache.get(NAMESPACES, "", namespace) is None:
            continue
        existing = cache.get(resource, namespace, wanted["metadata"]["name"])
        if existing is None:
            writes.append(_create(writer, resource, wanted, namespace))
        elif (change := repaired(existing, wanted)) is not None:
            writes.append(_update(writer, resource, change))
    await asyncio.gather(*writes)
    return len(writes)


async def _create(writer: Writer, resource: Resource, wanted: Object, namespace: str) -> None:
    try:
        await writer.create(resource, wanted, namespace or None)
    except ApiError as error:
        # Somebody (another start, a user) was quicker; the next start repairs what they left out.
        if not error.already_exists:
            raise


async def _update(writer: Writer, resource: Resource, change: Object) -> None:
    try:
        await writer.update(resource, change)
    except ApiError as error:
        if not error.conflict:
            raise
