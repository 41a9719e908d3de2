"""Who asks for a certificate, and for whom: the requester's identity is recorded, administrators are not minted.

The API server itself writes the requester into the request (no client can choose it), and CertificateSubjectRestriction
refuses client certificates for ``system:masters``, which would bypass all authorization for as long as they live.
"""

from __future__ import annotations

import base64
import binascii

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.rbac import MASTERS
from sampan.kube.access.refusal import refused
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


class CertificateSubject(Plugin):
    """Fills the requester's fields; refuses ``system:masters``."""

    operations = ("CREATE",)
    resources = (CERTIFICATE_SIGNING_REQUESTS,)

    async def admit(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.setdefault("spec", {})
        user = request.user
        for field in ("username", "uid", "groups", "extra"):
            spec.pop(field, None)
        spec["username"] = user.name
        if user.uid:
            spec["uid"] = user.uid
        if user.groups:
            spec["groups"] = list(user.groups)
        if user.extra:
            spec["extra"] = {key: list(values) for key, values in user.extra.items()}

    async def validate(self, request: AdmissionRequest) -> None:
        assert request.object is not None
        spec = request.object.get("spec") or {}
        if spec.get("signerName") != CLIENT_SIGNER:
            return
        from cryptography import x509

        try:
            parsed = x509.load_pem_x509_csr(base64.b64decode(spec.get("request") or ""))
        except (ValueError, binascii.Error) as error:
            raise refused(request, f"failed to parse CSR: {error}") from None
        organizations = parsed.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
        if any(attribute.value == MASTERS for attribute in organizations):
            raise refused(request, f"use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed")
