"""The platform's certificate authority: made at first start, kept in the data directory, never shared.

An `Authority` owns one folder::

    ca.crt, ca.key              the self-signed authority (EC P-256), 0600
    <leaf>.crt, <leaf>.key      issued certificates that servers and clients load from files
    <leaf>.json                 what the leaf was issued for and until when, so that a start need not parse certificates

Leaves live `LEAF_DAYS` and are issued anew when less than a third of that remains, at start or by `renew` while running;
contexts made by `server_context` then serve the new certificate to the next handshake.

Validity is counted on the machine's own clock, not the platform's: the peers that check it are outside programs, whose
clock nobody steers. Elliptic keys, because making an RSA key takes longer than the rest of a start.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sampan.kernel.clock import machine_time
from sampan.kernel.errors import SampanError
from sampan.kernel.files import private_folder, write_atomic, write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
_KEY_USAGES = frozenset(
    {
        "signing",
        "digital signature",
        "content commitment",
        "key encipherment",
        "data encipherment",
        "key agreement",
        "cert sign",
        "crl sign",
    }
)
BACKDATED = timedelta(hours=1)
"""Certificates are valid from a little before they were made, for peers whose clock is behind."""


class CertificateError(SampanError):
    """A certificate request or a stored key is not usable."""


class KeyPair(NamedTuple):
    """A certificate and its private key as PEM files."""

    certificate: Path
    key: Path


class _Leaf(msgspec.Struct, frozen=True):
    """What ``<leaf>.json`` records."""

    names: list[str]
    groups: list[str]
    expires: float
    """Seconds since the epoch."""


class Authority:
    """Issues server and client certificates signed by the platform's own CA.

    Making the object makes the CA on first use of the folder. Methods read and write small files and sign; they take a
    few milliseconds and may be called on any thread.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = machine_time) -> None:
        self.directory = private_folder(directory)
        self._now = now
        self._signer: tuple[x509.Certificate, EllipticCurvePrivateKey] | None = None
        self._contexts: list[tuple[ssl.SSLContext, KeyPair]] = []
        self._leaves: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {}
        self.certificate_path = directory / "ca.crt"
        """The CA certificate, as clients need it to trust the platform."""
        self.key_path = directory / "ca.key"
        """The CA's private key (0600)."""
        if not (self.certificate_path.exists() and self.key_path.exists()):
            self._create()

    @property
    def certificate_pem(self) -> bytes:
        """The CA certificate in PEM."""
        return self.certificate_path.read_bytes()

    def server_certificate(self, names: Sequence[str], leaf: str | None = None) -> KeyPair:
        """A certificate for a server known under ``names`` (DNS names, ``*`` wildcards and IP addresses).

        The same names give the same files until they are due; ``leaf`` names the files (default: from the names).
        """
        return self._leaf(leaf or _leaf_name("server", names), tuple(names), (), server=True)

    def client_certificate(self, user: str, groups: Sequence[str] = (), leaf: str | None = None) -> KeyPair:
        """A certificate that the Kubernetes API reads as ``user`` in ``groups`` (common name and organizations)."""
        return self._leaf(leaf or _leaf_name("client", [user, *groups]), (user,), tuple(groups), server=False)

    def server_context(
        self, names: Sequence[str], *, leaf: str | None = None, verify_clients: bool = False
    ) -> ssl.SSLContext:
        """A TLS server context for `server_certificate`, kept current by `renew`.

        ``verify_clients``: ask for a client certificate of this authority; a client may still come without one.
        """
        pair = self.server_certificate(names, leaf)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(pair.certificate, pair.key)
        if verify_clients:
            context.load_verify_locations(self.certificate_path)
            context.verify_mode = ssl.CERT_OPTIONAL
        self._contexts.append((context, pair))
        return context

    def client_context(self, pair: KeyPair | None = None) -> ssl.SSLContext:
        """A TLS client context that trusts this authority and presents ``pair``, if given."""
        context = ssl.create_default_context(cafile=str(self.certificate_path))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    def renew(self) -> list[str]:
        """Issue anew every leaf handed out here that is due, and reload the server contexts; returns the leaves."""
        due = [leaf for leaf, made_for in self._leaves.items() if self._due(leaf, *made_for[:2])]
        for leaf in due:
            self._leaf(leaf, *self._leaves[leaf][:2], server=self._leaves[leaf][2])
        for context, pair in self._contexts:
            if pair.certificate.stem in due:
                context.load_cert_chain(pair.certificate, pair.key)
        return due

    def sign_csr(
        self, request: bytes, *, seconds: float = LEAF_DAYS * 86400.0, usages: Iterable[str] = ("client auth",)
    ) -> bytes:
        """Sign a PEM certificate request; returns the certificate in PEM.

        Subject, names and key are the request's. ``usages`` are Kubernetes' names (``client auth``, ``server auth``,
        ``digital signature``, ``key encipherment``, ...).

        Raises:
            CertificateError: not a valid request, or its signature does not fit its key.
        """
        from cryptography import x509

        try:
            parsed = x509.load_pem_x509_csr(request)
        except ValueError as error:
            raise CertificateError(f"not a PEM certificate request: {error}") from None
        if not parsed.is_signature_valid:
            raise CertificateError("the certificate request is not signed by its own key")
        names: list[x509.GeneralName] = []
        try:
            names = list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            pass  # a request without alternative names is ordinary
        return self._sign(parsed.subject, parsed.public_key(), names, frozenset(usages), seconds)

    # -- the authority's own key

    def _create(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sampan-ca")])
        start = datetime.fromtimestamp(self._now(), UTC) - BACKDATED
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(frozenset({"digital signature", "cert sign", "crl sign"})), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # the key first: a certificate without its key would be taken for a finished authority
        write_private(self.key_path, _key_pem(key))
        write_atomic(self.certificate_path, _certificate_pem(certificate))
        self._signer = (certificate, key)

    def _load(self) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        if self._signer is None:
            from cryptography import x509
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            try:
                certificate = x509.load_pem_x509_certificate(self.certificate_pem)
                key = load_pem_private_key(self.key_path.read_bytes(), None)
            except (OSError, ValueError) as error:
                raise CertificateError(f"the authority in {self.directory} cannot be read: {error}") from error
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise CertificateError(f"{self.key_path} is not an elliptic-curve key")
            self._signer = (certificate, key)
        return self._signer

    # -- leaves

    def _leaf(self, leaf: str, names: tuple[str, ...], groups: tuple[str, ...], *, server: bool) -> KeyPair:
        pair = KeyPair(self.directory / f"{leaf}.crt", self.directory / f"{leaf}.key")
        self._leaves[leaf] = (names, groups, server)
        if not self._due(leaf, names, groups):
            return pair
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, group) for group in groups]
        attributes.append(x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64]))
        usages = {"digital signature", "server auth" if server else "client auth"}
        alternatives = [_general_name(name) for name in names] if server else []
        certificate = self._sign(
            x509.Name(attributes), key.public_key(), alternatives, frozenset(usages), LEAF_DAYS * 86400
        )
        expires = self._now() + LEAF_DAYS * 86400
        write_private(pair.key, _key_pem(key))
        write_atomic(pair.certificate, certificate)
        record = msgspec.json.encode(_Leaf(list(names), list(groups), expires))
        write_atomic(self.directory / f"{leaf}.json", record)
        return pair

    def _due(self, leaf: str, names: tuple[str, ...], groups: tuple[str, ...]) -> bool:
        """Whether the leaf must be issued (again): absent, for other names, or in its last third."""
        record = self.directory / f"{leaf}.json"
        try:
            known = msgspec.json.decode(record.read_bytes(), type=_Leaf)
        except (OSError, msgspec.MsgspecError):
            return True
        if (tuple(known.names), tuple(known.groups)) != (names, groups):
            return True
        if known.expires - self._now() < LEAF_DAYS * 86400 / 3:
            return True
        authority = self.certificate_path.stat().st_mtime
        return record.stat().st_mtime < authority or not (self.directory / f"{leaf}.key").exists()

    def _sign(
        self,
        subject: x509.Name,
        public_key: CertificatePublicKeyTypes,
        names: list[x509.GeneralName],
        usages: frozenset[str],
        seconds: float,
    ) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        authority, key = self._load()
        start = datetime.fromtimestamp(self._now(), UTC)
        end = min(start + timedelta(seconds=seconds), authority.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
        )
        if usages & _KEY_USAGES:
            # the extension without a single usage is what OpenSSL calls an invalid certificate
            builder = builder.add_extension(_key_usage(usages), critical=True)
        extended = _extended_usages(usages)
        if extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _certificate_pem(builder.sign(key, hashes.SHA256()))


def _leaf_name(role: str, names: Sequence[str]) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", names[0]).strip("-") or "any"
    return f"{role}-{readable[:40]}-{zlib.crc32(chr(0).join(names).encode()):08x}"


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(usages: frozenset[str]) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature="digital signature" in usages or "signing" in usages,
        content_commitment="content commitment" in usages,
        key_encipherment="key encipherment" in usages,
        data_encipherment="data encipherment" in usages,
        key_agreement="key agreement" in usages,
        key_cert_sign="cert sign" in usages,
        crl_sign="crl sign" in usages,
        encipher_only=False,
        decipher_only=False,
    )


def _extended_usages(usages: frozenset[str]) -> list[x509.ObjectIdentifier]:
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

    known = {
        "any": Usage.ANY_EXTENDED_KEY_USAGE,
        "client auth": Usage.CLIENT_AUTH,
        "server auth": Usage.SERVER_AUTH,
        "code signing": Usage.CODE_SIGNING,
        "email protection": Usage.EMAIL_PROTECTION,
        "timestamping": Usage.TIME_STAMPING,
        "ocsp signing": Usage.OCSP_SIGNING,
    }
    return [oid for name, oid in known.items() if name in usages]


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)
