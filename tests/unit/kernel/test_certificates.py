"""The authority issues what clients accept, keeps it, and renews it in time."""

from __future__ import annotations

import socket
import ssl
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sampan.kernel.certificates import Authority, CertificateError
from sampan.kernel.issuing import IssuingProcess

DAY = 86400.0


class Machine:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def test_keys_are_private_and_survive_a_restart(tmp_path: Path) -> None:
    first = Authority(tmp_path / "pki")
    pair = first.server_certificate(["localhost", "127.0.0.1"])
    content = pair.certificate.read_bytes()
    again = Authority(tmp_path / "pki")
    assert again.certificate_pem == first.certificate_pem
    assert again.server_certificate(["localhost", "127.0.0.1"]).certificate.read_bytes() == content
    for key in (first.key_path, pair.key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_an_authority_apart_is_believed_only_by_who_asks_for_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    apart = authority.apart("apart")
    server = apart.server_context(["n1"])
    pair = authority.client_certificate("caller")
    handshake(server, apart.client_context(pair), "n1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, authority.client_context(), "n1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server_context(["n1"]), apart.client_context(pair), "n1")
    again = Authority(tmp_path).apart("apart")
    assert again.certificate_pem == apart.certificate_pem != authority.certificate_pem


def test_other_names_get_other_files(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert authority.server_certificate(["localhost"]) != authority.server_certificate(["localhost", "10.0.0.1"])


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """A TLS handshake in memory; returns the server's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return far


def test_an_authority_knows_the_names_that_its_own_servers_show(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.server_context(["localhost", "api.Example.com"])
    authority.server_certificate(["shop.example.com"], "of-a-user")
    assert [authority.shows(name) for name in ("localhost", "API.example.com.", "*.example.com")] == [True] * 3
    assert not any(map(authority.shows, ("shop.example.com", "*.example.org", "*.com", "*.api.example.com", "com")))


def test_a_client_certificate_shows_the_server_its_user_and_groups(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server_context(["localhost", "127.0.0.1"], verify_clients=True)
    client = authority.client_context(authority.client_certificate("ann", ["sailors", "cooks"]))
    peer = handshake(server, client, "127.0.0.1").getpeercert()
    assert peer is not None
    subject = [pair for item in peer["subject"] for pair in item]
    assert subject == [("organizationName", "sailors"), ("organizationName", "cooks"), ("commonName", "ann")]


def test_a_server_is_refused_under_a_name_it_was_not_issued_for(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server_context(["localhost"]), authority.client_context(), "elsewhere")


def test_leaves_are_renewed_in_their_last_third_and_contexts_follow(tmp_path: Path) -> None:
    machine = Machine()
    authority = Authority(tmp_path, machine)
    authority.server_context(["localhost"])
    pair = authority.server_certificate(["localhost"])
    before = pair.certificate.read_bytes()
    machine.now += 200 * DAY
    assert authority.renew() == []
    machine.now += 60 * DAY
    assert authority.renew() == [pair.certificate.stem]
    assert pair.certificate.read_bytes() != before
    assert authority.renew() == []


def test_a_forgotten_leaf_leaves_nothing_behind(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    authority = Authority(tmp_path / "pki", now=lambda: now)
    before = sorted((tmp_path / "pki").iterdir())
    authority.server_certificate(["shop.example.com"], "shop")
    authority.forget("shop")
    authority.forget("shop")
    assert sorted((tmp_path / "pki").iterdir()) == before
    now += 365 * 86400
    assert authority.renew() == []


def request(name: str = "system:node:far") -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), key


def test_a_signed_request_keeps_subject_and_key_and_gets_its_usages(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem, key = request()
    signed = x509.load_pem_x509_certificate(authority.sign_csr(pem, seconds=3600, usages=["client auth"]))
    assert signed.subject.rfc4514_string() == "CN=system:node:far"
    assert signed.public_key() == key.public_key()
    usages = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    signed.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


def test_what_is_no_request_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="not a PEM certificate request"):
        Authority(tmp_path).sign_csr(b"-----BEGIN NONSENSE-----")


def test_an_authority_that_a_power_cut_tore_before_anyone_knew_it_is_made_again(tmp_path: Path) -> None:
    Authority(tmp_path).client_certificate("ann")
    whole = (tmp_path / "ca.key").read_bytes()
    (tmp_path / "ca.key").write_bytes(whole[: len(whole) // 2])
    again = Authority(tmp_path)
    signed = x509.load_pem_x509_certificate(again.client_certificate("ann").certificate.read_bytes())
    signed.verify_directly_issued_by(x509.load_pem_x509_certificate(again.certificate_pem))


def test_an_authority_that_is_settled_is_never_replaced(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.settle()
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem[:100])
    with pytest.raises(CertificateError, match=r"damaged: ca\.crt or ca\.key is cut short\. Restore both"):
        Authority(tmp_path)


def test_an_authority_whose_platform_was_killed_before_it_settled_stays(tmp_path: Path) -> None:
    pem = Authority(tmp_path).certificate_pem
    again = Authority(tmp_path)
    again.settle()
    assert again.certificate_pem == pem
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize("torn", ["crt", "key", "json"])
def test_a_torn_leaf_is_issued_again(tmp_path: Path, torn: str) -> None:
    pair = Authority(tmp_path).client_certificate("ann")
    file = pair.certificate.with_suffix(f".{torn}")
    file.write_bytes(b"")
    again = Authority(tmp_path)
    assert again.client_certificate("ann") == pair
    again.client_context(pair)


def test_a_leaf_of_a_version_that_kept_no_check_is_kept(tmp_path: Path) -> None:
    pair = Authority(tmp_path).client_certificate("ann")
    content = pair.certificate.read_bytes()
    record = pair.certificate.with_suffix(".json")
    kept = msgspec.json.decode(record.read_bytes())
    del kept["check"]
    record.write_bytes(msgspec.json.encode(kept))
    assert Authority(tmp_path).client_certificate("ann").certificate.read_bytes() == content


@pytest.mark.parametrize("answer", [b"", b'["LS0t'])
def test_a_child_that_was_killed_while_it_answered_is_done_without(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    issuing = IssuingProcess(0, ours)
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    made = issuing.authority(1_700_000_000.0)
    assert x509.load_pem_x509_certificate(made.certificate).subject.rfc4514_string() == "CN=sampan-ca"
    theirs.close()
    ours.close()
