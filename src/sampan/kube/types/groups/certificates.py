"""certificates.k8s.io/v1: CertificateSigningRequest."""

from __future__ import annotations

from typing import ClassVar

from sampan.kube.objects import Object
from sampan.kube.types.groups.declare import READ_WRITE, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class CertificateSigningRequestStrategy(BuiltinStrategy):
    """CertificateSigningRequests."""

    namespaced = False
    selectable_paths: ClassVar = {"spec.signerName": ("spec", "signerName")}

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def prepare_update(self, new: Object, old: Object) -> None:
        super().prepare_update(new, old)
        # A request's content is fixed at creation.
        new["spec"] = old["spec"]


def types() -> list[ResourceType]:
    """The kinds of this module."""
    return [
        declare(
            "certificates.k8s.io/v1",
            "certificatesigningrequests",
            "CertificateSigningRequest",
            CertificateSigningRequestStrategy(),
            short=("csr",),
            subresources=(
                ("approval", "CertificateSigningRequest", READ_WRITE),
                status("CertificateSigningRequest"),
            ),
        )
    ]
