"""Eventing's admission: Knative's defaulting and validation, as a plugin of the API server."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.objects import Object, copy
from sampan.parts.eventing import validation
from sampan.parts.eventing.configmaps import Config
from sampan.parts.eventing.resources import (
    BROKER_CLASS,
    BROKER_LABEL,
    EVENTING,
    FLOWS,
    MESSAGING,
    ROCKETMQ_SOURCES_GROUP,
    SINKS,
    SOURCES,
)
from sampan.parts.eventing.validation import Findings, Validate

GROUPS = frozenset({EVENTING, MESSAGING, FLOWS, SOURCES, SINKS, ROCKETMQ_SOURCES_GROUP})
_VALIDATORS: Mapping[str, Validate] = {
    "brokers": validation.broker,
    "triggers": validation.trigger,
    "eventtypes": validation.event_type,
    "channels": validation.channel,
    "inmemorychannels": validation.channel,
    "subscriptions": validation.subscription,
    "sequences": validation.sequence,
    "parallels": validation.parallel,
    "pingsources": validation.ping_source,
    "apiserversources": validation.api_server_source,
    "containersources": validation.container_source,
    "sinkbindings": validation.sink_binding,
    "githubsources": validation.github_source,
    "kafkasources": validation.kafka_source,
    "rocketmqsources": validation.rocketmq_source,
    "jobsinks": validation.job_sink,
    "rocketmqsinks": validation.rocketmq_sink,
}


class EventingAdmission:
    """Defaults and validates eventing's kinds."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def admit(self, request: AdmissionRequest) -> None:
        if request.object is None or not _concerns(request):
            return
        default(request.type.resource.plural, request.object, request.old_object, request.namespace, self._config)

    async def validate(self, request: AdmissionRequest) -> None:
        validate = _VALIDATORS.get(request.type.resource.plural)
        if validate is None or request.object is None or not _concerns(request):
            return
        if request.object["metadata"].get("deletionTimestamp"):
            return
        found = Findings()
        validate(request.object, request.old_object, found, self._config)
        found.refuse()


def _concerns(request: AdmissionRequest) -> bool:
    return (
        request.type.resource.group in GROUPS and request.operation in ("CREATE", "UPDATE") and not request.subresource
    )


def default(plural: str, obj: Object, old: Object | None, namespace: str, config: Config) -> None:
    """Set what upstream's defaulting webhook sets."""
    metadata, spec = obj["metadata"], obj.setdefault("spec", {})
    match plural:
        case "brokers":
            _broker(metadata, spec, namespace, config, old)
        case "triggers":
            if not spec.get("broker") and not spec.get("brokerRef"):
                spec["broker"] = "default"
            spec.setdefault("filter", {})
            if spec.get("broker"):
                metadata.setdefault("labels", {})[BROKER_LABEL] = spec["broker"]
            _namespaces(spec.get("subscriber"), namespace)
            _namespaces((spec.get("delivery") or {}).get("deadLetterSink"), namespace)
        case "channels":
            spec.setdefault("channelTemplate", config.channel_template(namespace))
            metadata.setdefault("annotations", {}).setdefault("messaging.knative.dev/subscribable", "v1")
        case "inmemorychannels":
            metadata.setdefault("annotations", {}).setdefault("messaging.knative.dev/subscribable", "v1")
        case "subscriptions":
            for name in ("subscriber", "reply"):
                _namespaces(spec.get(name), namespace)
        case "sequences" | "parallels":
            spec.setdefault("channelTemplate", config.channel_template(namespace))
        case "pingsources":
            spec.setdefault("schedule", "* * * * *")
            _namespaces(spec.get("sink"), namespace)
        case "apiserversources":
            spec["mode"] = spec.get("mode") or "Reference"
            spec["serviceAccountName"] = spec.get("serviceAccountName") or "default"
            _namespaces(spec.get("sink"), namespace)
        case "kafkasources":
            spec.setdefault("consumers", 1)
            spec["initialOffset"] = spec.get("initialOffset") or "latest"
            spec["ordering"] = spec.get("ordering") or "ordered"
            before = ((old or {}).get("spec") or {}).get("consumerGroup")
            spec["consumerGroup"] = spec.get("consumerGroup") or before or f"knative-kafka-source-{uuid.uuid4()}"
            _namespaces(spec.get("sink"), namespace)
            _namespaces((spec.get("delivery") or {}).get("deadLetterSink"), namespace)
        case "containersources":
            for position, container in enumerate(
                ((spec.get("template") or {}).get("spec") or {}).get("containers") or ()
            ):
                container["name"] = container.get("name") or f"{metadata.get('name', '')}-{position}"
            _namespaces(spec.get("sink"), namespace)
        case "githubsources":
            _namespaces(spec.get("sink"), namespace)
        case "sinkbindings":
            if spec.get("subject"):
                spec["subject"]["namespace"] = spec["subject"].get("namespace") or namespace
            _namespaces(spec.get("sink"), namespace)


def _broker(metadata: Object, spec: Object, namespace: str, config: Config, old: Object | None) -> None:
    defaults = config.broker_defaults(namespace)
    metadata.setdefault("annotations", {}).setdefault(BROKER_CLASS, defaults.get("brokerClass", ""))
    if not spec.get("config"):
        before = ((old or {}).get("spec") or {}).get("config")
        named = {name: defaults[name] for name in ("apiVersion", "kind", "name", "namespace") if name in defaults}
        if before or named:
            spec["config"] = copy(before or named)
    if spec.get("config") and not spec["config"].get("namespace"):
        spec["config"]["namespace"] = namespace
    if "delivery" not in spec and defaults.get("delivery"):
        spec["delivery"] = copy(defaults["delivery"])


def _namespaces(destination: Object | None, namespace: str) -> None:
    """A reference without a namespace means the object's own."""
    reference = (destination or {}).get("ref")
    if reference and not reference.get("namespace"):
        reference["namespace"] = namespace
