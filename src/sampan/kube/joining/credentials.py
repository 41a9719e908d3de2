"""The certificates of a joined node: asked for by CertificateSigningRequest, kept in files, renewed in time.

One folder holds what a node is::

    node.json      its name, addresses and the API server's (``Membership``)
    ca.crt         the cluster's authority
    client.pem     certificate and key as system:node:<name>
    serving.pem    certificate and key of the kubelet API, for the node's name and address
    network.pem    certificate and key as system:kube-proxy

A `Credential` is renewed when seven to nine tenths of its life have passed, at a moment drawn by chance as the kubelet does,
so that nodes that joined together do not all come back together. Its life is counted on the platform's clock from the moment
it is read: whoever steers the clock past that moment sees the renewal. Contexts made from it serve the new certificate to
the next handshake.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import secrets
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sampan.kernel.clock import Clock, machine_time
from sampan.kernel.files import private_folder, write_atomic, write_private
from sampan.kernel.issuing import BACKDATED
from sampan.kube.client import Client
from sampan.kube.joining.tokens import JoinError
from sampan.kube.objects import Object, dig
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS
from sampan.kube.status import ApiError

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger(__name__)

CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
SERVING_SIGNER = "kubernetes.io/kubelet-serving"
PROXY_SIGNER = "kubernetes.io/kube-apiserver-client"
NODES_GROUP = "system:nodes"
NODE_PREFIX = "system:node:"
PROXY_USER = "system:kube-proxy"
APPROVAL_SECONDS = 600.0
"""How long an undecided request is waited for before another is made."""
RETRY_SECONDS = 30.0
"""Between attempts to renew."""


class Membership(msgspec.Struct, kw_only=True):
    """``node.json``: where a node belongs."""

    node: str
    server: str
    """Base URL of the API server."""
    address: str
    """The node's own address."""
    same_machine: bool = False
    """The API server runs on this machine, in this network namespace."""
    labels: dict[str, str] = {}
    taints: list[dict[str, str]] = []
    """Given to the Node when it registers."""


class Folder:
    """The files of one joined node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def membership(self) -> Membership | None:
        """What it joined; None where it has not.

        Raises:
            JoinError: the file cannot be read.
        """
        file = self.path / "node.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Membership)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise JoinError(f"{file} cannot be read: {error}; join again with a token") from None

    @property
    def authority(self) -> Path:
        """The cluster's authority."""
        return self.path / "ca.crt"

    def begin(self, authority: str) -> None:
        """Make the folder, and believe this authority from now on."""
        private_folder(self.path)
        write_atomic(self.authority, authority)

    def keep(self, membership: Membership) -> None:
        """Remember where the node belongs; written last, when the join has worked."""
        write_atomic(self.path / "node.json", msgspec.json.format(msgspec.json.encode(membership), indent=2))

    def forget(self) -> None:
        """The node belongs nowhere any more."""
        for name in ("node.json", "client.pem", "serving.pem", "network.pem", "ca.crt"):
            (self.path / name).unlink(missing_ok=True)


class Wanted(NamedTuple):
    """A certificate to ask for."""

    signer: str
    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """DNS names and addresses it is good for."""

    @property
    def usages(self) -> tuple[str, str]:
        """What it is for."""
        return ("digital signature", "server auth" if self.signer == SERVING_SIGNER else "client auth")


def of_client(node: str) -> Wanted:
    """A node's identity."""
    return Wanted(CLIENT_SIGNER, f"{NODE_PREFIX}{node}", (NODES_GROUP,))


def of_kubelet(node: str, addresses: Sequence[str]) -> Wanted:
    """The kubelet API's certificate."""
    return Wanted(SERVING_SIGNER, f"{NODE_PREFIX}{node}", (NODES_GROUP,), (node, *addresses))


def of_network() -> Wanted:
    """The identity that follows Services."""
    return Wanted(PROXY_SIGNER, PROXY_USER)


class Pair(NamedTuple):
    """A certificate with its key, in PEM, and when it ends (machine time)."""

    pem: bytes
    begins: float
    ends: float
    common_name: str
    names: frozenset[str]


def read_pair(pem: bytes) -> Pair:
    """Read a certificate and what it says.

    Raises:
        ValueError: it is none.
    """
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(pem)
    names: set[str] = set()
    with contextlib.suppress(x509.ExtensionNotFound):
        for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value:
            names.add(str(name.value))
    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return Pair(
        pem,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        str(common[0].value) if common else "",
        frozenset(names),
    )


def is_of(pem: bytes, authority: bytes) -> bool:
    """An authority signed the certificate. Raises ValueError: one of the two is none."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    certificate, issuer = x509.load_pem_x509_certificate(pem), x509.load_pem_x509_certificate(authority)
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def make_request(wanted: Wanted) -> tuple[bytes, bytes]:
    """A new key and a request signed by it, both in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, each) for each in wanted.organizations]
    attributes.append(x509.NameAttribute(x509.NameOID.COMMON_NAME, wanted.common_name))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if wanted.names:
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in wanted.names])
        builder = builder.add_extension(alternatives, critical=False)
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


async def obtain(client: Client, wanted: Wanted, clock: Clock) -> bytes:
    """Ask for a certificate and wait until it is issued; returns certificate and key in PEM.

    Raises:
        JoinError: the request was denied, failed, or nobody decided on it in time.
        ApiError: the request could not be made.
    """
    key, request = await asyncio.to_thread(make_request, wanted)
    prefix = "node-csr-" if wanted.signer == CLIENT_SIGNER else "csr-"
    made = await client.create(
        CERTIFICATE_SIGNING_REQUESTS,
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"generateName": prefix},
            "spec": {
                "request": base64.b64encode(request).decode(),
                "signerName": wanted.signer,
                "usages": list(wanted.usages),
            },
        },
    )
    name = made["metadata"]["name"]
    try:
        async with clock.timeout(APPROVAL_SECONDS):
            certificate = await _issued(client, name, clock)
    except TimeoutError:
        raise JoinError(
            f"nobody decided on the certificate request {name}; `kubectl certificate approve {name}` approves it"
        ) from None
    return certificate + key


async def _issued(client: Client, name: str, clock: Clock) -> bytes:
    """The certificate of a request, once it is there."""
    told = False
    while True:
        async with client.watch(CERTIFICATE_SIGNING_REQUESTS, field_selector=f"metadata.name={name}") as events:
            async for event in events:
                if event.type in ("ADDED", "MODIFIED") and (certificate := _certificate(event.object)):
                    return certificate
                if event.type == "DELETED":
                    raise JoinError(f"the certificate request {name} was deleted before it was decided")
                if not told and event.type == "ADDED" and not dig(event.object, "status", "conditions"):
                    told = True
                    log.info("waiting for the certificate request %s to be approved", name)
        await clock.sleep(1.0)


def _certificate(request: Object) -> bytes | None:
    for condition in dig(request, "status", "conditions", default=()):
        if condition["type"] in ("Denied", "Failed"):
            why = condition.get("message") or condition.get("reason") or "no reason given"
            raise JoinError(
                f"the certificate request {request['metadata']['name']} was {condition['type'].lower()}: {why}"
            )
    given = dig(request, "status", "certificate")
    return base64.b64decode(given) if given else None


def due(pair: Pair) -> float:
    """When to renew a certificate (machine time), drawn anew at each call. What it is backdated by is not life."""
    begins = pair.begins + BACKDATED.total_seconds()
    share = 0.7 + 0.2 * secrets.randbelow(1000) / 1000
    return begins + share * max(pair.ends - begins, 0.0)


class Credential:
    """One certificate of the node, in its file and in the TLS contexts made from it."""

    def __init__(self, file: Path, wanted: Wanted, clock: Clock, not_of: Path | None = None) -> None:
        """``not_of``: an authority whose certificates are none of this kind; one that it signed is asked for anew."""
        self.wanted = wanted
        self._not_of = not_of
        self._file = file
        self._clock = clock
        self._contexts: list[ssl.SSLContext] = []
        self._pair: Pair | None = None
        self.renewals = 0
        """How often it was renewed in this process."""

    def load(self) -> bool:
        """Read the file; whether it holds what is wanted and is still good. Reads files: call it outside the event loop."""
        try:
            pair = read_pair(self._file.read_bytes())
        except (OSError, ValueError):
            return False
        fits = pair.common_name == self.wanted.common_name and frozenset(self.wanted.names) <= pair.names
        if not fits or pair.ends <= machine_time() or self._outdated(pair):
            return False
        self._pair = pair
        return True

    def _outdated(self, pair: Pair) -> bool:
        return self._not_of is not None and is_of(pair.pem, self._not_of.read_bytes())

    async def ensure(self, client: Client) -> None:
        """Have a certificate: the file's, or a new one. Raises JoinError, ApiError."""
        if not await asyncio.to_thread(self.load):
            await self.renew(client)

    async def renew(self, client: Client) -> None:
        """Ask for a new one and use it from now on. Raises JoinError, ApiError."""
        pem = await obtain(client, self.wanted, self._clock)
        await asyncio.to_thread(self._take, pem)
        for context in self._contexts:
            context.load_cert_chain(self._file)

    def _take(self, pem: bytes) -> None:
        self._pair = read_pair(pem)
        write_private(self._file, pem)

    def serve(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """Have a TLS context present this certificate, now and after each renewal. Reads a file."""
        context.load_cert_chain(self._file)
        self._contexts.append(context)
        return context

    async def keep(self, client: Client) -> None:
        """Renew it whenever it is due; runs until cancelled."""
        while True:
            assert self._pair is not None
            await self._clock.sleep(max(due(self._pair) - machine_time(), RETRY_SECONDS))
            while True:
                try:
                    await self.renew(client)
                    break
                except (JoinError, ApiError) as error:
                    log.warning("the certificate of %s is not renewed yet: %s", self.wanted.common_name, error)
                    await self._clock.sleep(RETRY_SECONDS)
            self.renewals += 1
            log.info("renewed the certificate of %s (%s)", self.wanted.common_name, self.wanted.signer)
