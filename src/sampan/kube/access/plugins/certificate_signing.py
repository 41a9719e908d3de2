"""CertificateSigning: who fills in a certificate must be allowed to sign for that signer."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.certificate_approval import may
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.objects import Object
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS


class CertificateSigning(Plugin):
    """Guards ``status.certificate`` and the Failed condition."""

    operations = ("UPDATE",)
    resources = (CERTIFICATE_SIGNING_REQUESTS,)
    subresources = ("status",)

    async def validate(self, request: AdmissionRequest) -> None:
        if _signed(request.object) != _signed(request.old_object):
            may(self, request, "sign")


def _signed(request: Object | None) -> tuple[str, bool]:
    status = (request or {}).get("status") or {}
    failed = any(condition.get("type") == "Failed" for condition in status.get("conditions") or ())
    return status.get("certificate") or "", failed
