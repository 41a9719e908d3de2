"""The part's kinds in Kubernetes: ``Topic`` and ``ConsumerGroup`` (group ``messaging.sampan.dev``), cluster-scoped.

The objects' names are Kubernetes names; ``spec.name`` is the broker's where that is none (capitals, ``%``, ``_``). The broker's
own log is the truth of what exists: an object makes its topic so, and a topic made otherwise gets an object.
"""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Resource

GROUP = "messaging.sampan.dev"
TOPICS = Resource(GROUP, "v1", "topics")
CONSUMER_GROUPS = Resource(GROUP, "v1", "consumergroups")
BROKER_NAME = f"{GROUP}/name"
"""Annotation: the broker's name of a topic or group, on objects the broker made."""

_CONDITIONS: dict[str, Any] = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string"},
            "message": {"type": "string"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {"type": "integer", "format": "int64"},
        },
    },
}
_NAME = {"type": "string", "pattern": "^[%|a-zA-Z0-9_-]+$", "maxLength": 127}
_INTEGER = {"type": "integer", "format": "int64"}


def _definition(
    kind: str,
    plural: str,
    short: list[str],
    spec: dict[str, Any],
    status: dict[str, Any],
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.lower(),
                "listKind": f"{kind}List",
                "shortNames": short,
                "categories": ["messaging"],
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        *columns,
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {"type": "object", "properties": spec, "default": {}},
                                "status": {
                                    "type": "object",
                                    "properties": {
                                        "conditions": _CONDITIONS,
                                        "observedGeneration": _INTEGER,
                                        **status,
                                    },
                                },
                            },
                        }
                    },
                }
            ],
        },
    }


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions."""
    queue = {
        "type": "object",
        "properties": dict.fromkeys(("queue", "minOffset", "maxOffset"), _INTEGER),
    }
    lag = {
        "type": "object",
        "properties": {
            "topic": {"type": "string"},
            **dict.fromkeys(("queue", "maxOffset", "committedOffset", "held", "lag"), _INTEGER),
        },
    }
    return [
        _definition(
            "Topic",
            "topics",
            ["mqtopic"],
            {
                "name": {
                    **_NAME,
                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}],
                },
                "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
                "type": {
                    "type": "string",
                    "enum": ["MIXED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "LITE", "PRIORITY", "UNSPECIFIED"],
                    "default": "MIXED",
                },
                "queues": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 1024, "default": 8},
                "permission": {
                    "type": "string",
                    "enum": ["ReadWrite", "ReadOnly", "WriteOnly"],
                    "default": "ReadWrite",
                },
            },
            {
                "messages": _INTEGER,
                "messagesInTotal": _INTEGER,
                "messagesInRate": {"type": "number"},
                "queues": {"type": "array", "items": queue},
            },
            [
                {"name": "Type", "type": "string", "jsonPath": ".spec.type"},
                {"name": "Queues", "type": "integer", "jsonPath": ".spec.queues"},
                {"name": "Messages", "type": "integer", "jsonPath": ".status.messages"},
                {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
            ],
        ),
        _definition(
            "ConsumerGroup",
            "consumergroups",
            ["mqgroup"],
            {
                "name": {
                    **_NAME,
                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "name is immutable"}],
                },
                "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
                "orderly": {"type": "boolean"},
                "maxRetries": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000, "default": 16},
                "consume": {"type": "boolean", "default": True},
                "backoff": {
                    "type": "object",
                    "properties": {
                        "delays": {"type": "array", "items": {"type": "string", "pattern": r"^(\d+(h|m|s|ms))+$"}},
                        "initial": {"type": "string", "pattern": r"^(\d+(h|m|s|ms))+$"},
                        "max": {"type": "string", "pattern": r"^(\d+(h|m|s|ms))+$"},
                        "multiplier": {"type": "number", "minimum": 1},
                    },
                },
            },
            {
                "lag": _INTEGER,
                "members": _INTEGER,
                "messagesOutTotal": _INTEGER,
                "messagesOutRate": {"type": "number"},
                "offsets": {"type": "array", "items": lag},
            },
            [
                {"name": "Members", "type": "integer", "jsonPath": ".status.members"},
                {"name": "Lag", "type": "integer", "jsonPath": ".status.lag"},
                {"name": "Orderly", "type": "boolean", "jsonPath": ".spec.orderly"},
                {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
            ],
        ),
    ]
