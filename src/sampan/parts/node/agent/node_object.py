"""The Node object: what this machine has, how it is, and that it is alive. Pure, but for reading the machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sampan import __version__
from sampan.kube.objects import Object
from sampan.kube.server.version import KUBERNETES_VERSION
from sampan.kube.types.duration import format_time
from sampan.parts.node.runtime.interface import ADDRESSED

PODS_CGROUP = "sampan.dev/pods-cgroup"
"""Annotation that tells the network part where the pods' sockets can be reached."""
PODS_TABLE = "sampan.dev/pods-table"
"""Annotation that names the nf_tables table where the network part serves pods with network namespaces, and the pod range."""
LEASE_SECONDS = 40


def machine(directory: Path) -> dict[str, Any]:
    """Facts about this machine: cpu, memory, disk, names."""
    memory = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            memory = int(line.split()[1])
    disk = shutil.disk_usage(directory)

    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    names = dict(line.partition("=")[::2] for line in read("/etc/os-release").splitlines())
    return {
        "cpu": len(os.sched_getaffinity(0)),
        "memory": memory,
        "disk": disk.total,
        "os_image": names.get("PRETTY_NAME", "Linux").strip('"'),
        "machine_id": read("/etc/machine-id") or read("/var/lib/dbus/machine-id") or "unknown",
        "system_uuid": read("/sys/class/dmi/id/product_uuid") or read("/etc/machine-id") or "unknown",
        "boot_id": read("/proc/sys/kernel/random/boot_id"),
        "kernel": platform.release(),
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
    }


def node(
    name: str, pod_range: str, labels: dict[str, str], facts: dict[str, Any], *, cgroup: str = "", table: str = ""
) -> Object:
    """The object as a node registers it.

    ``cgroup`` is the directory above all its pods, where Services are attached; ``table`` is where they are for pods that have
    network namespaces.
    """
    own = {
        "beta.kubernetes.io/arch": facts["architecture"],
        "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": facts["architecture"],
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {**own, **labels},
            "annotations": {
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                PODS_CGROUP: cgroup,
                PODS_TABLE: table,
            },
        },
        "spec": {"podCIDR": pod_range, "podCIDRs": [pod_range], "providerID": f"sampan://{name}"},
    }


def status(
    name: str,
    facts: dict[str, Any],
    *,
    old: Object,
    address: str,
    port: int,
    pods: int,
    tier: str,
    why: str,
    images: Sequence[object],
    ready: bool,
    pressures: Collection[str] = (),
    now: datetime,
) -> Object:
    """The node's status."""
    capacity = {
        "cpu": str(facts["cpu"]),
        "memory": f"{facts['memory']}Ki",
        "ephemeral-storage": f"{facts['disk'] // 1024}Ki",
        "pods": str(pods),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    }
    short, full = "MemoryPressure" in pressures, "DiskPressure" in pressures
    private = {
        "T1": "pods have addresses, files and process ids of their own",
        "T1n": "pods have network interfaces, addresses, files and process ids of their own",
        "T2": "pods have files and process ids of their own; addresses are 127.x.y.z and $PORT",
        "T3": "pods share files and process ids; addresses are 127.x.y.z and $PORT",
    }[tier]
    wanted = [
        (
            "MemoryPressure",
            "True" if short else "False",
            "KubeletHasInsufficientMemory" if short else "KubeletHasSufficientMemory",
            f"kubelet has {'in' if short else ''}sufficient memory available",
        ),
        (
            "DiskPressure",
            "True" if full else "False",
            "KubeletHasDiskPressure" if full else "KubeletHasNoDiskPressure",
            "kubelet has disk pressure" if full else "kubelet has no disk pressure",
        ),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("PodIsolation", "True" if tier in ADDRESSED else "False", tier, private + (f" ({why})" if why else "")),
        (
            "Ready",
            "True" if ready else "False",
            "KubeletReady" if ready else "KubeletNotReady",
            "kubelet is posting ready status" if ready else "the container runtime is down",
        ),
    ]
    before = {condition["type"]: condition for condition in (old.get("status") or {}).get("conditions") or ()}
    stamp = format_time(now)
    conditions = [c for kind, c in before.items() if kind not in {entry[0] for entry in wanted}]
    for kind, value, reason, message in wanted:
        known = before.get(kind)
        since = known["lastTransitionTime"] if known and known["status"] == value else stamp
        conditions.append(
            {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": stamp,
                "lastTransitionTime": since,
            }
        )
    return {
        "capacity": capacity,
        "allocatable": dict(capacity),
        "conditions": conditions,
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "architecture": facts["architecture"],
            "bootID": facts["boot_id"],
            "containerRuntimeVersion": f"sampan://{__version__}",
            "kernelVersion": facts["kernel"],
            "kubeProxyVersion": KUBERNETES_VERSION,
            "kubeletVersion": KUBERNETES_VERSION,
            "machineID": facts["machine_id"],
            "operatingSystem": "linux",
            "osImage": facts["os_image"],
            "systemUUID": facts["system_uuid"],
        },
        "images": list(images)[:50],
        "runtimeHandlers": [{"name": ""}],
    }
