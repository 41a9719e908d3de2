"""The API server's metrics, under upstream's names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sampan.kernel.telemetry import counter, gauge, histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of requests; label children are kept, so that counting costs two dictionary look-ups."""

    def __init__(self, registry: CollectorRegistry, watches: Callable[[], int]) -> None:
        self._requests = counter(
            registry,
            "apiserver_request_total",
            "Requests by verb, resource and response code.",
            ("verb", "group", "version", "resource", "subresource", "code"),
        )
        self._seconds = histogram(
            registry,
            "apiserver_request_duration_seconds",
            "Seconds from the request head to the end of the response, without watches.",
            ("verb", "group", "version", "resource", "subresource"),
            _BUCKETS,
        )
        self.inflight: Gauge = gauge(
            registry, "apiserver_current_inflight_requests", "Requests under way.", ("request_kind",)
        )
        longrunning = gauge(registry, "apiserver_longrunning_requests", "Open watches.", ("verb",))
        longrunning.labels("WATCH").set_function(lambda: float(watches()))
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._histograms: dict[tuple[str, ...], Histogram] = {}

    def count(self, labels: tuple[str, str, str, str, str], code: int, seconds: float | None) -> None:
        """One finished request: (verb, group, version, resource, subresource), its code, and how long it took."""
        key = (*labels, str(code))
        child = self._counters.get(key)
        if child is None:
            child = self._counters[key] = self._requests.labels(*key)
        child.inc()
        if seconds is None:
            return
        timing = self._histograms.get(labels)
        if timing is None:
            timing = self._histograms[labels] = self._seconds.labels(*labels)
        timing.observe(seconds)
