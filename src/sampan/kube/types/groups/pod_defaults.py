"""Defaults of a pod's spec, for pods and for the pod templates of every workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import quantity

VOLUME_SOURCES = (
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI", "emptyDir",
    "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "hostPath", "image", "iscsi",
    "nfs", "persistentVolumeClaim", "photonPersistentDisk", "portworxVolume", "projected", "quobyte", "rbd", "scaleIO",
    "secret", "storageos", "vsphereVolume",
)  # fmt: skip
DEFAULT_MODE = 420


def default_template(template: Object) -> None:
    """The pod template of a workload."""
    metadata = template.setdefault("metadata", {})
    if metadata.get("creationTimestamp", ...) is None:
        del metadata["creationTimestamp"]
    default_pod_spec(template.setdefault("spec", {}))


def default_pod_spec(spec: Object) -> None:
    """Everything below ``spec`` of a pod."""
    setdefault = spec.setdefault
    setdefault("restartPolicy", "Always")
    setdefault("dnsPolicy", "ClusterFirst")
    setdefault("schedulerName", "default-scheduler")
    setdefault("securityContext", {})
    setdefault("terminationGracePeriodSeconds", 30)
    setdefault("enableServiceLinks", True)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for volume in spec.get("volumes") or ():
        _default_volume(volume)
    host_network = spec.get("hostNetwork")
    for container in containers_of(spec):
        default_container(container)
        if host_network:
            for port in container.get("ports") or ():
                if not port.get("hostPort"):
                    port["hostPort"] = port.get("containerPort")


def containers_of(spec: Mapping[str, Any]) -> Iterator[Object]:
    """Init, ordinary and ephemeral containers."""
    yield from spec.get("initContainers") or ()
    yield from spec.get("containers") or ()
    yield from spec.get("ephemeralContainers") or ()


def default_container(container: Object) -> None:
    """One container."""
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(container.get("image") or "")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    limits = resources.get("limits")
    if limits:
        requests = resources.setdefault("requests", {})
        for name, amount in limits.items():
            requests.setdefault(name, amount)
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for variable in container.get("env") or ():
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")
        reference = (variable.get("valueFrom") or {}).get("resourceFieldRef")
        if reference is not None:
            reference.setdefault("divisor", "0")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe is not None:
            _default_probe(probe)
    for handler in (container.get("lifecycle") or {}).values():
        if isinstance(handler, dict):
            _default_http(handler)


def _pull_policy(image: str) -> str:
    """Always for the moving tag ``latest`` (which no tag means), else IfNotPresent."""
    if "@" in image:
        return "IfNotPresent"
    _, colon, tag = image.rpartition("/")[2].partition(":")
    return "IfNotPresent" if colon and tag != "latest" else "Always"


def _default_probe(probe: Object) -> None:
    for name, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(name):
            probe[name] = value
    _default_http(probe)
    call = probe.get("grpc")
    if call is not None:
        call.setdefault("service", "")


def _default_http(handler: Object) -> None:
    get = handler.get("httpGet")
    if get is not None:
        if not get.get("path"):
            get["path"] = "/"
        if not get.get("scheme"):
            get["scheme"] = "HTTP"


def _default_volume(volume: Object) -> None:
    if not any(source in volume for source in VOLUME_SOURCES):
        volume["emptyDir"] = {}
        return
    for name in ("secret", "configMap", "downwardAPI", "projected"):
        source = volume.get(name)
        if source is not None:
            source.setdefault("defaultMode", DEFAULT_MODE)
    for item in (volume.get("downwardAPI") or {}).get("items") or ():
        _default_field(item)
    for source in (volume.get("projected") or {}).get("sources") or ():
        token = source.get("serviceAccountToken")
        if token is not None:
            token.setdefault("expirationSeconds", 3600)
        for item in (source.get("downwardAPI") or {}).get("items") or ():
            _default_field(item)
    host_path = volume.get("hostPath")
    if host_path is not None:
        host_path.setdefault("type", "")
    ephemeral = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
    if ephemeral is not None:
        ephemeral.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    iscsi = volume.get("iscsi")
    if iscsi is not None:
        iscsi.setdefault("iscsiInterface", "default")
    image = volume.get("image")
    if image is not None and not image.get("pullPolicy"):
        image["pullPolicy"] = _pull_policy(image.get("reference") or "")


def _default_field(item: Object) -> None:
    if "fieldRef" in item:
        item["fieldRef"].setdefault("apiVersion", "v1")
    if "resourceFieldRef" in item:
        item["resourceFieldRef"].setdefault("divisor", "0")


def quality_of_service(spec: Mapping[str, Any]) -> str:
    """``status.qosClass``: Guaranteed, Burstable or BestEffort, by the requests and limits of CPU and memory."""
    requested, limited, guaranteed = False, False, True
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            requested = requested or quantity.parse(requests.get(name, "0")) > 0
            limited = limited or quantity.parse(limits.get(name, "0")) > 0
            limit = limits.get(name)
            if limit is None or quantity.parse(limit) == 0 or quantity.compare(requests.get(name, limit), limit):
                guaranteed = False
    if not requested and not limited:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"
