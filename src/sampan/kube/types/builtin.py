"""Every built-in resource, in the order in which discovery lists the groups.

The order is upstream's: for a short name or plural that several groups use, the earlier group wins.
"""

from __future__ import annotations

from sampan.kube.types.groups import (
    admission,
    apps,
    autoscaling,
    batch,
    certificates,
    core,
    events,
    extensions,
    networking,
    nodes,
    pods,
    policy,
    rbac,
    reviews,
    scheduling,
    services,
    storage,
)
from sampan.kube.types.resource import ResourceType

_GROUPS = (
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
)
_MODULES = (
    core, events, nodes, pods, services, storage, apps, autoscaling, batch, certificates, networking, policy, rbac,
    admission, extensions, scheduling, reviews,
)  # fmt: skip


def builtin_types() -> list[ResourceType]:
    """All built-in types, fresh: by group in discovery order, newest version first, then by plural name."""
    found = [kind for module in _MODULES for kind in module.types()]
    return sorted(found, key=_order)


def _order(kind: ResourceType) -> tuple[int, int, str]:
    resource = kind.resource
    return _GROUPS.index(resource.group), -int(resource.version.removeprefix("v")), resource.plural
