"""What the store reports, read when it is scraped; upstream's names where upstream has them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sampan.kube.store.core import Store


class StoreMetrics(Collector):
    """A collector for a registry; unregister it when the store is closed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """The readings of now."""
        store = self._store
        objects = GaugeMetricFamily("apiserver_storage_objects", "Stored objects by resource.", labels=["resource"])
        for collection, count in store.collections().items():
            _, _, group, plural, _ = collection.split("/")
            objects.add_metric([plural if group == "core" else f"{plural}.{group}"], count)
        yield objects
        yield CounterMetricFamily("sampan_store_writes", "Writes made durable.", value=store.writes)
        yield CounterMetricFamily("sampan_store_commits", "Batches of writes made durable.", value=store.commits)
        yield CounterMetricFamily("sampan_store_failed_commits", "Batches that failed.", value=store.failed_commits)
        yield CounterMetricFamily("sampan_store_slow_watches", "Watches cut off for being slow.", value=store.cut_off)
        yield GaugeMetricFamily("sampan_store_revision", "The latest revision.", value=store.revision)
        yield GaugeMetricFamily("sampan_store_compacted_revision", "History up to here is gone.", value=store.compacted)
        yield GaugeMetricFamily("sampan_store_history_bytes", "What recent changes hold.", value=store.history_bytes)
