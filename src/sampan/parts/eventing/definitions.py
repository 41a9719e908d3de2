"""The CustomResourceDefinitions of Knative Eventing that the part serves, and of the RocketMQ source and sink.

Schemas state the fields clients set, in upstream's shape; what a type cannot say (a duration, a cron line, CESQL) is checked
by ``admission``. Labels and annotations are those by which tools discover sources, sinks and subscribables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sampan.kube.objects import Object
from sampan.parts.eventing.resources import EVENTING, FLOWS, MESSAGING, ROCKETMQ_SOURCES_GROUP, SINKS, SOURCES

Schema = dict[str, Any]

ANYTHING: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "format": "int32"}
LONG: Schema = {"type": "integer", "format": "int64"}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


REFERENCE = _object(
    apiVersion=STRING, kind=STRING, name=STRING, namespace=STRING, group=STRING, address=STRING, fieldPath=STRING
)
DESTINATION = _object(ref=REFERENCE, uri=STRING, CACerts=STRING, audience=STRING)
DELIVERY = _object(
    backoffDelay=STRING,
    backoffPolicy={"type": "string", "enum": ["linear", "exponential"]},
    deadLetterSink=DESTINATION,
    format={"type": "string", "enum": ["json", "binary"]},
    retry=INTEGER,
    retryAfterMax=STRING,
    timeout=STRING,
)
ADDRESS = _object(name=STRING, url=STRING, CACerts=STRING, audience=STRING)
TEMPLATE = _object(apiVersion=STRING, kind=STRING, spec=ANYTHING)
SELECTOR = _object(matchLabels=STRINGS, matchExpressions=_list(ANYTHING))
SECRET_KEY = _object(secretKeyRef=_object(name=STRING, key=STRING, optional=BOOLEAN))
FILTER: Schema = {
    "type": "object",
    "properties": {
        "exact": STRINGS,
        "prefix": STRINGS,
        "suffix": STRINGS,
        "cesql": STRING,
        "all": _list(ANYTHING),
        "any": _list(ANYTHING),
        "not": ANYTHING,
    },
}
_DLS_STATUS = {"deadLetterSinkUri": STRING, "deadLetterSinkCACerts": STRING, "deadLetterSinkAudience": STRING}
_ADDRESSABLE_STATUS = {"address": ADDRESS, "addresses": _list(ADDRESS)}
_SUBSCRIBER = _object(
    uid=STRING, generation=LONG, name=STRING, subscriberUri=STRING, replyUri=STRING, delivery=DELIVERY, auth=ANYTHING
)
_SUBSCRIBER_STATUS = _object(uid=STRING, observedGeneration=LONG, ready=STRING, message=STRING)
_SINK = {"sink": DESTINATION, "ceOverrides": _object(extensions=STRINGS)}
_SOURCE_STATUS = {
    "sinkUri": STRING,
    "sinkCACerts": STRING,
    "sinkAudience": STRING,
    "auth": ANYTHING,
    "ceAttributes": _list(_object(type=STRING, source=STRING)),
}

_READY = '.status.conditions[?(@.type=="Ready")]'
Column = tuple[str, str]
AGE: Column = ("Age", ".metadata.creationTimestamp")
READY: tuple[Column, ...] = (("Ready", f"{_READY}.status"), ("Reason", f"{_READY}.reason"))
URL: Column = ("URL", ".status.address.url")
SINK: Column = ("Sink", ".status.sinkUri")

_ADDRESSABLE = {"duck.knative.dev/addressable": "true"}
_SUBSCRIBABLE = {"messaging.knative.dev/subscribable": "true", **_ADDRESSABLE}
_SOURCE = {"duck.knative.dev/source": "true", "eventing.knative.dev/source": "true"}


def _version(name: str, spec: Schema, status: Mapping[str, Schema], columns: Sequence[Column], storage: bool) -> Object:
    common = {
        "annotations": STRINGS,
        "conditions": _list(ANYTHING),
        "observedGeneration": LONG,
    }
    return {
        "name": name,
        "served": True,
        "storage": storage,
        "schema": {
            "openAPIV3Schema": _object(
                apiVersion=STRING,
                kind=STRING,
                metadata={"type": "object"},
                spec=spec,
                status=_object(**common, **status),
            )
        },
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": column, "type": "date" if column == "Age" else "string", "jsonPath": path}
            for column, path in columns
        ],
    }


def _definition(
    group: str,
    kind: str,
    plural: str,
    versions: Sequence[str],
    spec: Schema,
    status: Mapping[str, Schema],
    columns: Sequence[Column],
    *,
    short: Sequence[str] = (),
    categories: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    event_types: Sequence[tuple[str, str]] = (),
    scale: Mapping[str, str] | None = None,
) -> Object:
    """One definition; the first version is the stored one, the others have the same schema."""
    annotations = {}
    if event_types:
        listed = [{"type": type, "description": description} for type, description in event_types]
        annotations["registry.knative.dev/eventTypes"] = json.dumps(listed)
    served = [_version(version, spec, status, columns, storage=number == 0) for number, version in enumerate(versions)]
    if scale:
        for one in served:
            one["subresources"]["scale"] = dict(scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "labels": {
                "app.kubernetes.io/name": "knative-eventing",
                "knative.dev/crd-install": "true",
                **(labels or {}),
            },
            "annotations": annotations,
        },
        "spec": {
            "group": group,
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "listKind": f"{kind}List",
                "shortNames": list(short),
                "categories": ["all", "knative", *categories],
            },
            "scope": "Namespaced",
            "versions": served,
        },
    }


def all_definitions() -> list[Object]:
    """Every CustomResourceDefinition of the part."""
    return [*_eventing(), *_messaging(), *_flows(), *_sources(), *_sinks()]


def _eventing() -> list[Object]:
    return [
        _definition(
            EVENTING,
            "Broker",
            "brokers",
            ["v1"],
            _object(config=REFERENCE, delivery=DELIVERY),
            _ADDRESSABLE_STATUS | _DLS_STATUS,
            (URL, AGE, *READY),
            categories=["eventing"],
            labels=_ADDRESSABLE,
        ),
        _definition(
            EVENTING,
            "Trigger",
            "triggers",
            ["v1"],
            _object(
                broker=STRING,
                brokerRef=REFERENCE,
                delivery=DELIVERY,
                filter=_object(attributes=STRINGS),
                filters=_list(FILTER),
                subscriber=DESTINATION,
            ),
            {"subscriberUri": STRING, "subscriberCACerts": STRING, "subscriberAudience": STRING, **_DLS_STATUS},
            (("Broker", ".spec.broker"), ("Subscriber_URI", ".status.subscriberUri"), AGE, *READY),
            categories=["eventing"],
        ),
        _definition(
            EVENTING,
            "EventType",
            "eventtypes",
            ["v1beta2", "v1beta1"],
            _object(
                type=STRING,
                source=STRING,
                schema=STRING,
                schemaData=STRING,
                description=STRING,
                reference=REFERENCE,
                broker=STRING,
            ),
            {},
            (
                ("Type", ".spec.type"),
                ("Source", ".spec.source"),
                ("Schema", ".spec.schema"),
                ("Reference Name", ".spec.reference.name"),
                ("Reference Kind", ".spec.reference.kind"),
                ("Description", ".spec.description"),
                *READY,
            ),
            categories=["eventing"],
        ),
    ]


def _messaging() -> list[Object]:
    channel_status = _ADDRESSABLE_STATUS | _DLS_STATUS
    subscribable = {"subscribers": _list(_SUBSCRIBER_STATUS)}
    return [
        _definition(
            MESSAGING,
            "Channel",
            "channels",
            ["v1"],
            _object(channelTemplate=TEMPLATE, delivery=DELIVERY, subscribers=_list(_SUBSCRIBER)),
            channel_status | subscribable | {"channel": REFERENCE},
            (URL, AGE, *READY),
            short=["ch"],
            categories=["messaging", "channel"],
            labels=_SUBSCRIBABLE,
        ),
        _definition(
            MESSAGING,
            "InMemoryChannel",
            "inmemorychannels",
            ["v1"],
            _object(delivery=DELIVERY, subscribers=_list(_SUBSCRIBER)),
            channel_status | subscribable,
            (URL, AGE, *READY),
            short=["imc"],
            categories=["messaging", "channel"],
            labels=_SUBSCRIBABLE,
        ),
        _definition(
            MESSAGING,
            "Subscription",
            "subscriptions",
            ["v1"],
            _object(channel=REFERENCE, subscriber=DESTINATION, reply=DESTINATION, delivery=DELIVERY),
            {
                "physicalSubscription": _object(
                    subscriberUri=STRING, replyUri=STRING, deadLetterSinkUri=STRING, subscriberCACerts=STRING
                )
            },
            (AGE, *READY),
            short=["sub"],
            categories=["messaging"],
        ),
    ]


def _flows() -> list[Object]:
    step = _object(ref=REFERENCE, uri=STRING, CACerts=STRING, audience=STRING, delivery=DELIVERY)
    branch = _object(filter=DESTINATION, subscriber=DESTINATION, reply=DESTINATION, delivery=DELIVERY)
    ready = _object(type=STRING, status=STRING, reason=STRING, message=STRING)
    ready["x-kubernetes-preserve-unknown-fields"] = True
    channel, subscription = (
        _object(channel=REFERENCE, ready=ready),
        _object(subscription=REFERENCE, ready=ready),
    )
    return [
        _definition(
            FLOWS,
            "Sequence",
            "sequences",
            ["v1"],
            _object(steps=_list(step), channelTemplate=TEMPLATE, reply=DESTINATION),
            _ADDRESSABLE_STATUS | {"channelStatuses": _list(channel), "subscriptionStatuses": _list(subscription)},
            (URL, AGE, *READY),
            categories=["flows"],
            labels=_ADDRESSABLE,
        ),
        _definition(
            FLOWS,
            "Parallel",
            "parallels",
            ["v1"],
            _object(branches=_list(branch), channelTemplate=TEMPLATE, reply=DESTINATION),
            _ADDRESSABLE_STATUS | {"ingressChannelStatus": channel, "branchStatuses": _list(ANYTHING)},
            (URL, AGE, *READY),
            categories=["flows"],
            labels=_ADDRESSABLE,
        ),
    ]


def _sources() -> list[Object]:
    return [
        _definition(
            SOURCES,
            "PingSource",
            "pingsources",
            ["v1", "v1beta2"],
            _object(schedule=STRING, timezone=STRING, contentType=STRING, data=STRING, dataBase64=STRING, **_SINK),
            _SOURCE_STATUS,
            (SINK, ("Schedule", ".spec.schedule"), AGE, *READY),
            categories=["eventing", "sources"],
            labels=_SOURCE,
            event_types=[("dev.knative.sources.ping", "CloudEvent type for ping events")],
        ),
        _definition(
            SOURCES,
            "ApiServerSource",
            "apiserversources",
            ["v1"],
            _object(
                resources=_list(_object(apiVersion=STRING, kind=STRING, selector=SELECTOR)),
                mode={"type": "string", "enum": ["Reference", "Resource"]},
                owner=_object(apiVersion=STRING, kind=STRING),
                namespaceSelector=SELECTOR,
                filters=_list(FILTER),
                serviceAccountName=STRING,
                **_SINK,
            ),
            _SOURCE_STATUS | {"namespaces": _list(STRING)},
            (SINK, AGE, *READY),
            categories=["eventing", "sources"],
            labels=_SOURCE,
            event_types=[
                (f"dev.knative.apiserver.{shape}.{change}", f"CloudEvent type for {change} of an object ({shape})")
                for shape in ("resource", "ref")
                for change in ("add", "update", "delete")
            ],
        ),
        _definition(
            SOURCES,
            "ContainerSource",
            "containersources",
            ["v1"],
            _object(template=_object(metadata=ANYTHING, spec=ANYTHING), **_SINK),
            _SOURCE_STATUS,
            (SINK, AGE, *READY),
            categories=["eventing", "sources"],
            labels=_SOURCE,
        ),
        _definition(
            SOURCES,
            "SinkBinding",
            "sinkbindings",
            ["v1"],
            _object(
                subject=_object(apiVersion=STRING, kind=STRING, namespace=STRING, name=STRING, selector=SELECTOR),
                **_SINK,
            ),
            _SOURCE_STATUS,
            (SINK, AGE, *READY),
            categories=["eventing", "sources", "bindings"],
            labels={"duck.knative.dev/source": "true", "duck.knative.dev/binding": "true"},
        ),
        _definition(
            SOURCES,
            "GitHubSource",
            "githubsources",
            ["v1alpha1"],
            _object(
                ownerAndRepository=STRING,
                eventTypes=_list(STRING),
                accessToken=SECRET_KEY,
                secretToken=SECRET_KEY,
                githubAPIURL=STRING,
                secure=BOOLEAN,
                serviceAccountName=STRING,
                **_SINK,
            ),
            _SOURCE_STATUS | _ADDRESSABLE_STATUS | {"webhookIDKey": STRING},
            (SINK, AGE, *READY),
            categories=["eventing", "sources"],
            labels=_SOURCE,
            event_types=[("dev.knative.source.github.push", "A push to a repository")],
        ),
        _definition(
            SOURCES,
            "KafkaSource",
            "kafkasources",
            ["v1", "v1beta1"],
            _object(
                bootstrapServers=_list(STRING),
                topics=_list(STRING),
                consumers=INTEGER,
                consumerGroup=STRING,
                initialOffset={"type": "string", "enum": ["earliest", "latest"]},
                ordering={"type": "string", "enum": ["ordered", "unordered"]},
                delivery=DELIVERY,
                net=_object(
                    sasl=_object(enable=BOOLEAN, user=SECRET_KEY, password=SECRET_KEY, type=SECRET_KEY),
                    tls=_object(enable=BOOLEAN, cert=SECRET_KEY, key=SECRET_KEY, caCert=SECRET_KEY),
                ),
                **_SINK,
            ),
            _SOURCE_STATUS | {"consumers": INTEGER, "selector": STRING},
            (
                ("Topics", ".spec.topics"),
                ("BootstrapServers", ".spec.bootstrapServers"),
                *READY,
                AGE,
            ),
            categories=["eventing", "sources"],
            labels=_SOURCE,
            event_types=[("dev.knative.kafka.event", "A record of a Kafka topic")],
            scale={
                "specReplicasPath": ".spec.consumers",
                "statusReplicasPath": ".status.consumers",
                "labelSelectorPath": ".status.selector",
            },
        ),
        _definition(
            ROCKETMQ_SOURCES_GROUP,
            "RocketMQSource",
            "rocketmqsources",
            ["v1alpha1"],
            _object(
                topic=STRING,
                namesrvAddr=STRING,
                groupName=STRING,
                tag=STRING,
                accessToken=_object(
                    accessKey=_object(name=STRING, key=STRING), secretKey=_object(name=STRING, key=STRING)
                ),
                sink=_object(apiVersion=STRING, kind=STRING, name=STRING, namespace=STRING, ref=REFERENCE, uri=STRING),
                ceOverrides=_object(extensions=STRINGS),
            ),
            _SOURCE_STATUS,
            (SINK, ("Topic", ".spec.topic"), AGE, *READY),
            categories=["eventing", "sources"],
            labels=_SOURCE,
            event_types=[("RocketMQEventType", "A message of a RocketMQ topic")],
        ),
    ]


def _sinks() -> list[Object]:
    return [
        _definition(
            SINKS,
            "JobSink",
            "jobsinks",
            ["v1alpha1"],
            _object(job=ANYTHING),
            _ADDRESSABLE_STATUS | {"job": _object(selector=STRING)},
            (URL, AGE, *READY),
            categories=["eventing", "sinks"],
            labels=_ADDRESSABLE,
        ),
        _definition(
            SINKS,
            "RocketMQSink",
            "rocketmqsinks",
            ["v1alpha1"],
            _object(
                topic=STRING,
                namesrvAddr=STRING,
                tag=STRING,
                contentMode={"type": "string", "enum": ["binary", "structured"]},
                accessToken=_object(
                    accessKey=_object(name=STRING, key=STRING), secretKey=_object(name=STRING, key=STRING)
                ),
            ),
            _ADDRESSABLE_STATUS,
            (URL, ("Topic", ".spec.topic"), AGE, *READY),
            categories=["eventing", "sinks"],
            labels=_ADDRESSABLE,
        ),
    ]
