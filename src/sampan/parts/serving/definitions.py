"""The CustomResourceDefinitions of Knative Serving.

Validation beyond types is Knative's own and done by its admission (``admission``), so the schemas keep unknown fields of pod
templates and state the rest loosely, as upstream's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sampan.kube.objects import Object
from sampan.parts.serving.resources import AUTOSCALING, NETWORKING, SERVING

_ANYTHING: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_TARGET = {
    "type": "object",
    "properties": {
        "configurationName": {"type": "string"},
        "latestRevision": {"type": "boolean"},
        "percent": {"type": "integer", "format": "int64"},
        "revisionName": {"type": "string"},
        "tag": {"type": "string"},
        "url": {"type": "string"},
    },
}
_TRAFFIC = {"type": "array", "items": _TARGET}
_TEMPLATE = {"type": "object", "properties": {"metadata": _ANYTHING, "spec": _ANYTHING}}
_STRING_MAP = {"type": "object", "additionalProperties": {"type": "string"}}


def _status(**properties: Any) -> dict[str, Any]:
    common = {
        "annotations": _STRING_MAP,
        "conditions": {"type": "array", "items": _ANYTHING},
        "observedGeneration": {"type": "integer", "format": "int64"},
    }
    return {"type": "object", "properties": {**common, **properties}}


_STRING, _NUMBER = {"type": "string"}, {"type": "integer", "format": "int32"}
_ADDRESS = {"type": "object", "properties": {"url": _STRING, "CACerts": _STRING, "audience": _STRING, "name": _STRING}}
_ROUTE_STATUS = {"address": _ADDRESS, "traffic": _TRAFFIC, "url": _STRING}
_CONFIGURATION_STATUS = {"latestCreatedRevisionName": _STRING, "latestReadyRevisionName": _STRING}

_READY = '.status.conditions[?(@.type=="Ready")]'
_READY_COLUMNS = (("Ready", f"{_READY}.status"), ("Reason", f"{_READY}.reason"))
_LATEST_COLUMNS = (
    ("LatestCreated", ".status.latestCreatedRevisionName"),
    ("LatestReady", ".status.latestReadyRevisionName"),
)
_URL_COLUMN = (("URL", ".status.url"),)


def _definition(
    group: str,
    version: str,
    kind: str,
    plural: str,
    spec: dict[str, Any],
    status: dict[str, Any] | None,
    columns: Sequence[tuple[str, str]],
    *,
    short: Sequence[str] = (),
    cluster: bool = False,
    labels: dict[str, str] | None = None,
) -> Object:
    internal = group != SERVING
    categories = ["all", "knative", "serving"]
    if internal:
        categories = ["knative-internal", "autoscaling" if group == AUTOSCALING else "networking"]
    properties: dict[str, Any] = {
        "apiVersion": _STRING,
        "kind": _STRING,
        "metadata": {"type": "object"},
        "spec": spec,
    }
    if status is not None:
        properties["status"] = status
    entry: Object = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": "integer" if "Replicas" in name or "Scale" in name else "string", "jsonPath": path}
            for name, path in columns
        ],
    }
    if group == AUTOSCALING and kind == "Metric":
        entry["additionalPrinterColumns"] = entry["additionalPrinterColumns"][-2:]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "labels": {
                "app.kubernetes.io/name": "knative-serving",
                "knative.dev/crd-install": "true",
                **(labels or {}),
            },
        },
        "spec": {
            "group": group,
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "listKind": f"{kind}List",
                "shortNames": list(short),
                "categories": categories,
            },
            "scope": "Cluster" if cluster else "Namespaced",
            "versions": [entry],
        },
    }


def all_definitions() -> list[Object]:
    """Every CustomResourceDefinition of Knative Serving."""
    addressable = {"duck.knative.dev/addressable": "true"}
    podspecable = {"duck.knative.dev/podspecable": "true"}
    template = {"type": "object", "properties": {"template": _TEMPLATE}}
    both = {"type": "object", "properties": {"template": _TEMPLATE, "traffic": _TRAFFIC}}
    return [
        _definition(
            SERVING,
            "v1",
            "Service",
            "services",
            both,
            _status(**_ROUTE_STATUS, **_CONFIGURATION_STATUS),
            (*_URL_COLUMN, *_LATEST_COLUMNS, *_READY_COLUMNS),
            short=("kservice", "ksvc"),
            labels=addressable | podspecable,
        ),
        _definition(
            SERVING,
            "v1",
            "Configuration",
            "configurations",
            template,
            _status(**_CONFIGURATION_STATUS),
            (*_LATEST_COLUMNS, *_READY_COLUMNS),
            short=("config", "cfg"),
            labels=podspecable,
        ),
        _definition(
            SERVING,
            "v1",
            "Revision",
            "revisions",
            _ANYTHING,
            _status(
                actualReplicas=_NUMBER,
                desiredReplicas=_NUMBER,
                containerStatuses={"type": "array", "items": _ANYTHING},
                initContainerStatuses={"type": "array", "items": _ANYTHING},
                logUrl=_STRING,
            ),
            (
                ("Config Name", r".metadata.labels['serving\.knative\.dev/configuration']"),
                ("Generation", r".metadata.labels['serving\.knative\.dev/configurationGeneration']"),
                *_READY_COLUMNS,
                ("Actual Replicas", ".status.actualReplicas"),
                ("Desired Replicas", ".status.desiredReplicas"),
            ),
            short=("rev",),
        ),
        _definition(
            SERVING,
            "v1",
            "Route",
            "routes",
            {"type": "object", "properties": {"traffic": _TRAFFIC}},
            _status(**_ROUTE_STATUS),
            (*_URL_COLUMN, *_READY_COLUMNS),
            short=("rt",),
            labels=addressable,
        ),
        _definition(
            SERVING,
            "v1beta1",
            "DomainMapping",
            "domainmappings",
            _ANYTHING,
            _status(address=_ADDRESS, url=_STRING),
            (*_URL_COLUMN, *_READY_COLUMNS),
            short=("dm",),
        ),
        _definition(
            AUTOSCALING,
            "v1alpha1",
            "PodAutoscaler",
            "podautoscalers",
            _ANYTHING,
            _status(actualScale=_NUMBER, desiredScale=_NUMBER, metricsServiceName=_STRING, serviceName=_STRING),
            (("DesiredScale", ".status.desiredScale"), ("ActualScale", ".status.actualScale"), *_READY_COLUMNS),
            short=("kpa", "pa"),
        ),
        _definition(AUTOSCALING, "v1alpha1", "Metric", "metrics", _ANYTHING, _status(), _READY_COLUMNS),
        _definition(
            NETWORKING,
            "v1alpha1",
            "Ingress",
            "ingresses",
            _ANYTHING,
            _status(publicLoadBalancer=_ANYTHING, privateLoadBalancer=_ANYTHING),
            _READY_COLUMNS,
            short=("kingress", "king"),
        ),
        _definition(
            NETWORKING,
            "v1alpha1",
            "ServerlessService",
            "serverlessservices",
            _ANYTHING,
            _status(serviceName=_STRING, privateServiceName=_STRING),
            (
                ("Mode", ".spec.mode"),
                ("Activators", ".spec.numActivators"),
                ("ServiceName", ".status.serviceName"),
                ("PrivateServiceName", ".status.privateServiceName"),
                *_READY_COLUMNS,
            ),
            short=("sks",),
        ),
        _definition(
            NETWORKING,
            "v1alpha1",
            "Certificate",
            "certificates",
            _ANYTHING,
            _status(),
            _READY_COLUMNS,
            short=("kcert",),
        ),
        _definition(
            NETWORKING,
            "v1alpha1",
            "ClusterDomainClaim",
            "clusterdomainclaims",
            _ANYTHING,
            None,
            (),
            short=("cdc",),
            cluster=True,
        ),
        _definition(
            "caching.internal.knative.dev",
            "v1alpha1",
            "Image",
            "images",
            _ANYTHING,
            _status(),
            (("Image", ".spec.image"),),
        ),
    ]
