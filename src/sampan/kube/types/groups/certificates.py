"""certificates.k8s.io/v1: CertificateSigningRequest."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from sampan.kube.objects import Object, dig
from sampan.kube.types import duration
from sampan.kube.types.groups import cells
from sampan.kube.types.groups.declare import READ_WRITE, declare, status
from sampan.kube.types.problems import Problems
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy, columns

USAGES = (
    "signing", "digital signature", "content commitment", "key encipherment", "key agreement", "data encipherment",
    "cert sign", "crl sign", "encipher only", "decipher only", "any", "server auth", "client auth", "code signing",
    "email protection", "s/mime", "ipsec end system", "ipsec tunnel", "ipsec user", "timestamping", "ocsp signing",
    "microsoft sgc", "netscape sgc",
)  # fmt: skip


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
        new["spec"] = old.get("spec") or {}

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

    def check(self, obj: Object, problems: Problems) -> None:
        spec = obj.get("spec") or {}
        if not spec.get("request"):
            problems.required("spec.request")
        usages = spec.get("usages") or ()
        if not usages:
            problems.required("spec.usages")
        for index, usage in enumerate(usages):
            if usage not in USAGES:
                problems.unsupported(f"spec.usages[{index}]", usage, USAGES)
            if usage in usages[:index]:
                problems.duplicate(f"spec.usages[{index}]", usage)
        signer = spec.get("signerName") or ""
        if not signer:
            problems.required("spec.signerName")
        elif signer.count("/") != 1 or signer.startswith("/") or signer.endswith("/"):
            why = "must be a fully qualified domain and path of the form 'example.com/signer-name'"
            problems.invalid("spec.signerName", signer, why)
        seconds = spec.get("expirationSeconds")
        if seconds is not None and seconds < 600:
            problems.invalid(
                "spec.expirationSeconds", seconds, "may not specify a duration less than 600 seconds (10 minutes)"
            )


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
