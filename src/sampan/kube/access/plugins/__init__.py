"""The built-in admission plugins, one a file, and the order in which they run (upstream's)."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionPlugin
from sampan.kube.access.plugins.certificate_approval import CertificateApproval
from sampan.kube.access.plugins.certificate_signing import CertificateSigning
from sampan.kube.access.plugins.certificate_subject import CertificateSubject
from sampan.kube.access.plugins.claim_resize import ClaimResize
from sampan.kube.access.plugins.default_ingress_class import DefaultIngressClass
from sampan.kube.access.plugins.default_storage_class import DefaultStorageClass
from sampan.kube.access.plugins.default_tolerations import DefaultTolerations
from sampan.kube.access.plugins.escalation import Escalation
from sampan.kube.access.plugins.limit_ranger import LimitRanger
from sampan.kube.access.plugins.namespace_lifecycle import NamespaceLifecycle
from sampan.kube.access.plugins.node_restriction import NodeRestriction
from sampan.kube.access.plugins.node_taint import NodeTaint
from sampan.kube.access.plugins.plugin import PluginContext
from sampan.kube.access.plugins.pod_security import PodSecurity
from sampan.kube.access.plugins.policy_expressions import PolicyExpressions
from sampan.kube.access.plugins.priority import Priority
from sampan.kube.access.plugins.resource_quota import ResourceQuota
from sampan.kube.access.plugins.runtime_class import RuntimeClass
from sampan.kube.access.plugins.service_account import ServiceAccount
from sampan.kube.access.plugins.storage_protection import StorageProtection


def first_plugins(context: PluginContext) -> list[AdmissionPlugin]:
    """What runs before parts' plugins, policies and webhooks."""
    return [
        NamespaceLifecycle(context),
        LimitRanger(context),
        ServiceAccount(context),
        NodeRestriction(context),
        NodeTaint(context),
        PodSecurity(context),
        Priority(context),
        DefaultTolerations(context),
        DefaultStorageClass(context),
        StorageProtection(context),
        ClaimResize(context),
        RuntimeClass(context),
        CertificateApproval(context),
        CertificateSigning(context),
        CertificateSubject(context),
        DefaultIngressClass(context),
        Escalation(context),
        PolicyExpressions(context),
    ]


def last_plugins(context: PluginContext) -> list[AdmissionPlugin]:
    """What runs at the very end, once everybody else has agreed."""
    return [ResourceQuota(context)]
