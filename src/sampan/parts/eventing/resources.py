"""The resources of eventing, for use with a `Client`, and the names that its objects share."""

from __future__ import annotations

from sampan.kube.objects import Resource

EVENTING = "eventing.knative.dev"
MESSAGING = "messaging.knative.dev"
FLOWS = "flows.knative.dev"
SOURCES = "sources.knative.dev"
SINKS = "sinks.knative.dev"
ROCKETMQ_SOURCES_GROUP = "sources.eventing.knative.dev"

BROKERS = Resource(EVENTING, "v1", "brokers")
TRIGGERS = Resource(EVENTING, "v1", "triggers")
EVENT_TYPES = Resource(EVENTING, "v1beta2", "eventtypes")
CHANNELS = Resource(MESSAGING, "v1", "channels")
IN_MEMORY_CHANNELS = Resource(MESSAGING, "v1", "inmemorychannels")
SUBSCRIPTIONS = Resource(MESSAGING, "v1", "subscriptions")
SEQUENCES = Resource(FLOWS, "v1", "sequences")
PARALLELS = Resource(FLOWS, "v1", "parallels")
PING_SOURCES = Resource(SOURCES, "v1", "pingsources")
API_SERVER_SOURCES = Resource(SOURCES, "v1", "apiserversources")
CONTAINER_SOURCES = Resource(SOURCES, "v1", "containersources")
SINK_BINDINGS = Resource(SOURCES, "v1", "sinkbindings")
GITHUB_SOURCES = Resource(SOURCES, "v1alpha1", "githubsources")
KAFKA_SOURCES = Resource(SOURCES, "v1", "kafkasources")
KAFKA_KEY_TYPE = "kafkasources.sources.knative.dev/key-type"
"""Label that says what the keys of a KafkaSource's records are."""
ROCKETMQ_SOURCES = Resource(ROCKETMQ_SOURCES_GROUP, "v1alpha1", "rocketmqsources")
JOB_SINKS = Resource(SINKS, "v1alpha1", "jobsinks")
ROCKETMQ_SINKS = Resource(SINKS, "v1alpha1", "rocketmqsinks")

SYSTEM_NAMESPACE = "knative-eventing"
INGRESS_SERVICE = "broker-ingress"
CLUSTER_DOMAIN = "svc.cluster.local"
BROKER_CLASS = f"{EVENTING}/broker.class"
DEFAULT_CLASS = "MTChannelBasedBroker"
BROKER_LABEL = f"{EVENTING}/broker"
EXCLUDE_LABEL = "bindings.knative.dev/exclude"


def host_of(service: str, namespace: str) -> str:
    """The cluster-local name of a Service."""
    return f"{service}.{namespace}.{CLUSTER_DOMAIN}"


INGRESS_HOST = host_of(INGRESS_SERVICE, SYSTEM_NAMESPACE)
TOPIC_SERVICE = "rocketmq-sink"
TOPIC_HOST = host_of(TOPIC_SERVICE, SYSTEM_NAMESPACE)
TOPIC_GROUP = "messaging.sampan.dev"
TOPICS = Resource(TOPIC_GROUP, "v1", "topics")
JOB_SERVICE = "job-sink"
JOB_HOST = host_of(JOB_SERVICE, SYSTEM_NAMESPACE)
