"""The controllers that every API server needs, whatever runs on it, started together."""

from __future__ import annotations

from sampan.kube.control.cluster_roles import ClusterRoleAggregation
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.garbage import GarbageCollector
from sampan.kube.control.namespaces import NamespaceController
from sampan.kube.control.quota import QuotaController
from sampan.kube.control.service_accounts import ServiceAccountController
from sampan.kube.control.ttl import EventExpiry
from sampan.kube.types.resource import TypeRegistry


async def start_builtin_controllers(context: ControlContext, types: TypeRegistry, certificate: str) -> None:
    """Start them in the context's tasks; returns when their caches are filled.

    ``certificate``: the PEM bundle that verifies the API server, published to every namespace.
    """
    await ServiceAccountController(context, certificate).start()
    await NamespaceController(context, types).start()
    await ClusterRoleAggregation(context).start()
    await QuotaController(context, types).start()
    await EventExpiry(context).start()
    await GarbageCollector(context, types).start()
