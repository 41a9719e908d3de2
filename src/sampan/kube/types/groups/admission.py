"""admissionregistration.k8s.io/v1: webhook configurations, admission policies and their bindings."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

GROUP_VERSION = "admissionregistration.k8s.io/v1"


class WebhookConfigurationStrategy(BuiltinStrategy):
    """Mutating and validating webhook configurations."""

    columns = columns("Webhooks:integer")
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        for webhook in obj.get("webhooks") or ():
            webhook.setdefault("failurePolicy", "Fail")
            webhook.setdefault("matchPolicy", "Equivalent")
            webhook.setdefault("namespaceSelector", {})
            webhook.setdefault("objectSelector", {})
            webhook.setdefault("timeoutSeconds", 10)
            if self.kind.kind == "MutatingWebhookConfiguration":
                webhook.setdefault("reinvocationPolicy", "Never")
            service = (webhook.get("clientConfig") or {}).get("service")
            if service is not None:
                service.setdefault("port", 443)
            for rule in webhook.get("rules") or ():
                rule.setdefault("scope", "*")

    def row(self, obj: Object, now: datetime) -> list[Any]:
        return [obj["metadata"]["name"], len(obj.get("webhooks") or ()), cells.age(obj, now)]


class AdmissionPolicyStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicies."""

    columns = columns("Validations:integer", "ParamKind")
    namespaced = False
    has_generation = True

    def default(self, obj: Object) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("failurePolicy", "Fail")
        if spec.get("matchConstraints") is not None:
            _default_match(spec["matchConstraints"])

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def row(self, obj: Object, now: datetime) -> list[Any]:
        parameters = dig(obj, "spec", "paramKind")
        shown = f"{parameters.get('apiVersion')}/{parameters.get('kind')}" if parameters else cells.UNSET
        return [obj["metadata"]["name"], len(dig(obj, "spec", "validations", default=())), shown, cells.age(obj, now)]


class AdmissionPolicyBindingStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicyBindings."""

    columns = columns("PolicyName", "ParamRef")
    namespaced = False
    has_generation = True
    has_status = False

    def default(self, obj: Object) -> None:
        match = (obj.setdefault("spec", {})).get("matchResources")
        if match is not None:
            _default_match(match)

    def row(self, obj: Object, now: datetime) -> list[Any]:
        reference = dig(obj, "spec", "paramRef")
        shown = cells.UNSET
        if reference:
            name, namespace = reference.get("name") or "*", reference.get("namespace")
            shown = f"{namespace}/{name}" if namespace else name
        return [obj["metadata"]["name"], dig(obj, "spec", "policyName", default=""), shown, cells.age(obj, now)]


def _default_match(match: Object) -> None:
    match.setdefault("matchPolicy", "Equivalent")
    match.setdefault("namespaceSelector", {})
    match.setdefault("objectSelector", {})
    for rule in [*(match.get("resourceRules") or ()), *(match.get("excludeResourceRules") or ())]:
        rule.setdefault("scope", "*")


def types() -> list[ResourceType]:
    """The kinds of this module."""
    api = ("api-extensions",)
    return [
        declare(
            GROUP_VERSION,
            "mutatingwebhookconfigurations",
            "MutatingWebhookConfiguration",
            WebhookConfigurationStrategy(),
            categories=api,
        ),
        declare(
            GROUP_VERSION,
            "validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            AdmissionPolicyStrategy(),
            categories=api,
            subresources=(status("ValidatingAdmissionPolicy"),),
        ),
        declare(
            GROUP_VERSION,
            "validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            AdmissionPolicyBindingStrategy(),
            categories=api,
        ),
        declare(
            GROUP_VERSION,
            "validatingwebhookconfigurations",
            "ValidatingWebhookConfiguration",
            WebhookConfigurationStrategy(),
            categories=api,
        ),
    ]
