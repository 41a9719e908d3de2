"""What controllers and their queues report, under the names that controller-runtime and client-go use."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from sampan.kernel.telemetry import counter, gauge, histogram

_DURATIONS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1000)
_RECONCILE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ControllerMetrics:
    """The metrics of one controller and of the queue of the same name."""

    def __init__(self, registry: CollectorRegistry, name: str) -> None:
        runtime, queue = "controller_runtime_", "workqueue_"
        self._registry, self._name = registry, name
        self.errors = counter(
            registry, runtime + "reconcile_errors_total", "Reconciles that failed.", ("controller",)
        ).labels(name)
        self.seconds = histogram(
            registry, runtime + "reconcile_time_seconds", "Time of a reconcile.", ("controller",), _RECONCILE
        ).labels(name)
        self.active = gauge(
            registry, runtime + "active_workers", "Workers that reconcile now.", ("controller",)
        ).labels(name)
        self.workers = gauge(
            registry, runtime + "max_concurrent_reconciles", "Workers of the controller.", ("controller",)
        ).labels(name)
        self.depth = gauge(registry, queue + "depth", "Keys waiting in the queue.", ("name",)).labels(name)
        self.adds = counter(registry, queue + "adds_total", "Keys added to the queue.", ("name",)).labels(name)
        self.retries = counter(
            registry, queue + "retries_total", "Keys added again after a failure.", ("name",)
        ).labels(name)
        self.queued = histogram(
            registry, queue + "queue_duration_seconds", "Time a key waits in the queue.", ("name",), _DURATIONS
        ).labels(name)
        self.worked = histogram(
            registry, queue + "work_duration_seconds", "Time a key is worked on.", ("name",), _DURATIONS
        ).labels(name)
        self._results = {
            result: counter(
                registry, runtime + "reconcile_total", "Reconciles by result.", ("controller", "result")
            ).labels(name, result)
            for result in ("success", "error", "requeue", "requeue_after")
        }

    def result(self, result: str) -> None:
        """Count a reconcile: ``success``, ``error``, ``requeue`` (conflict) or ``requeue_after``."""
        self._results[result].inc()
