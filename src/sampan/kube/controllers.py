"""The controllers that every cluster runs, whatever its parts: namespaces, ownership, identities, certificates, quota.

`builtin_controllers` is the list. A controller that needs more than a `ControlContext` gets it here, and nowhere else.
"""

from __future__ import annotations

from sampan.kernel.certificates import Authority
from sampan.kube.access.tokens import Tokens
from sampan.kube.control import ControlContext, Controller
from sampan.kube.control.certificates_signing import CertificateApprover, CertificateCleaner, CertificateSigner
from sampan.kube.control.service_account_tokens import ServiceAccountTokens
from sampan.kube.control.storage_protection import ClaimProtection, VolumeProtection


def builtin_controllers(context: ControlContext, *, tokens: Tokens, authority: Authority) -> list[Controller]:
    """All of them, made but not started."""
    return [
        ServiceAccountTokens(context, tokens, authority.certificate_pem),
        CertificateApprover(context),
        CertificateSigner(context, authority),
        CertificateCleaner(context),
        ClaimProtection(context),
        VolumeProtection(context),
    ]
