"""What Envoy reports of its load: requests in progress and finished, by cluster and endpoint, twice a second.

An autoscaler subscribes; the reports need no sidecar and no scraping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Load(NamedTuple):
    """One cluster (or endpoint) over one report interval."""

    in_progress: int
    """Requests under way at the end of the interval."""
    issued: int
    succeeded: int
    failed: int


class ClusterLoad(NamedTuple):
    """A cluster's load."""

    cluster: str
    """``namespace/service/port``, as the gateway names its clusters."""
    interval: float
    """Seconds the report covers."""
    total: Load
    endpoints: Mapping[tuple[str, int], Load]
    """By (address, port); only those with activity."""


Listener = Callable[[ClusterLoad], None]


class LoadSignal:
    """Hands load reports to whoever subscribed."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._rounds: list[Callable[[], None]] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every report from now on; returns a function that ends it. It must not block."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_round(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener()`` after each report of an Envoy, when all its clusters have been handed out; returns what ends it."""
        self._rounds.append(listener)
        return lambda: self._rounds.remove(listener)

    def take(self, report: Any) -> None:
        """A decoded ``LoadStatsRequest``."""
        for stats in report.cluster_stats:
            load = _cluster(stats)
            for listener in list(self._listeners):
                listener(load)
        for complete in list(self._rounds):
            complete()


def _cluster(stats: Any) -> ClusterLoad:
    total = Load(0, 0, 0, 0)
    endpoints: dict[tuple[str, int], Load] = {}
    for locality in stats.upstream_locality_stats:
        total = _plus(total, _load(locality))
        for endpoint in locality.upstream_endpoint_stats:
            address = endpoint.address.socket_address
            key = (address.address, address.port_value)
            endpoints[key] = _plus(endpoints.get(key, Load(0, 0, 0, 0)), _load(endpoint))
    interval = stats.load_report_interval
    return ClusterLoad(stats.cluster_name, interval.seconds + interval.nanos / 1e9, total, endpoints)


def _load(stats: Any) -> Load:
    return Load(
        stats.total_requests_in_progress,
        stats.total_issued_requests,
        stats.total_successful_requests,
        stats.total_error_requests,
    )


def _plus(left: Load, right: Load) -> Load:
    return Load(*(a + b for a, b in zip(left, right, strict=True)))
