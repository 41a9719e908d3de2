"""Making keys and certificates: the only module that does, and the only one that needs the cryptography library.

Plain functions over PEM: `authority` makes a self-signed one, `leaf` a certificate under it, `sign` answers a certificate
request. All keys are elliptic (P-256), because making an RSA key takes longer than the rest of a start.

The library weighs some ten megabytes in whatever process loads it. A platform that has its certificates does not load it; the
first start, which makes them all, has them made by a child (`IssuingProcess`) that ends when it is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import msgspec

from sampan.kernel.errors import SampanError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

AUTHORITY_DAYS = 3650
BACKDATED = timedelta(hours=1)
"""Certificates are valid from a little before they were made, for peers whose clock is behind."""
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


class CertificateError(SampanError):
    """A certificate request or a stored key is not usable."""


class Made(NamedTuple):
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


class Issuing(Protocol):
    """Makes what an `Authority` keeps: this module's functions, or a process that runs them."""

    def authority(self, now: float) -> Made:
        """A self-signed authority, valid from ``now`` (seconds since the epoch)."""
        ...

    def leaf(
        self, signer: Made, names: Sequence[str], groups: Sequence[str], server: bool, now: float, seconds: float
    ) -> Made:
        """A key and its certificate: for a server known under ``names``, or a client ``names[0]`` in ``groups``.

        Raises:
            CertificateError: the signer's key or certificate cannot be read.
        """
        ...


class IssuingHere:
    """Makes them in this process."""

    def authority(self, now: float) -> Made:
        """See `Issuing.authority`."""
        return authority(now)

    def leaf(
        self, signer: Made, names: Sequence[str], groups: Sequence[str], server: bool, now: float, seconds: float
    ) -> Made:
        """See `Issuing.leaf`."""
        return leaf(signer, names, groups, server, now, seconds)


class _Asked(msgspec.Struct, array_like=True):
    """One line to the child; ``signer`` None asks for an authority."""

    now: float
    signer: Made | None = None
    names: Sequence[str] = ()
    groups: Sequence[str] = ()
    server: bool = False
    seconds: float = 0.0


class IssuingProcess:
    """Makes them in a child of this process, while the parent does something else; use `fork`, and `close` at the end.

    Its methods may be called on any thread. A child that is gone (closed, or killed) is done without: the work is then done
    here.
    """

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self._line: socket.socket | None = line
        self._stream = line.makefile("rwb")
        self._turn = threading.Lock()
        self._here = IssuingHere()

    @classmethod
    def fork(cls) -> Self:
        """Begin. To be called while this process has a single thread."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls(pid, ours)

    def authority(self, now: float) -> Made:
        """See `Issuing.authority`."""
        return self._ask(_Asked(now)) or self._here.authority(now)

    def leaf(
        self, signer: Made, names: Sequence[str], groups: Sequence[str], server: bool, now: float, seconds: float
    ) -> Made:
        """See `Issuing.leaf`."""
        made = self._ask(_Asked(now, signer, names, groups, server, seconds))
        return made or self._here.leaf(signer, names, groups, server, now, seconds)

    def close(self) -> None:
        """End the child; idempotent."""
        with self._turn:
            if self._line is None:
                return
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)  # whoever else holds a copy of the descriptor
            self._line.close()
            self._line = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)

    def _ask(self, asked: _Asked) -> Made | None:
        with self._turn:
            if self._line is None:
                return None
            try:
                self._stream.write(msgspec.json.encode(asked) + b"\n")
                self._stream.flush()
                answer = self._stream.readline()
            except OSError:
                return None
        # half a line: it was killed while it wrote
        return msgspec.json.decode(answer, type=Made) if answer.endswith(b"\n") else None


def _serve(line: socket.socket) -> None:
    """The child's whole life."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _load()
        with line.makefile("rwb") as stream:
            while asked := stream.readline():
                it = msgspec.json.decode(asked, type=_Asked)
                made = (
                    authority(it.now)
                    if it.signer is None
                    else leaf(it.signer, it.names, it.groups, it.server, it.now, it.seconds)
                )
                stream.write(msgspec.json.encode(made) + b"\n")
                stream.flush()
        code = 0
    finally:
        os._exit(code)


def _load() -> None:
    """Import the library ahead of the first request."""
    from cryptography import x509  # noqa: F401
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: F401


def authority(now: float) -> Made:
    """See `Issuing.authority`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sampan-ca")])
    start = datetime.fromtimestamp(now, UTC) - BACKDATED
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
    return Made(_certificate_pem(certificate), _key_pem(key))


def leaf(signer: Made, names: Sequence[str], groups: Sequence[str], server: bool, now: float, seconds: float) -> Made:
    """See `Issuing.leaf`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, group) for group in groups]
    attributes.append(x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0][:64]))
    usages = frozenset({"digital signature", "server auth" if server else "client auth"})
    alternatives = [_general_name(name) for name in names] if server else []
    pem = _signed(signer, x509.Name(attributes), key.public_key(), alternatives, usages, now, seconds)
    return Made(pem, _key_pem(key))


def sign(signer: Made, request: bytes, usages: Iterable[str], now: float, seconds: float) -> bytes:
    """Sign a PEM certificate request, with the subject, names and key it has; returns the certificate in PEM.

    Raises:
        CertificateError: not a valid request, its signature does not fit its key, or the signer cannot be read.
    """
    from cryptography import x509

    try:
        parsed = x509.load_pem_x509_csr(request)
    except ValueError as error:
        raise CertificateError(f"not a PEM certificate request: {error}") from None
    if not parsed.is_signature_valid:
        raise CertificateError("the certificate request is not signed by its own key")
    names: list[x509.GeneralName] = []
    with contextlib.suppress(x509.ExtensionNotFound):  # a request without alternative names is ordinary
        names = list(parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return _signed(signer, parsed.subject, parsed.public_key(), names, frozenset(usages), now, seconds)


def _parsed(signer: Made) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(signer.certificate)
        key = load_pem_private_key(signer.key, None)
    except ValueError as error:
        raise CertificateError(f"the authority cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the authority's key is not an elliptic-curve key")
    return certificate, key


def _signed(
    signer: Made,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    names: list[x509.GeneralName],
    usages: frozenset[str],
    now: float,
    seconds: float,
) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    authority_certificate, key = _parsed(signer)
    start = datetime.fromtimestamp(now, UTC)
    end = min(start + timedelta(seconds=seconds), authority_certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority_certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
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
