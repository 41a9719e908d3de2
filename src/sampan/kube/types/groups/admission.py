"""admissionregistration.k8s.io/v1: webhook configurations, admission policies and their bindings."""

from __future__ import annotations

from sampan.kube.types.groups.declare import declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy

GROUP_VERSION = "admissionregistration.k8s.io/v1"


class WebhookConfigurationStrategy(BuiltinStrategy):
    """Mutating and validating webhook configurations."""

    namespaced = False
    has_generation = True
    has_status = False


class AdmissionPolicyStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicies."""

    namespaced = False
    has_generation = True


class AdmissionPolicyBindingStrategy(BuiltinStrategy):
    """ValidatingAdmissionPolicyBindings."""

    namespaced = False
    has_generation = True
    has_status = False


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
