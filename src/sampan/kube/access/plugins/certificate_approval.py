"""CertificateApproval: who approves or denies a request must be allowed to for that signer."""

from __future__ import annotations

from sampan.kube.access.interface import AdmissionRequest, Attributes
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS

SIGNERS = Resource("certificates.k8s.io", "v1", "signers")


def may(plugin: Plugin, request: AdmissionRequest, verb: str) -> None:
    """Ask for a verb on the request's signer, by its name or for the whole of its domain (``example.com/*``).

    Raises:
        ApiError: 403.
    """
    signer: str = ((request.old_object or request.object or {}).get("spec") or {}).get("signerName") or ""
    domain = signer.partition("/")[0]
    for name in (signer, f"{domain}/*"):
        attributes = Attributes(request.user, verb, SIGNERS, name=name)
        if plugin.context.authorizer.authorize(attributes).allowed:
            return
    raise refused(request, f"user not permitted to {verb} requests with signerName {_quoted(signer)}")


def _quoted(text: str) -> str:
    return f'"{text}"'


class CertificateApproval(Plugin):
    """Guards the ``approval`` subresource."""

    operations = ("UPDATE",)
    resources = (CERTIFICATE_SIGNING_REQUESTS,)
    subresources = ("approval",)

    async def validate(self, request: AdmissionRequest) -> None:
        if _decided(request.object) != _decided(request.old_object):
            may(self, request, "approve")


def _decided(request: Object | None) -> list[Object]:
    conditions = ((request or {}).get("status") or {}).get("conditions") or ()
    return [condition for condition in conditions if condition.get("type") in ("Approved", "Denied")]
