"""certificates.k8s.io/v1: CertificateSigningRequest."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.types import duration
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import READ_WRITE, declare, status
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns


class CertificateSigningRequestStrategy(BuiltinStrategy):
    """CertificateSigningRequests."""

    columns = columns("SignerName", "Requestor", "RequestedDuration", "Condition", age_at=1)
    namespaced = False
    selectable_paths: ClassVar = {"spec.signerName": ("spec", "signerName")}

    def prepare_create(self, obj: Object) -> None:
        obj["status"] = {}

    def prepare_update(self, new: Object, old: Object) -> None:
        super().prepare_update(new, old)
        # A request's content is fixed at creation.
        new["spec"] = old["spec"]

    def row(self, obj: Object, now: datetime) -> list[Any]:
        spec = obj.get("spec") or {}
        seconds = spec.get("expirationSeconds")
        states = [kind for kind in ("Approved", "Denied", "Failed") if cells.condition(obj, kind)]
        if dig(obj, "status", "certificate"):
            states.append("Issued")
        return [
            obj["metadata"]["name"],
            cells.age(obj, now),
            spec.get("signerName") or cells.NONE,
            spec.get("username") or "",
            duration.human(timedelta(seconds=seconds)) if seconds is not None else cells.NONE,
            ",".join(states) or "Pending",
        ]


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
