"""A kubelet without processes: plays the node agent through the API, for tests of what stands above it.

It registers nodes, renews their leases, and carries every pod bound to one of them through its life: Running and Ready at once,
ended when the pod says so, gone when it is deleted. A pod directs its own play by annotations::

    play/ready: "false"     runs, but never becomes ready
    play/start: "false"     stays Pending, as with an image that cannot be pulled
    play/exit: "3"          ends with this exit code ...
    play/after: "60"        ... after this many seconds (default 0)
    play/linger: "30"       takes this many seconds to go after its deletion
"""

from __future__ import annotations

import itertools
from typing import Any

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, dig
from sampan.kube.resources import LEASES, NODES, PODS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_time
from sampan.parts.workloads import pods

HEARTBEAT = 20.0
"""Seconds between two renewals of a node's lease."""


class FakeKubelet(Controller):
    """Nodes and the pods on them."""

    name = "fake-kubelet"
    workers = 16

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self.nodes: set[str] = set()
        self.silent: set[str] = set()
        """Nodes that are cut off: neither heartbeats nor pod changes."""
        self.plays: dict[str, str] = {}
        """Annotations that every pod has unless it says otherwise."""
        self._addresses = itertools.count(1)

    def sources(self) -> list[Source]:
        return [For(PODS)]

    async def add_node(
        self, name: str = "node-1", cpu: str = "8", memory: str = "16Gi", pod_limit: int = 250, **labels: str
    ) -> None:
        """Register a node and keep its lease."""
        capacity = {"cpu": cpu, "memory": memory, "pods": str(pod_limit), "ephemeral-storage": "100Gi"}
        now = format_time(self.clock.now())
        beat = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        node: Object = {
            "metadata": {
                "name": name,
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
                | {key.replace("__", "/").replace("_", "."): value for key, value in labels.items()},
            },
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True",
                        "reason": "KubeletReady",
                        "message": "kubelet is posting ready status",
                        **beat,
                    }
                ],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            },
        }
        made = await self.client.create(NODES, node)
        await self.client.update(NODES, made | {"status": node["status"]}, subresource="status")
        self.nodes.add(name)
        self.context.tasks.keep(f"heartbeat/{name}", lambda: self._beat(name))

    async def report_node(self, name: str, ready: str, **fields: Any) -> None:
        """Post a node's own view of its readiness."""
        node = await self.client.get(NODES, name)
        now = self.clock.now()
        pods.set_condition(
            node["status"]["conditions"],
            "Ready",
            ready,
            "KubeletReady" if ready == "True" else "KubeletNotReady",
            "",
            now,
        )
        node["status"]["conditions"][0]["lastHeartbeatTime"] = format_time(now)
        await self.client.update(NODES, node | fields, subresource="status")

    async def _beat(self, name: str) -> None:
        while True:
            if name in self.nodes and name not in self.silent:
                await self._renew(name)
                node = self.informer(NODES).get(Key("", name))
                if node is not None and (pods.condition(node, "Ready") or {}).get("status") == "Unknown":
                    await self.report_node(name, "True")
            await self.clock.sleep(HEARTBEAT)

    async def _renew(self, name: str) -> None:
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        lease = {"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec}
        try:
            await self.client.patch(LEASES, name, {"spec": spec}, "kube-node-lease")
        except ApiError as error:
            if not error.not_found:
                raise
            await self.client.create(LEASES, lease, "kube-node-lease")

    async def reconcile(self, key: Key) -> float | None:
        pod = self.informer(PODS).get(key)
        node = dig(pod, "spec", "nodeName")
        if pod is None or node not in self.nodes or node in self.silent:
            return None
        play = {**self.plays, **(pod["metadata"].get("annotations") or {})}
        try:
            return await self._act(pod, play)
        except ApiError as error:
            if error.not_found or error.conflict:
                return None
            raise

    async def _act(self, pod: Object, play: dict[str, str]) -> float | None:
        now = self.clock.now()
        metadata, phase = pod["metadata"], pods.phase(pod)
        if metadata.get("deletionTimestamp"):
            grace = metadata.get("deletionGracePeriodSeconds") or 0
            asked = pods.parse_time(metadata["deletionTimestamp"]).timestamp() - grace
            left = asked + float(play.get("play/linger", 0)) - now.timestamp()
            if left > 0 and phase == "Running":
                return left
            if phase == "Running":
                code = 0 if pod["spec"].get("restartPolicy") == "Always" else 143
                await self._write(pod, "Succeeded" if code == 0 else "Failed", ready=False, code=code)
            await self.client.delete(PODS, metadata["name"], metadata["namespace"], grace_period=0, uid=metadata["uid"])
            return None
        if phase == "Pending":
            if play.get("play/start") == "false":
                return None
            await self._write(pod, "Running", ready=play.get("play/ready") != "false")
            return None
        if phase == "Running" and "play/exit" in play:
            since = pods.parse_time(pod["status"]["startTime"]).timestamp()
            left = since + float(play.get("play/after", 0)) - now.timestamp()
            if left > 0:
                return left
            code = int(play["play/exit"])
            await self._write(pod, "Failed" if code else "Succeeded", ready=False, code=code)
        return None

    async def _write(self, pod: Object, phase: str, *, ready: bool, code: int | None = None) -> None:
        now = self.clock.now()
        stamp = format_time(now)
        status = pod.get("status") or {}
        conditions = [dict(one) for one in status.get("conditions") or ()]
        for kind in ("Initialized", "ContainersReady", "Ready"):
            value = "True" if ready or kind == "Initialized" else "False"
            pods.set_condition(conditions, kind, value, "", "", now)
        state: Object = {"running": {"startedAt": stamp}}
        if code is not None:
            state = {
                "terminated": {
                    "exitCode": code,
                    "reason": "Error" if code else "Completed",
                    "startedAt": status.get("startTime", stamp),
                    "finishedAt": stamp,
                }
            }
        statuses = [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": "",
                "ready": ready,
                "restartCount": 0,
                "state": state,
            }
            for one in pod["spec"]["containers"]
        ]
        address = status.get("podIP") or f"10.1.{(number := next(self._addresses)) // 250}.{number % 250 + 1}"
        patch = {
            "phase": phase,
            "conditions": conditions,
            "containerStatuses": statuses,
            "startTime": status.get("startTime", stamp),
            "podIP": address,
            "podIPs": [{"ip": address}],
            "hostIP": "10.0.0.1",
        }
        metadata = pod["metadata"]
        await self.client.patch(
            PODS,
            metadata["name"],
            {"status": patch, "metadata": {"uid": metadata["uid"]}},
            metadata["namespace"],
            subresource="status",
        )
