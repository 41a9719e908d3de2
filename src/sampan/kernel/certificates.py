"""The platform's certificate authority: made at first start, kept in the data directory, never shared.

An `Authority` owns one folder::

    ca.crt, ca.key              the self-signed authority (EC P-256), 0600
    unfinished                  there while the authority is not known to be on disk, see below
    <leaf>.crt, <leaf>.key      issued certificates that servers and clients load from files
    <leaf>.json                 what the leaf was issued for and until when, so that a start need not parse certificates
    <name>/                     a further authority of the same kind, which nobody believes who does not ask for it (`apart`)

Leaves live `LEAF_DAYS` and are issued anew when less than a third of that remains, at start or by `renew` while running;
contexts made by `server_context` then serve the new certificate to the next handshake.

Nothing here waits for the disk but `settle`, before which nobody is told that there is an authority. A power cut may leave
half a file: an authority that was not settled is then made again, and so is a leaf that does not fit its record.

Validity is counted on the machine's own clock, not the platform's: the peers that check it are outside programs, whose
clock nobody steers.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from sampan.kernel.clock import machine_time
from sampan.kernel.files import flush, private_folder, write_atomic, write_private
from sampan.kernel.issuing import CertificateError, Issuing, IssuingHere, Made, sign

__all__ = ["LEAF_DAYS", "Authority", "CertificateError", "KeyPair"]

LEAF_DAYS = 365
_LAST_LINE = re.compile(rb"\n-----END [A-Z ]+-----\s*$")
"""How a whole PEM file ends."""


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
    check: int | None = None
    """CRC-32 of the certificate and the key; None: of a version that flushed them to the disk first."""


class Authority:
    """Issues server and client certificates signed by the platform's own CA.

    Making the object makes the CA on first use of the folder. Methods read and write small files and sign; they take a
    few milliseconds and may be called on any thread. ``issuing`` makes the certificates, here if it is None.

    Raises:
        CertificateError: the folder's authority is damaged.
    """

    def __init__(
        self, directory: Path, now: Callable[[], float] = machine_time, issuing: Issuing | None = None
    ) -> None:
        self.directory = private_folder(directory)
        self._now = now
        self._issuing: Issuing = issuing or IssuingHere()
        self._signer: Made | None = None
        self._contexts: list[tuple[ssl.SSLContext, KeyPair]] = []
        self._leaves: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {}
        self.certificate_path = directory / "ca.crt"
        """The CA certificate, as clients need it to trust the platform."""
        self.key_path = directory / "ca.key"
        """The CA's private key (0600)."""
        self._unfinished = directory / "unfinished"
        self._apart: dict[str, Authority] = {}
        if not self._usable():
            self._create()

    @property
    def certificate_pem(self) -> bytes:
        """The CA certificate in PEM."""
        return self.certificate_path.read_bytes()

    def apart(self, name: str) -> Authority:
        """An authority of its own beside this one, made at first use: for certificates that are to be worth nothing to who
        trusts this one, such as those of servers that say themselves what their addresses are.

        Raises:
            CertificateError: its folder is damaged.
        """
        if name not in self._apart:
            self._apart[name] = Authority(self.directory / name, self._now, self._issuing)
        return self._apart[name]

    def settle(self) -> None:
        """Flush an authority that was made just now to the disk. Blocks for as long as that takes.

        Raises:
            OSError: the disk failed.
        """
        if self._unfinished.exists():
            flush(self.key_path, self.certificate_path)
            self._unfinished.unlink(missing_ok=True)

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
        context.sslobject_class = _TellingWhy
        if verify_clients:
            context.load_verify_locations(self.certificate_path)
            context.verify_mode = ssl.CERT_OPTIONAL
        self._contexts.append((context, pair))
        return context

    def client_context(self, pair: KeyPair | None = None) -> ssl.SSLContext:
        """A TLS client context that trusts this authority and presents ``pair`` (of whatever authority), if given."""
        context = ssl.create_default_context(cafile=str(self.certificate_path))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    def shows(self, name: str) -> bool:
        """A server of this process has a context for the name, or for one that it covers as a wildcard."""
        made_for = (self._leaves.get(pair.certificate.stem, ((),))[0] for _, pair in self._contexts.copy())
        own = {one.lower() for names in made_for for one in names}
        name = name.lower().rstrip(".")
        return name in own or (name.startswith("*.") and name[2:] in {one.partition(".")[2] for one in own})

    def renew(self) -> list[str]:
        """Issue anew every leaf handed out here that is due, and reload the server contexts; returns the leaves."""
        due = [leaf for leaf, made_for in self._leaves.items() if self._due(leaf, *made_for[:2])]
        for leaf in due:
            self._leaf(leaf, *self._leaves[leaf][:2], server=self._leaves[leaf][2])
        for context, pair in self._contexts:
            if pair.certificate.stem in due:
                context.load_cert_chain(pair.certificate, pair.key)
        return due

    def forget(self, leaf: str) -> None:
        """Delete a leaf that nobody needs any more, its key first; it is renewed no longer."""
        self._leaves.pop(leaf, None)
        for ending in ("key", "crt", "json"):
            (self.directory / f"{leaf}.{ending}").unlink(missing_ok=True)

    def sign_csr(
        self, request: bytes, *, seconds: float = LEAF_DAYS * 86400.0, usages: Iterable[str] = ("client auth",)
    ) -> bytes:
        """Sign a PEM certificate request; returns the certificate in PEM.

        Subject, names and key are the request's. ``usages`` are Kubernetes' names (``client auth``, ``server auth``,
        ``digital signature``, ``key encipherment``, ...).

        Raises:
            CertificateError: not a valid request, or its signature does not fit its key.
        """
        return sign(self._load(), request, usages, self._now(), seconds)

    # -- the authority's own key

    def _usable(self) -> bool:
        """Whether the folder has an authority; what a power cut left of one that nobody was told of is none."""
        try:
            made = Made(self.certificate_path.read_bytes(), self.key_path.read_bytes())
        except FileNotFoundError:
            return False
        if all(_LAST_LINE.search(pem) for pem in made):
            return True
        if self._unfinished.exists():
            return False
        raise CertificateError(
            f"the authority in {self.directory} is damaged: ca.crt or ca.key is cut short. Restore both, or remove both to "
            "have a new one made (clients then need the new kubeconfig)"
        )

    def _create(self) -> None:
        self._signer = made = self._issuing.authority(self._now())
        # In this order: a certificate without its key would be taken for a finished authority. Journals keep the order of
        # what happens in folders, so what of it is there after a power cut is marked.
        self._unfinished.touch()
        write_private(self.key_path, made.key, durable=False)
        write_atomic(self.certificate_path, made.certificate, durable=False)

    def _load(self) -> Made:
        if self._signer is None:
            try:
                self._signer = Made(self.certificate_pem, self.key_path.read_bytes())
            except OSError as error:
                raise CertificateError(f"the authority in {self.directory} cannot be read: {error}") from error
        return self._signer

    # -- leaves

    def _leaf(self, leaf: str, names: tuple[str, ...], groups: tuple[str, ...], *, server: bool) -> KeyPair:
        pair = KeyPair(self.directory / f"{leaf}.crt", self.directory / f"{leaf}.key")
        self._leaves[leaf] = (names, groups, server)
        if not self._due(leaf, names, groups):
            return pair
        seconds = LEAF_DAYS * 86400.0
        now = self._now()
        made = self._issuing.leaf(self._load(), names, groups, server, now, seconds)
        write_private(pair.key, made.key, durable=False)
        write_atomic(pair.certificate, made.certificate, durable=False)
        record = _Leaf(list(names), list(groups), now + seconds, _check(made.certificate, made.key))
        write_atomic(self.directory / f"{leaf}.json", msgspec.json.encode(record), durable=False)
        return pair

    def _due(self, leaf: str, names: tuple[str, ...], groups: tuple[str, ...]) -> bool:
        """Whether the leaf must be issued (again): absent, torn, for other names, or in its last third."""
        record = self.directory / f"{leaf}.json"
        try:
            known = msgspec.json.decode(record.read_bytes(), type=_Leaf)
            check = _check((self.directory / f"{leaf}.crt").read_bytes(), (self.directory / f"{leaf}.key").read_bytes())
        except (OSError, msgspec.MsgspecError):
            return True
        if known.check not in (None, check):
            return True
        if (tuple(known.names), tuple(known.groups)) != (names, groups):
            return True
        if known.expires - self._now() < LEAF_DAYS * 86400 / 3:
            return True
        return record.stat().st_mtime < self.certificate_path.stat().st_mtime


class _TellingWhy(ssl.SSLObject):
    """The server's end of a connection, which tells a client why its certificate was refused.

    Event loops close at an error and drop the alert that TLS has ready for the peer, who is left with an unexplained end of
    file. So the error is held back until the alert has left: until the peer, which ends there, or the loop's deadline ends it.
    """

    _refused: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._refused is not None:
            raise self._refused
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            self._refused = error
            raise ssl.SSLWantReadError from error


def _check(certificate: bytes, key: bytes) -> int:
    return zlib.crc32(key, zlib.crc32(certificate))


def _leaf_name(role: str, names: Sequence[str]) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", names[0]).strip("-") or "any"
    return f"{role}-{readable[:40]}-{zlib.crc32(chr(0).join(names).encode()):08x}"
