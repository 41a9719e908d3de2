"""CertificateSigningRequests: approving what a joining node asks for, signing what has been approved, forgetting the rest.

Three controllers, as upstream: `CertificateApprover` approves what nodes request for themselves when they are allowed to:
client certificates, and, beyond upstream's, the kubelet's serving certificate for the addresses its Node has, and the
identity that follows Services (``system:kube-proxy``); `CertificateSigner` signs every approved request of the built-in signers,
or marks it Failed when it asks for what its signer does not give; `CertificateCleaner` deletes requests that are long done.
What a signer gives is decided by `refusal`, a pure function.

Two authorities sign. A kubelet says itself what its addresses are, so its serving certificate comes of one that only the API
server's client of kubelets believes; everything else comes of the platform's, which every client knows.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sampan.kube.access.authentication import FRONT_PROXY
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS, NODES, SERVICES
from sampan.kube.status import ApiError

if TYPE_CHECKING:
    from cryptography import x509

CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
SIGNERS = (CLIENT, KUBELET_CLIENT, KUBELET_SERVING)
NODES_GROUP = "system:nodes"
NODE_PREFIX = "system:node:"
PROXY_USER = "system:kube-proxy"

SECONDS_DEFAULT = 365 * 24 * 3600.0
SECONDS_LEAST = 600.0

_KEY_USAGES = frozenset({"digital signature", "key encipherment"})
_API_SERVICE = "metadata.name=kubernetes"
_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews")

DONE_SECONDS = 3600.0
"""An issued, denied or failed request is deleted this long after that was decided."""
PENDING_SECONDS = 24 * 3600.0
"""One that nobody decides, or nobody signs, this long after it was made."""


class Signer(Protocol):
    """What of an authority is needed."""

    def settle(self) -> None: ...

    def sign_csr(self, request: bytes, *, seconds: float = ..., usages: Any = ...) -> bytes: ...


class Asked(NamedTuple):
    """What a request asks for."""

    common_name: str
    organizations: tuple[str, ...]
    names: tuple[str, ...]
    """DNS names and IP addresses."""
    other_names: bool
    """It also names e-mail addresses or URIs."""


def asked(pem: bytes) -> Asked:
    """Read a PEM certificate request.

    Raises:
        ValueError: it is none.
    """
    from cryptography import x509

    parsed = x509.load_pem_x509_csr(pem)
    names: list[str] = []
    other = False
    for name in _alternatives(parsed):
        if isinstance(name, x509.DNSName | x509.IPAddress):
            names.append(str(name.value))
        else:
            other = True
    common = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    organizations = parsed.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)
    return Asked(
        str(common[0].value) if common else "",
        tuple(str(each.value) for each in organizations),
        tuple(names),
        other,
    )


def _alternatives(parsed: x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    from cryptography import x509

    try:
        return list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def refusal(signer: str, request: Asked, usages: frozenset[str], username: str) -> str:
    """Why a signer does not give what is asked for; "" when it does."""
    if signer == CLIENT:
        # One authority signs for people and for the front proxy, whose word about users is believed.
        if request.common_name == FRONT_PROXY:
            return f"subject common name {FRONT_PROXY} is reserved"
        return _usage_refusal(usages, "client auth")
    if request.organizations != (NODES_GROUP,):
        return f"subject organization is not {NODES_GROUP}"
    if not request.common_name.startswith(NODE_PREFIX):
        return f"subject common name does not begin with {NODE_PREFIX}"
    if request.other_names:
        return "e-mail and URI subject alternative names are not allowed"
    if signer == KUBELET_CLIENT:
        if request.names:
            return "DNS and IP subject alternative names are not allowed"
        return _usage_refusal(usages, "client auth")
    if request.common_name != username:
        return "subject common name is not the requesting user"
    if not request.names:
        return "DNS or IP subjectAltName is required"
    return _usage_refusal(usages, "server auth")


def _usage_refusal(usages: frozenset[str], needed: str) -> str:
    if needed not in usages:
        return f"usages did not contain {needed}"
    extra = sorted(usages - _KEY_USAGES - {needed})
    return f"usages contain {', '.join(extra)}, which the signer does not give" if extra else ""


def of_the_cluster(name: str) -> bool:
    """A DNS name under which the API server or a Service is believed, and no node."""
    plain = name.lower().rstrip(".")
    return plain in ("localhost", "kubernetes", "kubernetes.default") or plain.endswith((".svc", ".cluster.local"))


def condition(request: Object, type: str) -> Mapping[str, Any] | None:
    """The request's condition of a type, when it is there."""
    conditions: list[Mapping[str, Any]] = dig(request, "status", "conditions", default=[])
    return next((each for each in conditions if each.get("type") == type), None)


def _pem(request: Object) -> bytes:
    return base64.b64decode(dig(request, "spec", "request", default=""))


def _usages(request: Object) -> frozenset[str]:
    return frozenset(dig(request, "spec", "usages", default=()))


def _with_condition(request: Object, type: str, reason: str, message: str, stamp: str) -> Object:
    changed: Object = copy(request)
    made = {
        "type": type,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastUpdateTime": stamp,
        "lastTransitionTime": stamp,
    }
    changed.setdefault("status", {}).setdefault("conditions", []).append(made)
    return changed


class _RequestController(Controller):
    """What the controllers of requests share."""

    def sources(self) -> list[Source]:
        return [For(CERTIFICATE_SIGNING_REQUESTS)]

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self.clock.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class CertificateApprover(_RequestController):
    """Approves the client certificates of nodes: of joining ones, and their renewals."""

    name = "csrapproving"

    def sources(self) -> list[Source]:
        return [
            For(CERTIFICATE_SIGNING_REQUESTS),
            Watches(NODES, self._asked_by),
            Watches(SERVICES, lambda _: [], _API_SERVICE),
        ]

    def _asked_by(self, node: Object) -> list[Key]:
        """Undecided serving requests of a node: its addresses may have come after them."""
        user = f"{NODE_PREFIX}{node['metadata']['name']}"
        return [
            Key.of(request)
            for request in self.informer(CERTIFICATE_SIGNING_REQUESTS).objects()
            if dig(request, "spec", "username") == user and not dig(request, "status", "conditions")
        ]

    async def reconcile(self, key: Key) -> float | None:
        request = self.informer(CERTIFICATE_SIGNING_REQUESTS).get(key)
        if request is None or dig(request, "status", "certificate"):
            return None
        spec = request.get("spec") or {}
        if condition(request, "Approved") or condition(request, "Denied"):
            return None
        try:
            wanted = asked(_pem(request))
        except (ValueError, binascii.Error):
            return None
        signer, username = spec.get("signerName") or "", spec.get("username") or ""
        if signer not in SIGNERS or refusal(signer, wanted, _usages(request), username):
            return None
        for subresource, text in self._reasons(signer, wanted, username):
            if await self._may(spec, subresource):
                message = f"Auto approving {text} after SubjectAccessReview."
                approved = _with_condition(request, "Approved", "AutoApproved", message, self._stamp())
                await self.client.update(CERTIFICATE_SIGNING_REQUESTS, approved, subresource="approval")
                return None
        return None

    def _reasons(self, signer: str, wanted: Asked, username: str) -> list[tuple[str, str]]:
        """What the requester must be allowed (any of it) for an approval, and how that is called."""
        if signer == KUBELET_CLIENT:
            node = self.informer(NODES).get(Key("", wanted.common_name.removeprefix(NODE_PREFIX)))
            if node is not None and JOINED not in (node["metadata"].get("annotations") or {}):
                return []  # the platform's own, which has no such certificate: whoever asks is not it
            own = [("selfnodeclient", "self kubelet client certificate")] if wanted.common_name == username else []
            return [*own, ("nodeclient", "kubelet client certificate")]
        if signer == KUBELET_SERVING:
            node = self.informer(NODES).get(Key("", username.removeprefix(NODE_PREFIX)))
            addresses = {one.get("address") for one in dig(node, "status", "addresses", default=())}
            # a node says itself what its addresses are: not those under which others, and the API server, are believed
            foreign = {*self._api_addresses(), *self._names_of_others(username)}
            mine = not any(name in foreign or of_the_cluster(name) for name in wanted.names)
            known = node is not None and mine and set(wanted.names) <= addresses
            return [("selfnodeserver", "self kubelet serving certificate")] if known else []
        proxy = wanted.common_name == PROXY_USER and not wanted.organizations and not wanted.names
        return [("nodeproxy", "node proxy client certificate")] if proxy and username.startswith(NODE_PREFIX) else []

    def _api_addresses(self) -> list[str]:
        service = self.informer(SERVICES, _API_SERVICE).get(Key("default", "kubernetes"))
        return dig(service, "spec", "clusterIPs", default=[]) or [dig(service, "spec", "clusterIP", default="")]

    def _names_of_others(self, username: str) -> Iterator[str]:
        for other in self.informer(NODES).objects():
            name = other["metadata"]["name"]
            if f"{NODE_PREFIX}{name}" != username:
                yield name

    async def _may(self, spec: Mapping[str, Any], subresource: str) -> bool:
        wanted = {
            "group": "certificates.k8s.io",
            "resource": "certificatesigningrequests",
            "subresource": subresource,
            "verb": "create",
            "version": "*",
        }
        fields = {
            "user": spec.get("username"),
            "groups": spec.get("groups"),
            "uid": spec.get("uid"),
            "extra": spec.get("extra"),
        }
        about = {key: value for key, value in fields.items() if value}
        answer = await self.client.create(_REVIEWS, {"spec": {"resourceAttributes": wanted, **about}})
        return bool(dig(answer, "status", "allowed"))


class CertificateSigner(_RequestController):
    """Signs approved requests of the built-in signers."""

    name = "csrsigning"

    def __init__(self, context: ControlContext, authority: Signer, kubelets: Signer) -> None:
        """``authority`` is what clients trust; ``kubelets`` signs what kubelets serve with."""
        super().__init__(context)
        self._authority = authority
        self._kubelets = kubelets

    async def reconcile(self, key: Key) -> float | None:
        request = self.informer(CERTIFICATE_SIGNING_REQUESTS).get(key)
        if request is None or dig(request, "status", "certificate"):
            return None
        spec = request.get("spec") or {}
        signer = spec.get("signerName")
        if signer not in SIGNERS or condition(request, "Failed") or condition(request, "Denied"):
            return None
        if not condition(request, "Approved"):
            return None
        try:
            pem = _pem(request)
            why = refusal(signer, asked(pem), _usages(request), spec.get("username") or "")
        except (ValueError, binascii.Error) as error:
            why = f"unable to parse csr: {error}"
        if why:
            failed = _with_condition(request, "Failed", "SignerValidationFailure", why, self._stamp())
            await self.client.update(CERTIFICATE_SIGNING_REQUESTS, failed, subresource="status")
            return None
        seconds = max(SECONDS_LEAST, min(float(spec.get("expirationSeconds") or SECONDS_DEFAULT), SECONDS_DEFAULT))
        usages = sorted(_usages(request))
        authority = self._kubelets if signer == KUBELET_SERVING else self._authority
        # nobody is given a certificate of an authority that a power cut may take
        await asyncio.to_thread(authority.settle)
        certificate = await asyncio.to_thread(authority.sign_csr, pem, seconds=seconds, usages=usages)
        signed: Object = copy(request)
        signed.setdefault("status", {})["certificate"] = base64.b64encode(certificate).decode()
        await self.client.update(CERTIFICATE_SIGNING_REQUESTS, signed, subresource="status")
        return None


class CertificateCleaner(_RequestController):
    """Deletes requests that are done with, or that nobody cares for."""

    name = "csrcleaner"

    async def reconcile(self, key: Key) -> float | None:
        request = self.informer(CERTIFICATE_SIGNING_REQUESTS).get(key)
        if request is None:
            return None
        remaining = lifetime_end(request) - self.clock.time()
        if remaining > 0:
            return remaining
        try:
            await self.client.delete(CERTIFICATE_SIGNING_REQUESTS, key.name, uid=request["metadata"]["uid"])
        except ApiError as error:
            if not error.not_found:
                raise
        return None


def lifetime_end(request: Object) -> float:
    """When a request may go, in seconds since the epoch."""
    created = datetime.fromisoformat(request["metadata"]["creationTimestamp"]).timestamp()
    decided = [
        datetime.fromisoformat(each["lastUpdateTime"]).timestamp()
        for type in ("Approved", "Denied", "Failed")
        if (each := condition(request, type)) is not None and each.get("lastUpdateTime")
    ]
    done = dig(request, "status", "certificate") or condition(request, "Denied") or condition(request, "Failed")
    if done and decided:
        return max(decided) + DONE_SECONDS
    return created + PENDING_SECONDS
