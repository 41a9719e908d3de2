"""One definition that the tests of this folder vary."""

from __future__ import annotations

from typing import Any

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["size"],
    "x-kubernetes-validations": [
        {"rule": "self.size <= self.max", "message": "size may not exceed max", "fieldPath": ".size"},
    ],
    "properties": {
        "size": {"type": "integer", "minimum": 0},
        "max": {"type": "integer", "default": 10},
        "color": {"type": "string", "enum": ["red", "blue"], "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "color is immutable"}]},
        "note": {"type": "string", "nullable": True},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port"],
            "items": {
                "type": "object",
                "required": ["port"],
                "properties": {
                    "port": {"type": "integer"},
                    "count": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "messageExpression": "'%d is below %d'.format([self, oldSelf])", "reason": "FieldValueForbidden"}]},
                },
            },
        },
        "template": {"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True},
    },
}  # fmt: skip


def definition(**changes: Any) -> dict[str, Any]:
    """A valid definition of ``widgets.example.com``, as the server stores it."""
    version: dict[str, Any] = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "properties": {
                    "spec": SPEC,
                    "status": {
                        "type": "object",
                        "properties": {
                            "ready": {"type": "integer"},
                            "selector": {"type": "string"},
                            "conditions": {
                                "type": "array",
                                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            },
                        },
                    },
                },
            }
        },
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.size",
                "statusReplicasPath": ".status.ready",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com", "resourceVersion": "7"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {
                "plural": "widgets",
                "singular": "widget",
                "kind": "Widget",
                "listKind": "WidgetList",
                "shortNames": ["wd"],
                "categories": ["all"],
            },
            "conversion": {"strategy": "None"},
            "versions": [version],
            **changes,
        },
        "status": {"storedVersions": ["v1"]},
    }


def widget(**spec: Any) -> dict[str, Any]:
    """An instance."""
    return {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "w", "namespace": "ns", "uid": "u", "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {"size": 1, **spec},
    }
