"""The broker's metrics, under the names of the 5.x broker, computed when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sampan.kernel.grpc import GrpcServer
from sampan.parts.messaging import record
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.delivery import Progress
from sampan.parts.messaging.errors import StorageError
from sampan.parts.messaging.statistics import Histogram
from sampan.parts.messaging.topology import DLQ_PREFIX, LITE_PREFIX, RETRY_PREFIX, SYSTEM_TOPICS

_COMMON = ["cluster", "node_type", "node_id"]
TIMER_BOUNDS = (5, 60, 300, 900, 3_600, 14_400, 28_800, 86_400, 259_200)
"""How far ahead, in seconds: the reference's bounds, and its limit. What is further counts with the last."""
_TYPES = {"MIXED": "normal", "UNSPECIFIED": "normal"}


class BrokerMetrics(Collector):
    """Everything Prometheus gets to know of one broker."""

    def __init__(self, core: Core, server: GrpcServer) -> None:
        self._core = core
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        yield from self._traffic()
        yield from self._lag()
        yield from self._store()
        yield from self._connections()
        yield from self._latencies()

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=_COMMON)
        family.add_metric(self._node(), value)
        return family

    def _node(self) -> list[str]:
        return ["DefaultCluster", "broker", self._core.broker.name]

    def _traffic(self) -> Iterator[Metric]:
        statistics, node = self._core.broker.statistics, self._node()
        labels = [*_COMMON, "topic", "message_type", "is_system"]
        messages = CounterMetricFamily("rocketmq_messages_in", "Messages stored", labels=labels)
        size = CounterMetricFamily("rocketmq_throughput_in", "Body bytes stored", labels=labels)
        for name, (count, total) in statistics.messages_in.items():
            topic = self._core.store.topics.get(name)
            kind = _TYPES.get(topic.config.type, topic.config.type.lower()) if topic is not None else "normal"
            values = [*node, name, kind, _is_system(name)]
            messages.add_metric(values, count)
            size.add_metric(values, total)
        yield messages
        yield size
        labels = [*_COMMON, "topic", "consumer_group", "is_retry", "is_system"]
        messages = CounterMetricFamily("rocketmq_messages_out", "Messages handed to consumers", labels=labels)
        size = CounterMetricFamily("rocketmq_throughput_out", "Record bytes handed to consumers", labels=labels)
        for (name, group), (count, total) in statistics.messages_out.items():
            values = [*node, name, group, "false", _is_system(name)]
            messages.add_metric(values, count)
            size.add_metric(values, total)
        yield messages
        yield size
        dead = CounterMetricFamily(
            "rocketmq_send_to_dlq_messages",
            "Messages put into dead letter queues",
            labels=[*_COMMON, "topic", "consumer_group"],
        )
        for (name, group), count in statistics.dead.items():
            dead.add_metric([*node, name, group], count)
        yield dead
        for metric, text, totals in (
            ("rocketmq_commit_messages", "Transactions committed", statistics.committed),
            ("rocketmq_rollback_messages", "Transactions rolled back", statistics.rolled_back),
        ):
            family = CounterMetricFamily(metric, text, labels=[*_COMMON, "topic"])
            for name, count in totals.items():
                family.add_metric([*node, name], count)
            yield family
        refused = CounterMetricFamily("sampan_messaging_refused", "Requests refused", labels=[*_COMMON, "reason"])
        for reason, count in statistics.refused.items():
            refused.add_metric([*node, reason], count)
        yield refused

    def _lag(self) -> Iterator[Metric]:
        labels = [*_COMMON, "topic", "consumer_group", "is_retry"]
        lag = GaugeMetricFamily("rocketmq_consumer_lag_messages", "Messages a group is not done with", labels=labels)
        ready = GaugeMetricFamily(
            "rocketmq_consumer_ready_messages", "Messages a group could receive now", labels=labels
        )
        flying = GaugeMetricFamily(
            "rocketmq_consumer_inflight_messages", "Messages a group holds leased", labels=labels
        )
        late = GaugeMetricFamily(
            "rocketmq_consumer_lag_latency", "Age in ms of the oldest message a group is not done with", labels=labels
        )
        queueing = GaugeMetricFamily(
            "rocketmq_consumer_queueing_latency", "Age in ms of the oldest message a group has not read", labels=labels
        )
        totals: dict[tuple[str, str], list[int]] = {}
        for (group, name), progress in self._core.store.progress.items():
            topic = self._core.store.topics.get(name)
            if topic is None:
                continue
            pair = totals.setdefault((group, topic.label), [0, 0, 0, 0])
            for queue in topic.readable():
                found = progress.queues.get(queue.id)
                pair[0] += queue.maximum - (found.next if found is not None else queue.minimum)
                pair[0] += len(found.held) if found is not None else 0
            pair[1] += progress.leased
            pair[2] = max(pair[2], self._age(name, progress, read=False))
            pair[3] = max(pair[3], self._age(name, progress, read=True))
        for (group, label), (count, leased, undone_ms, unread_ms) in totals.items():
            values = [*self._node(), label, group, "false"]
            lag.add_metric(values, count)
            ready.add_metric(values, count - leased)
            flying.add_metric(values, leased)
            late.add_metric(values, undone_ms)
            queueing.add_metric(values, unread_ms)
        yield from (lag, ready, flying, late, queueing)
        half = GaugeMetricFamily("rocketmq_half_messages", "Open transactions", labels=[*_COMMON, "topic"])
        counts: dict[str, int] = {}
        for one in self._core.store.halves.values():
            counts[one.topic] = counts.get(one.topic, 0) + 1
        for name, count in counts.items():
            half.add_metric([*self._node(), name], count)
        yield half

    def _age(self, name: str, progress: Progress, *, read: bool) -> int:
        """How long the oldest message of a topic that a group is not done with (or has not ``read``) is there, in ms."""
        store = self._core.store
        oldest = now_ms = self._core.clock.time_ms()
        for queue in store.topics[name].readable():
            found = progress.queues.get(queue.id)
            offset = queue.minimum if found is None else found.next if read else found.committed
            entries = store.entries(queue, max(offset, queue.minimum), 1) if offset < queue.maximum else []
            if entries:
                try:
                    data = store.log.read(entries[0].position, entries[0].size)
                except (LookupError, StorageError):
                    continue  # deleted or damaged; consumers are told, a gauge need not be
                if data is not None:
                    oldest = min(oldest, record.store_ms_of(data))
        return now_ms - oldest

    def _latencies(self) -> Iterator[Metric]:
        statistics = self._core.broker.statistics
        yield self._histogram("rocketmq_message_size", "Sizes of bodies stored, in bytes", statistics.sizes)
        yield self._histogram(
            "rocketmq_delay_message_latency", "Milliseconds delayed messages were late", statistics.delays
        )
        yield self._histogram(
            "rocketmq_finish_message_latency", "Milliseconds committed transactions were open", statistics.finished
        )
        for metric, one in (
            ("rocketmq_topic_create_execution_time", statistics.topic_creation),
            ("rocketmq_consumer_group_create_execution_time", statistics.group_creation),
        ):
            family = HistogramMetricFamily(metric, "Milliseconds until it was durable", labels=_COMMON)
            family.add_metric(self._node(), one.buckets(), one.total)
            yield family
        labels = [*_COMMON, "protocol_type", "request_code", "response_code"]
        calls = HistogramMetricFamily("rocketmq_rpc_latency", "Milliseconds a call took", labels=labels)
        for (method, code), histogram in statistics.calls.items():
            calls.add_metric([*self._node(), "grpc", method, str(code)], histogram.buckets(), histogram.total)
        yield calls
        again = CounterMetricFamily("rocketmq_pop_revive_retry_messages", "Deliveries again", labels=_COMMON)
        again.add_metric(self._node(), statistics.redelivered)
        yield again

    def _histogram(self, name: str, text: str, by_topic: dict[str, Histogram]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, text, labels=[*_COMMON, "topic"])
        for topic, histogram in by_topic.items():
            family.add_metric([*self._node(), topic], histogram.buckets(), histogram.total)
        return family

    def _store(self) -> Iterator[Metric]:
        store = self._core.store
        log = store.log
        topics = [name for name in store.topics if not name.startswith((RETRY_PREFIX, DLQ_PREFIX, LITE_PREFIX))]
        yield self._gauge("rocketmq_topic_number", "Topics", len(topics))
        yield self._gauge("rocketmq_consumer_group_number", "Consumer groups", len(store.groups))
        yield self._gauge("rocketmq_broker_permission", "4 readable, 2 writable", 4 if store.disk_full else 6)
        yield self._gauge("rocketmq_storage_size", "Bytes of commit log", log.size)
        yield self._gauge("rocketmq_storage_flush_behind_bytes", "Bytes not yet on disk", log.end - log.durable)
        yield self._gauge("rocketmq_storage_dispatch_behind_bytes", "Bytes not yet indexed", 0)
        yield self._gauge("rocketmq_timing_messages", "Messages held until their delivery time", store.timers.count)
        ahead = GaugeMetricFamily(
            "rocketmq_timer_message_snapshot",
            "Messages held until their delivery time, by how far ahead it is at most",
            labels=[*_COMMON, "timer_bound_s"],
        )
        for bound, count in zip(
            TIMER_BOUNDS, store.timers.ahead(self._core.clock.time_ms(), TIMER_BOUNDS), strict=True
        ):
            ahead.add_metric([*self._node(), str(bound)], count)
        yield ahead
        statistics = self._core.broker.statistics
        for metric, text, totals in (
            ("rocketmq_timer_enqueue", "Delayed messages taken", statistics.timers_in),
            ("rocketmq_timer_dequeue", "Delayed messages released", statistics.timers_out),
        ):
            family = CounterMetricFamily(metric, text, labels=[*_COMMON, "topic"])
            for name, count in totals.items():
                family.add_metric([*self._node(), name], count)
            yield family
        # taken in the moment they are durable, so nothing is ever behind on that side
        yield self._gauge("rocketmq_timer_enqueue_lag", "Delayed messages not yet in the wheel", 0)
        yield self._gauge("rocketmq_timer_enqueue_latency", "Milliseconds the wheel is behind the log", 0)
        now_ms = self._core.clock.time_ms()
        late = max(0, now_ms - store.timers.next_due()) if store.timers.count else 0
        oldest = min(store.releasing.values(), default=now_ms)
        yield self._gauge("rocketmq_timer_dequeue_lag", "Delayed messages on their way out", len(store.releasing))
        yield self._gauge(
            "rocketmq_timer_dequeue_latency", "Milliseconds the wheel is behind the clock", max(late, now_ms - oldest)
        )
        yield self._gauge("rocketmq_processor_watermark", "Frames waiting for the disk", store.waiting)
        reserve = self._gauge("rocketmq_storage_message_reserve_time", "Age of the oldest log file in ms", 0)
        if log.bases:
            age = self._core.clock.time() - log.modified(log.bases[0])
            reserve = self._gauge(
                "rocketmq_storage_message_reserve_time", "Age of the oldest log file in ms", max(0.0, age) * 1000
            )
        yield reserve

    def _connections(self) -> Iterator[Metric]:
        labels = [*_COMMON, "language", "version", "protocol_type"]
        producers = GaugeMetricFamily("rocketmq_producer_connections", "Producers", labels=labels)
        consumers = GaugeMetricFamily(
            "rocketmq_consumer_connections", "Consumers", labels=[*labels, "consumer_group", "consume_mode"]
        )
        counts: dict[tuple[str, ...], int] = {}
        for client in self._core.clients:
            key: tuple[str, ...] = (client.language, client.version, client.protocol)
            if client.role == "consumer":
                key += client.group, client.mode
            counts[key] = counts.get(key, 0) + 1
        for key, count in counts.items():
            (producers if len(key) == 3 else consumers).add_metric([*self._node(), *key], count)
        yield producers
        yield consumers
        yield self._gauge("rocketmq_proxy_up", "The gRPC front serves", 1)
        yield self._gauge("sampan_messaging_connections", "Connections of the gRPC front", self._server.connections)
        yield self._gauge("sampan_messaging_parked_polls", "Receive calls waiting", self._core.consumption.parked)


def _is_system(topic: str) -> str:
    return "true" if topic in SYSTEM_TOPICS or topic.startswith("RMQ_SYS_") else "false"
