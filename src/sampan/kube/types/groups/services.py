"""core/v1 Service and Endpoints."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.types import names
from sampan.kube.types.groups.declare import PROXY, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class ServiceStrategy(BuiltinStrategy):
    """Services."""

    name_rule = staticmethod(names.dns_label_1035)
    delete_returns_object = True
    create_on_update = True
    selectable_paths: ClassVar = {"spec.clusterIP": ("spec", "clusterIP"), "spec.type": ("spec", "type")}


class EndpointsStrategy(BuiltinStrategy):
    """Endpoints."""

    has_status = False
    create_on_update = True


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare("v1", "endpoints", "Endpoints", EndpointsStrategy(), short=("ep",)),
        declare(
            "v1",
            "services",
            "Service",
            ServiceStrategy(),
            short=("svc",),
            categories=("all",),
            subresources=(("proxy", "ServiceProxyOptions", PROXY), status("Service")),
        ),
    ]
