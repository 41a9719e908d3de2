"""HorizontalPodAutoscaler: every 15 seconds, from metrics to replicas.

Metrics come from the API like any client's would: ``metrics.k8s.io`` for CPU and memory of pods, ``custom.metrics.k8s.io``
and ``external.metrics.k8s.io`` where somebody serves them. The arithmetic is in ``autoscaling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.client import resources
from sampan.kube.client.resources import HORIZONTAL_POD_AUTOSCALERS, PODS
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.status import ApiError
from sampan.kube.types import selectors
from sampan.parts.workloads import autoscaling, pods
from sampan.parts.workloads.autoscaling import Change, Decision, Memory, Proposal, Sample
from sampan.parts.workloads.scheduling.nodes import amounts

PERIOD = 15.0
"""Seconds between two looks at an autoscaler."""
POD_METRICS = Resource("metrics.k8s.io", "v1beta1", "pods")
KEPT_CHANGES = 1800.0
"""Seconds for which scaling events are remembered: the longest policy period."""

_TARGETS: dict[tuple[str, str], Resource] = {
    ("apps", "Deployment"): resources.DEPLOYMENTS,
    ("apps", "ReplicaSet"): resources.REPLICA_SETS,
    ("apps", "StatefulSet"): resources.STATEFUL_SETS,
    ("", "ReplicationController"): resources.REPLICATION_CONTROLLERS,
}


class MetricUnavailableError(Exception):
    """A metric cannot be had; ``reason`` is that of the ScalingActive condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class AutoscalerController(Controller):
    """HorizontalPodAutoscalers of autoscaling/v2."""

    name = "horizontal-pod-autoscaler"

    def __init__(self, context: ControlContext) -> None:
        super().__init__(context)
        self._memories: dict[str, Memory] = {}
        self._next: dict[Key, tuple[float, Object]] = {}
        """When to look again, unless the spec is another by then."""

    def sources(self) -> list[Source]:
        return [For(HORIZONTAL_POD_AUTOSCALERS)]

    async def reconcile(self, key: Key) -> float | None:
        cached = self.informer(HORIZONTAL_POD_AUTOSCALERS).get(key)
        if cached is None:
            self._next.pop(key, None)
            return None
        now = self.clock.monotonic()
        due, spec = self._next.get(key, (0.0, None))
        if due > now and spec == cached["spec"]:
            return due - now
        self._next[key] = (now + PERIOD, cached["spec"])
        autoscaler: Object = copy(cached)
        await self._look(autoscaler)
        if autoscaler.get("status") != cached.get("status"):
            await self.client.update(HORIZONTAL_POD_AUTOSCALERS, autoscaler, subresource="status")
        return PERIOD

    async def _look(self, autoscaler: Object) -> None:
        status = autoscaler.setdefault("status", {})
        status["conditions"] = copy(status.get("conditions") or [])
        status.setdefault("desiredReplicas", 0)
        reference = autoscaler["spec"]["scaleTargetRef"]
        namespace = autoscaler["metadata"]["namespace"]
        try:
            resource = self._resource(reference)
            scale = await self.client.get(resource, reference["name"], namespace, subresource="scale")
        except ApiError as error:
            self._condition(
                autoscaler,
                "AbleToScale",
                "False",
                "FailedGetScale",
                f"the HPA controller was unable to get the target's current scale: {error.message}",
            )
            self.recorder.event(autoscaler, "Warning", "FailedGetScale", error.message)
            return
        self._condition(
            autoscaler,
            "AbleToScale",
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        )
        current = int(dig(scale, "spec", "replicas", default=0))
        status["currentReplicas"] = current
        if current == 0:
            self._condition(
                autoscaler,
                "ScalingActive",
                "False",
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            )
            status["desiredReplicas"] = 0
            return
        memory = self._memories.setdefault(autoscaler["metadata"]["uid"], Memory())
        low, high = int(autoscaler["spec"].get("minReplicas", 1)), int(autoscaler["spec"]["maxReplicas"])
        if not low <= current <= high:
            target = high if current > high else low
            why = (
                "Current number of replicas above Spec.MaxReplicas"
                if current > high
                else "Current number of replicas below Spec.MinReplicas"
            )
            await self._rescale(autoscaler, resource, scale, current, target, why, memory)
            return
        proposals = await self._proposals(autoscaler, scale, current)
        if proposals is None:
            status["desiredReplicas"] = current
            return
        best, name = max(proposals, key=lambda one: one[0].replicas)
        decision = autoscaling.decide(autoscaler["spec"], current, best.replicas, memory, self.clock.monotonic())
        self._report(autoscaler, decision)
        if decision.replicas == current:
            status["desiredReplicas"] = current
            return
        why = f"{name} above target" if decision.replicas > current else "All metrics below target"
        await self._rescale(autoscaler, resource, scale, current, decision.replicas, why, memory)

    def _resource(self, reference: Mapping[str, Any]) -> Resource:
        group, _, version = reference.get("apiVersion", "apps/v1").rpartition("/")
        known = _TARGETS.get((group, reference["kind"]))
        if known is not None:
            return known
        return Resource(group, version, f"{reference['kind'].lower()}s")

    async def _rescale(
        self, autoscaler: Object, resource: Resource, scale: Object, current: int, target: int, why: str, memory: Memory
    ) -> None:
        status = autoscaler["status"]
        name, namespace = autoscaler["spec"]["scaleTargetRef"]["name"], autoscaler["metadata"]["namespace"]
        try:
            patch = {"spec": {"replicas": target}}
            await self.client.patch(resource, name, patch, namespace, subresource="scale")
        except ApiError as error:
            message = f"the HPA controller was unable to update the target scale: {error.message}"
            self._condition(autoscaler, "AbleToScale", "False", "FailedUpdateScale", message)
            event = f"New size: {target}; reason: {why}; error: {error.message}"
            self.recorder.event(autoscaler, "Warning", "FailedRescale", event)
            status["desiredReplicas"] = current
            return
        message = f"the HPA controller was able to update the target scale to {target}"
        self._condition(autoscaler, "AbleToScale", "True", "SucceededRescale", message)
        self.recorder.event(autoscaler, "Normal", "SuccessfulRescale", f"New size: {target}; reason: {why}")
        now = self.clock.monotonic()
        changes = memory.ups if target > current else memory.downs
        changes.append(Change(now, abs(target - current)))
        memory.ups = [one for one in memory.ups if one.when > now - KEPT_CHANGES]
        memory.downs = [one for one in memory.downs if one.when > now - KEPT_CHANGES]
        status["desiredReplicas"] = target
        status["lastScaleTime"] = pods.format_time(self.clock.now())

    # -- metrics

    async def _proposals(self, autoscaler: Object, scale: Object, current: int) -> list[tuple[Proposal, str]] | None:
        """One proposal a metric; None when none could be computed, or a scale-down would rest on half of them."""
        found: list[tuple[Proposal, str]] = []
        reported: list[Object] = []
        failure: MetricUnavailableError | None = None
        for metric in autoscaler["spec"].get("metrics") or ():
            try:
                proposal, name, report = await self._measure(autoscaler, scale, metric, current)
            except MetricUnavailableError as error:
                failure = failure or error
                self.recorder.event(autoscaler, "Warning", error.reason, str(error))
                continue
            found.append((proposal, name))
            reported.append(report)
        autoscaler["status"]["currentMetrics"] = reported
        if failure is not None and (not found or max(one.replicas for one, _ in found) < current):
            text = f"the HPA was unable to compute the replica count: {failure}"
            self._condition(autoscaler, "ScalingActive", "False", failure.reason, text)
            message = f"invalid metrics ({len(autoscaler['spec'].get('metrics') or ())} invalid out of {len(autoscaler['spec'].get('metrics') or ())}), first error is: {failure}"
            self.recorder.event(autoscaler, "Warning", "FailedComputeMetricsReplicas", message)
            return None
        names = found[0][1] if found else ""
        self._condition(
            autoscaler,
            "ScalingActive",
            "True",
            "ValidMetricFound",
            f"the HPA was able to successfully calculate a replica count from {names}",
        )
        return found

    async def _measure(
        self, autoscaler: Object, scale: Object, metric: Mapping[str, Any], current: int
    ) -> tuple[Proposal, str, Object]:
        match metric["type"]:
            case "Resource":
                source = metric["resource"]
                return await self._resource_metric(autoscaler, scale, source, None, current)
            case "ContainerResource":
                source = metric["containerResource"]
                return await self._resource_metric(autoscaler, scale, source, source["container"], current)
            case "External":
                return await self._external_metric(autoscaler, scale, metric["external"], current)
            case "Pods":
                return await self._custom_metric(autoscaler, scale, metric["pods"], "pods", current)
            case "Object":
                return await self._custom_metric(autoscaler, scale, metric["object"], "object", current)
        raise MetricUnavailableError("InvalidMetricSourceType", f"unknown metric source type {metric['type']!r}")

    async def _target_pods(self, autoscaler: Object, scale: Object) -> list[Object]:
        selector = dig(scale, "status", "selector", default="")
        if not selector:
            raise MetricUnavailableError("InvalidSelector", "the HPA target's scale is missing a selector")
        matcher = selectors.parse_labels(selector)
        namespace = autoscaler["metadata"]["namespace"]
        everything = self.informer(PODS).objects(namespace)
        return [
            pod for pod in everything if matcher.matches(pod["metadata"].get("labels") or {}) and pods.is_active(pod)
        ]

    async def _resource_metric(
        self, autoscaler: Object, scale: Object, source: Mapping[str, Any], container: str | None, current: int
    ) -> tuple[Proposal, str, Object]:
        resource_name, target = source["name"], source["target"]
        owned = await self._target_pods(autoscaler, scale)
        usage = await self._usage(autoscaler["metadata"]["namespace"], resource_name, container)
        requests = {pod["metadata"]["name"]: _request(pod, resource_name, container) for pod in owned}
        samples = [Sample(_counts(pod), usage.get(pod["metadata"]["name"])) for pod in owned]
        divisor = 1000 if resource_name == "cpu" else 1
        ignores = resource_name == "cpu"
        if target["type"] == "Utilization":
            lacking = next((name for name, asked in requests.items() if not asked), None)
            if lacking is not None:
                raise MetricUnavailableError(
                    "FailedGetResourceMetric",
                    f"failed to get {resource_name} utilization: missing request for {resource_name} in container of Pod {lacking}",
                )
            asked = sum(requests.values()) / max(1, len(requests))
            wanted = asked * target["averageUtilization"] / 100
        else:
            wanted = float(amounts({resource_name: target["averageValue"]})[resource_name])
        proposal = autoscaling.propose(current, wanted, samples, ignores_unready=ignores)
        if proposal is None:
            raise MetricUnavailableError(
                "FailedGetResourceMetric",
                f"failed to get {resource_name} utilization: did not receive metrics for targeted pods (pods might be unready)",
            )
        average = f"{round(proposal.value)}m" if divisor == 1000 else str(round(proposal.value))
        measured: Object = {"averageValue": average}
        if target["type"] == "Utilization":
            measured["averageUtilization"] = round(proposal.value * target["averageUtilization"] / wanted)
        kind = "containerResource" if container else "resource"
        report: Object = {"type": kind[0].upper() + kind[1:], kind: {"name": resource_name, "current": measured}}
        if container:
            report[kind]["container"] = container
        suffix = "utilization (percentage of request)" if target["type"] == "Utilization" else ""
        return proposal, f"{resource_name} resource {suffix}".strip(), report

    async def _usage(self, namespace: str, resource_name: str, container: str | None) -> dict[str, int]:
        try:
            listed = await self.client.list(POD_METRICS, namespace)
        except ApiError as error:
            raise MetricUnavailableError(
                "FailedGetResourceMetric", f"unable to get metrics for resource {resource_name}: {error.message}"
            ) from error
        return {
            item["metadata"]["name"]: sum(
                amounts(one.get("usage")).get(resource_name, 0)
                for one in item["containers"]
                if container is None or one["name"] == container
            )
            for item in listed.items
        }

    async def _custom_metric(
        self, autoscaler: Object, scale: Object, source: Mapping[str, Any], kind: str, current: int
    ) -> tuple[Proposal, str, Object]:
        name, target = source["metric"]["name"], source["target"]
        namespace = autoscaler["metadata"]["namespace"]
        resource = Resource(
            "custom.metrics.k8s.io", "v1beta2", "pods" if kind == "pods" else _plural(source["describedObject"])
        )
        object_name = "*" if kind == "pods" else source["describedObject"]["name"]
        try:
            answer = await self.client.get(resource, object_name, namespace, subresource=name)
        except ApiError as error:
            reason = "FailedGetPodsMetric" if kind == "pods" else "FailedGetObjectMetric"
            raise MetricUnavailableError(reason, f"unable to get metric {name}: {error.message}") from error
        values = {one["describedObject"]["name"]: _milli(one["value"]) for one in answer.get("items") or ()}
        wanted = float(_milli(target.get("averageValue") or target.get("value")))
        if kind == "pods":
            owned = await self._target_pods(autoscaler, scale)
            samples = [Sample(_counts(pod), values.get(pod["metadata"]["name"])) for pod in owned]
            proposal = autoscaling.propose(current, wanted, samples, ignores_unready=False)
            if proposal is None:
                raise MetricUnavailableError("FailedGetPodsMetric", f"unable to get metric {name}: no metrics returned")
            measured = {"averageValue": f"{round(proposal.value)}m"}
        elif "averageValue" in target:
            proposal = autoscaling.propose_total(current, wanted, float(sum(values.values())))
            measured = {"averageValue": f"{round(proposal.value)}m"}
        else:
            ready = sum(_counts(pod) for pod in await self._target_pods(autoscaler, scale))
            proposal = autoscaling.propose_value(current, ready, wanted, float(sum(values.values())))
            measured = {"value": f"{round(proposal.value)}m"}
        report: Object = {"type": kind.capitalize(), kind: {"metric": source["metric"], "current": measured}}
        if kind == "object":
            report[kind]["describedObject"] = source["describedObject"]
        return proposal, f"{kind} metric {name}", report

    async def _external_metric(
        self, autoscaler: Object, scale: Object, source: Mapping[str, Any], current: int
    ) -> tuple[Proposal, str, Object]:
        name, target = source["metric"]["name"], source["target"]
        resource = Resource("external.metrics.k8s.io", "v1beta1", name)
        selector = source["metric"].get("selector")
        text = str(selectors.of_object(selector)) if selector else None
        try:
            listed = await self.client.list(resource, autoscaler["metadata"]["namespace"], label_selector=text)
        except ApiError as error:
            message = f"unable to get external metric {name}: {error.message}"
            raise MetricUnavailableError("FailedGetExternalMetric", message) from error
        total = float(sum(_milli(one["value"]) for one in listed.items))
        if "averageValue" in target:
            proposal = autoscaling.propose_total(current, float(_milli(target["averageValue"])), total)
            measured = {"averageValue": f"{round(proposal.value)}m"}
        else:
            ready = sum(_counts(pod) for pod in await self._target_pods(autoscaler, scale))
            proposal = autoscaling.propose_value(current, ready, float(_milli(target["value"])), total)
            measured = {"value": f"{round(proposal.value)}m"}
        report = {"type": "External", "external": {"metric": source["metric"], "current": measured}}
        return proposal, f"external metric {name}", report

    # -- conditions

    def _report(self, autoscaler: Object, decision: Decision) -> None:
        self._condition(autoscaler, "AbleToScale", "True", decision.able_reason, decision.able_message)
        limited = "True" if decision.limited else "False"
        self._condition(autoscaler, "ScalingLimited", limited, decision.limited_reason, decision.limited_message)

    def _condition(self, autoscaler: Object, kind: str, status: str, reason: str, message: str) -> None:
        pods.set_condition(autoscaler["status"]["conditions"], kind, status, reason, message, self.clock.now())


def _request(pod: Object, resource_name: str, container: str | None) -> int:
    return sum(
        amounts(dig(one, "resources", "requests", default={})).get(resource_name, 0)
        for one in pod["spec"]["containers"]
        if container is None or one["name"] == container
    )


def _counts(pod: Object) -> bool:
    return pods.phase(pod) == "Running" and pods.is_ready(pod)


def _milli(quantity: Any) -> int:
    return amounts({"cpu": quantity})["cpu"]


def _plural(reference: Mapping[str, Any]) -> str:
    group = reference.get("apiVersion", "v1").rpartition("/")[0]
    plural = f"{reference['kind'].lower()}s"
    return f"{plural}.{group}" if group else plural
