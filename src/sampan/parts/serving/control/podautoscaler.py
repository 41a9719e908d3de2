"""PodAutoscaler: brings a revision's Deployment to the number of pods its autoscaler wants, to zero and back.

The KPA class follows ``autoscaling.scaler`` and decides whether requests must pass the gate (the ServerlessService's mode). The
HPA class leaves the sizing to a HorizontalPodAutoscaler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sampan.kube.client.resources import CONFIG_MAPS, DEPLOYMENTS, HORIZONTAL_POD_AUTOSCALERS, PODS
from sampan.kube.control.conditions import ConditionSet, condition
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.types.duration import parse_time
from sampan.parts.serving import keys, names
from sampan.parts.serving.autoscaling import schedule
from sampan.parts.serving.autoscaling import settings as autoscaling
from sampan.parts.serving.autoscaling.kpa import Decision, activators, within_bounds
from sampan.parts.serving.autoscaling.scaler import TICK, Scaler
from sampan.parts.serving.autoscaling.settings import RevisionSettings, duration
from sampan.parts.serving.configmaps import Config, everything
from sampan.parts.serving.lookups import pods_of_revision
from sampan.parts.serving.resources import METRICS, POD_AUTOSCALERS, SERVERLESS_SERVICES, SERVICES

ACTIVATION_GRACE = 30.0
"""Seconds beyond the progress deadline that an activation may take before it is given up."""
DEPLOYMENT_SOON = 0.05
"""Seconds until a Deployment that was just created is looked for again."""
STATUS_LATER = 0.2
"""Seconds by which statuses stand back when a revision wakes: their writes would only delay those that lead to a pod, and by then
most have nothing but the outcome to tell."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
TIMESERIES = "alicloud.autoscaling.service.knative.dev/timeseries"
"""On a Service: the ConfigMap with its time series."""
METRIC_TARGET = "alicloud.autoscaling.knative.dev/metric-target"
"""On a revision: ``cpu:50`` or ``cpu:50,memory:50``, percent of what is requested."""
NO_TRAFFIC = ("NoTraffic", "The target is not receiving traffic.")
QUEUED = ("Queued", "Requests to the target are being buffered as resources are provisioned.")


class PodAutoscalerController(Controller):
    """PodAutoscalers of autoscaling.internal.knative.dev."""

    name = "podautoscaler-controller"
    workers = 8

    def __init__(self, context: ControlContext, config: Config) -> None:
        super().__init__(context)
        self._config = config
        self.scaler = Scaler(self.clock, self.queue.add)
        self.busy: Callable[[Key], Mapping[str, int]] = lambda _: {}
        """Requests under way by pod IP; the gate knows."""

    def sources(self) -> list[Source]:
        return [
            For(POD_AUTOSCALERS),
            Watches(CONFIG_MAPS, everything(lambda: self.informer(POD_AUTOSCALERS))),
            Owns(SERVERLESS_SERVICES, "PodAutoscaler"),
            Owns(HORIZONTAL_POD_AUTOSCALERS, "PodAutoscaler"),
            Watches(PODS, self._of_pod),
            Watches(CONFIG_MAPS, self._on_schedule),
        ]

    def _of_pod(self, pod: Object) -> list[Key]:
        """At once while the revision comes up; later a little after, behind the writes that a waiting request needs."""
        name = dig(pod, "metadata", "labels", keys.REVISION)
        if not name:
            return []
        key = Key(pod["metadata"]["namespace"], name)
        autoscaler = self.informer(POD_AUTOSCALERS).get(key)
        if (condition(autoscaler, "ScaleTargetInitialized") or {}).get("status") != "True":
            return [key]
        self.queue.add_after(key, STATUS_LATER)
        return []

    async def reconcile(self, key: Key) -> float | None:
        autoscaler = self.informer(POD_AUTOSCALERS).get(key)
        if autoscaler is None or autoscaler["metadata"].get("deletionTimestamp"):
            self.scaler.forget(key)
            return None
        annotations = autoscaler["metadata"].get("annotations") or {}
        concurrency = int(autoscaler["spec"].get("containerConcurrency") or 0)
        cluster = self._config.autoscaler()
        settings = autoscaling.read(annotations, concurrency, cluster)
        deployment = self.informer(DEPLOYMENTS).get(Key(key.namespace, names.deployment(key.name)))
        if deployment is None:
            return DEPLOYMENT_SOON
        dependents = ("Active", "ScaleTargetInitialized", "SKSReady")
        conditions = ConditionSet(autoscaler, dependents, self.clock.now())
        ready = self._ready_pods(autoscaler)
        if settings.autoscaler_class in (autoscaling.HPA, autoscaling.PPA):
            return await self._follow_hpa(autoscaler, settings, deployment, conditions, ready)
        if settings.autoscaler_class != autoscaling.KPA:
            return None
        return await self._follow_kpa(autoscaler, settings, deployment, conditions, ready, cluster.activator_capacity)

    def _ready_pods(self, autoscaler: Object) -> int:
        uid = dig(autoscaler, "metadata", "labels", keys.REVISION_UID, default="")
        return sum(
            (condition(pod, "Ready") or {}).get("status") == "True" and not pod["metadata"].get("deletionTimestamp")
            for pod in pods_of_revision(self.informer(PODS), autoscaler["metadata"]["namespace"], uid)
        )

    # -- KPA

    async def _follow_kpa(
        self,
        autoscaler: Object,
        settings: RevisionSettings,
        deployment: Object,
        conditions: ConditionSet,
        ready: int,
        capacity: float,
    ) -> float | None:
        key = Key.of(autoscaler)
        await ensure(self, METRICS, autoscaler, self._metric(autoscaler, settings), create_only=True)
        reachable = autoscaler["spec"].get("reachability") != "Unreachable"
        self.scaler.ensure(key, settings, ready)
        decision = self.scaler.decide(key, ready, reachable=reachable)
        current = int(deployment["spec"].get("replicas", 1))
        initialized = conditions.is_true("ScaleTargetInitialized")
        wanted, again = current, None
        if decision.pods >= 0 or conditions.get("Active")[0] == "Unknown":
            # without data an activation still follows its bounds, so that a revision that cannot come up is given up
            wanted = within_bounds(max(0, decision.pods), settings, reachable=reachable, initialized=initialized)
            if wanted == 0 and current > 0:
                wanted, again = self._to_zero(autoscaler, settings, conditions, current)
        if 0 < wanted < current:
            await self._spare_busy_pods(autoscaler)
        if wanted != current:
            await self._scale(deployment, wanted)
            if current == 0:
                return STATUS_LATER
        self._judge(conditions, settings, wanted, decision, ready, current, reachable=reachable)
        mode = "Serve" if wanted > 0 and ready > 0 and decision.excess_burst_capacity >= 0 else "Proxy"
        if not conditions.is_true("Active"):
            mode = "Proxy"
        sks = await self._serverless_service(autoscaler, mode, activators(ready, settings, capacity))
        conditions.mirror("SKSReady", sks.get("status"))
        await self._write(autoscaler, conditions, wanted, ready)
        if current == 0 and wanted == 0 and not self._is_waited_for(key):
            return None  # asleep: the gate pokes
        return min(TICK, again) if again is not None else TICK

    def _is_waited_for(self, key: Key) -> bool:
        return self.clock.monotonic() - self.scaler.idle_since(key) < TICK

    def _to_zero(
        self, autoscaler: Object, settings: RevisionSettings, conditions: ConditionSet, current: int
    ) -> tuple[int, float | None]:
        """How many pods to keep on the way to zero, and when to look again."""
        if not settings.scale_to_zero:
            return 1, None
        active = condition(autoscaler, "Active")
        status = active["status"] if active is not None else "Unknown"
        since = self._since(active)
        if status == "Unknown":
            patience = self._progress_deadline(autoscaler) + ACTIVATION_GRACE
            if since > patience:
                conditions.false("Active", "TimedOut", NO_TRAFFIC[1])
                return 0, None
            return current, patience - since + 1
        if status == "True":
            if since >= settings.window:
                conditions.false("Active", *NO_TRAFFIC)
                return 1, settings.grace_period
            return 1, settings.window - since
        hold = max(settings.grace_period, settings.retention)
        if since >= hold:
            return 0, None
        return 1, hold - since

    def _progress_deadline(self, autoscaler: Object) -> float:
        text = dig(autoscaler, "metadata", "annotations", keys.PROGRESS_DEADLINE)
        return duration(text) if text else self._config.progress_deadline()

    def _since(self, found: Object | None) -> float:
        """Seconds since a condition last changed."""
        if found is None or not found.get("lastTransitionTime"):
            return 0.0
        changed = parse_time(found["lastTransitionTime"])
        return (self.clock.now() - changed).total_seconds()

    def _judge(
        self,
        conditions: ConditionSet,
        settings: RevisionSettings,
        wanted: int,
        decision: Decision,
        ready: int,
        current: int,
        *,
        reachable: bool,
    ) -> None:
        initialized = conditions.is_true("ScaleTargetInitialized")
        # a revision on its way out is not short of pods: it would wait for them instead of going
        low = settings.min_scale if reachable else 0
        threshold = max(low, 1 if initialized else settings.initial_scale)
        if not initialized and ready >= threshold:
            conditions.true("ScaleTargetInitialized")
        if wanted == 0 or (decision.pods == 0 and conditions.get("Active")[0] == "False"):
            if conditions.get("Active")[0] != "False":
                conditions.false("Active", *NO_TRAFFIC)
        elif ready >= threshold:
            if not (conditions.get("Active")[0] == "False" and decision.pods <= 0):
                conditions.true("Active")
        elif not (decision.pods < 0 and conditions.get("Active")[0] == "False" and current == 0):
            conditions.unknown("Active", *QUEUED)

    async def _spare_busy_pods(self, autoscaler: Object) -> None:
        """Let the pods with the fewest requests under way go first: a long task is not cut off by a smaller scale."""
        metadata = autoscaler["metadata"]
        busy = self.busy(Key.of(autoscaler))
        uid = dig(metadata, "labels", keys.REVISION_UID, default="")
        for pod in pods_of_revision(self.informer(PODS), metadata["namespace"], uid):
            cost = str(busy.get(dig(pod, "status", "podIP", default=""), 0))
            if dig(pod, "metadata", "annotations", DELETION_COST, default="0") != cost:
                patch = {"metadata": {"annotations": {DELETION_COST: cost}}}
                await self.client.patch(PODS, pod["metadata"]["name"], patch, metadata["namespace"])

    async def _scale(self, deployment: Object, replicas: int) -> None:
        metadata = deployment["metadata"]
        patch = [{"op": "add", "path": "/spec/replicas", "value": replicas}]
        await self.client.patch(
            DEPLOYMENTS, metadata["name"], patch, metadata["namespace"], patch_type="json", subresource="scale"
        )

    async def _serverless_service(self, autoscaler: Object, mode: str, count: int) -> Object:
        metadata = autoscaler["metadata"]
        limit = int(autoscaler["spec"].get("containerConcurrency") or 0)
        wanted: Object = {
            "apiVersion": "networking.internal.knative.dev/v1alpha1",
            "kind": "ServerlessService",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": dict(metadata.get("labels") or {}),
                "annotations": {keys.LIMIT: str(limit)} if limit else {},
            },
            "spec": {
                "mode": mode,
                "numActivators": count,
                "protocolType": autoscaler["spec"].get("protocolType", "http1"),
                "objectRef": autoscaler["spec"]["scaleTargetRef"],
            },
        }
        return await ensure(self, SERVERLESS_SERVICES, autoscaler, wanted, exact=())

    def _metric(self, autoscaler: Object, settings: RevisionSettings) -> Object:
        metadata = autoscaler["metadata"]
        return {
            "apiVersion": "autoscaling.internal.knative.dev/v1alpha1",
            "kind": "Metric",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": dict(metadata.get("labels") or {}),
            },
            "spec": {
                "scrapeTarget": names.private_service(metadata["name"]),
                "stableWindow": int(settings.window * 1_000_000_000),
                "panicWindow": int(settings.panic_window * 1_000_000_000),
            },
        }

    # -- HPA

    async def _follow_hpa(
        self,
        autoscaler: Object,
        settings: RevisionSettings,
        deployment: Object,
        conditions: ConditionSet,
        ready: int,
    ) -> float | None:
        minimum, again = 0 if autoscaler["spec"].get("reachability") == "Unreachable" else settings.min_scale, None
        if settings.autoscaler_class == autoscaling.PPA:
            minimum, again = self._scheduled(autoscaler, settings, int(deployment["spec"].get("replicas", 1)))
        # the HPA is ours alone: bounds that are taken back must go
        wanted_hpa = horizontal(autoscaler, settings, minimum)
        hpa = await ensure(self, HORIZONTAL_POD_AUTOSCALERS, autoscaler, wanted_hpa)
        wanted = int(dig(hpa, "status", "desiredReplicas", default=0) or deployment["spec"].get("replicas", 1))
        threshold = max(1, minimum)
        if ready >= threshold:
            conditions.true("ScaleTargetInitialized")
            conditions.true("Active")
        elif not conditions.is_true("ScaleTargetInitialized"):
            conditions.unknown("Active", *QUEUED)
        mode = "Serve" if ready > 0 else "Proxy"
        sks = await self._serverless_service(autoscaler, mode, 2)
        conditions.mirror("SKSReady", sks.get("status"))
        await self._write(autoscaler, conditions, wanted, ready)
        return again

    def _scheduled(self, autoscaler: Object, settings: RevisionSettings, current: int) -> tuple[int, float | None]:
        """The least pods now by the Service's time series, and when to look again. Without its ConfigMap the scale stays."""
        namespace = autoscaler["metadata"]["namespace"]
        owner = dig(autoscaler, "metadata", "labels", keys.SERVICE)
        service = self.informer(SERVICES).get(Key(namespace, owner)) if owner else None
        name = dig(service, "metadata", "annotations", TIMESERIES)
        if not name:
            return settings.min_scale, None
        config_map = self.informer(CONFIG_MAPS).get(Key(namespace, name))
        if config_map is None:
            return current, None
        data: dict[str, str] = config_map.get("data") or {}
        now = self.clock.now()
        try:
            amount = schedule.replicas(data, now)
            again = schedule.next_change(data, now)
        except schedule.ScheduleError as error:
            self.recorder.event(autoscaler, "Warning", "InvalidSchedule", f'ConfigMap "{name}": {error}')
            return current, None
        minimum = max(settings.min_scale, amount or 0)
        return min(minimum, settings.max_scale or minimum), again

    def _on_schedule(self, config_map: Object) -> list[Key]:
        """Autoscalers of Services that follow this ConfigMap."""
        if schedule.JOBS not in (config_map.get("data") or {}):
            return []
        namespace, name = Key.of(config_map)
        found = self.informer(SERVICES).objects(namespace)
        services = {one["metadata"]["name"] for one in found if dig(one, "metadata", "annotations", TIMESERIES) == name}
        autoscalers = self.informer(POD_AUTOSCALERS).objects(namespace)
        return [Key.of(one) for one in autoscalers if dig(one, "metadata", "labels", keys.SERVICE) in services]

    async def _write(self, autoscaler: Object, conditions: ConditionSet, wanted: int, ready: int) -> None:
        status: Object = copy(autoscaler.get("status") or {})
        status["desiredScale"] = wanted
        status["actualScale"] = ready
        status["serviceName"] = autoscaler["metadata"]["name"]
        status["metricsServiceName"] = names.private_service(autoscaler["metadata"]["name"])
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = autoscaler["metadata"].get("generation")
        if status != (autoscaler.get("status") or {}):
            await self.client.update(POD_AUTOSCALERS, {**autoscaler, "status": status}, subresource="status")


def horizontal(autoscaler: Object, settings: RevisionSettings, minimum: int) -> Object:
    """The HorizontalPodAutoscaler of a revision of the classes that leave sizing to one; ``minimum`` 0 leaves it out."""
    metadata = autoscaler["metadata"]
    annotated = metadata.get("annotations") or {}
    targets = annotated.get(METRIC_TARGET)
    if settings.autoscaler_class == autoscaling.PPA and targets:
        metrics = [_utilization(*part.split(":", 1)) for part in targets.replace(" ", "").split(",") if ":" in part]
    else:
        metrics = [_metric(settings, annotated)]
    spec: Object = {
        "scaleTargetRef": autoscaler["spec"]["scaleTargetRef"],
        "maxReplicas": settings.max_scale or 2**31 - 1,
        "metrics": metrics,
    }
    spec["minReplicas"] = max(1, minimum)
    if autoscaling.PREFIX + "window" in annotated:
        seconds = int(settings.window)
        spec["behavior"] = {
            "scaleUp": {"stabilizationWindowSeconds": seconds},
            "scaleDown": {"stabilizationWindowSeconds": seconds},
        }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": dict(metadata.get("labels") or {}),
            "annotations": dict(annotated),
        },
        "spec": spec,
    }


def _utilization(name: str, percent: str) -> Object:
    target = {"type": "Utilization", "averageUtilization": math.ceil(float(percent))}
    return {"type": "Resource", "resource": {"name": name, "target": target}}


def _metric(settings: RevisionSettings, annotated: Mapping[str, str]) -> Object:
    """The one metric of the HPA class."""
    target = float(annotated.get(autoscaling.PREFIX + "target") or (80 if settings.metric == "cpu" else settings.total))
    if settings.metric == "cpu":
        metric: Object = {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": math.ceil(target)}},
        }
    elif settings.metric == "memory":
        metric = {
            "type": "Resource",
            "resource": {
                "name": "memory",
                "target": {"type": "AverageValue", "averageValue": f"{math.ceil(target)}Mi"},
            },
        }
    else:
        metric = {
            "type": "Pods",
            "pods": {
                "metric": {"name": settings.metric},
                "target": {"type": "AverageValue", "averageValue": f"{math.ceil(target)}"},
            },
        }
    return metric
