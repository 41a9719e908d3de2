"""The controllers that every cluster runs, whatever its parts: namespaces, ownership, identities, certificates, quota.

`builtin_controllers` is the list. A controller that needs more than a `ControlContext` gets it here, and nowhere else.
"""

from __future__ import annotations

from sampan.kernel.certificates import Authority
from sampan.kube.access.tokens import Tokens
from sampan.kube.control import ControlContext, Startable
from sampan.kube.control.bootstrap_tokens import ClusterInfo, TokenCleaner
from sampan.kube.control.certificates_signing import CertificateApprover, CertificateCleaner, CertificateSigner
from sampan.kube.control.cluster_roles import ClusterRoleAggregation
from sampan.kube.control.definitions import DefinitionController, ServedDefinitions
from sampan.kube.control.garbage import GarbageCollector
from sampan.kube.control.namespaces import NamespaceController
from sampan.kube.control.node_clocks import NodeClocks
from sampan.kube.control.node_departure import NodeDeparture
from sampan.kube.control.node_ranges import NodeRanges
from sampan.kube.control.quota import QuotaController
from sampan.kube.control.reflector import Feed
from sampan.kube.control.service_account_tokens import ServiceAccountTokens
from sampan.kube.control.service_accounts import ServiceAccountController
from sampan.kube.control.storage_protection import ClaimProtection, VolumeProtection
from sampan.kube.control.ttl import EventExpiry
from sampan.kube.types.resource import TypeRegistry


def builtin_controllers(
    context: ControlContext,
    *,
    types: TypeRegistry,
    tokens: Tokens,
    authority: Authority,
    kubelets: Authority,
    definitions: ServedDefinitions,
    server: str,
    feed: Feed | None = None,
) -> list[Startable]:
    """All of them, made but not started.

    ``kubelets`` signs the serving certificates of kubelets. ``server`` is the base URL by which other machines reach the API server; ``feed`` a shorter way to the objects than the
    client, where there is one.
    """
    return [
        DefinitionController(context, definitions),
        ServiceAccountController(context, authority.certificate_pem.decode()),
        NamespaceController(context, types),
        GarbageCollector(context, types, feed),
        ClusterRoleAggregation(context),
        QuotaController(context, types),
        EventExpiry(context),
        ServiceAccountTokens(context, tokens, authority.certificate_pem),
        CertificateApprover(context),
        CertificateSigner(context, authority, kubelets),
        CertificateCleaner(context),
        ClusterInfo(context, server, authority.certificate_pem.decode()),
        TokenCleaner(context),
        NodeRanges(context),
        NodeClocks(context),
        NodeDeparture(context),
        ClaimProtection(context),
        VolumeProtection(context),
    ]
