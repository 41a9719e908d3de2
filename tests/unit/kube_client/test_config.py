"""Kubeconfigs and ServiceAccount folders give the configuration that kubectl and client-go would use."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sampan.kernel.certificates import Authority
from sampan.kube.client.config import ClientConfigError, default_config, from_kubeconfig, in_cluster


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any], **more: Any) -> Path:
    config = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
            {"name": "two", "context": {"cluster": "c", "user": "u"}},
            {"name": "broken", "context": {"cluster": "nowhere", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", **cluster}}],
        "users": [{"name": "u", "user": user}],
    } | more
    path.write_bytes(msgspec.json.encode(config))
    return path


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_context_names_server_namespace_and_token(tmp_path: Path, authority: Authority) -> None:
    path = kubeconfig(
        tmp_path / "config", {"certificate-authority-data": encoded(authority.certificate_pem)}, {"token": "t"}
    )
    config = from_kubeconfig(path)
    assert (config.server, config.namespace, config.token) == ("https://127.0.0.1:6443", "shop", "t")
    assert config.tls is not None and config.tls.verify_mode == ssl.CERT_REQUIRED
    assert from_kubeconfig(path, "two").namespace == "default"


def test_files_are_relative_to_the_kubeconfig(tmp_path: Path, authority: Authority) -> None:
    pair = authority.client_certificate("ann", ["crew"])
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem)
    (tmp_path / "c.crt").write_bytes(pair.certificate.read_bytes())
    (tmp_path / "c.key").write_bytes(pair.key.read_bytes())
    user = {"client-certificate": "c.crt", "client-key": "c.key", "tokenFile": "token"}
    config = from_kubeconfig(kubeconfig(tmp_path / "config", {"certificate-authority": "ca.crt"}, user))
    assert config.token_file == tmp_path / "token"


def test_verification_can_be_switched_off_and_names_replaced(tmp_path: Path) -> None:
    cluster = {"insecure-skip-tls-verify": True, "tls-server-name": "kubernetes"}
    config = from_kubeconfig(kubeconfig(tmp_path / "config", cluster, {"username": "a", "password": "b"}))
    assert config.tls is not None and config.tls.verify_mode == ssl.CERT_NONE
    assert (config.server_name, config.basic) == ("kubernetes", ("a", "b"))


@pytest.mark.parametrize(
    ("user", "context", "why"),
    [
        ({"exec": {"command": "aws"}}, None, "exec is not supported"),
        ({}, "absent", 'no context "absent"'),
        ({}, "broken", 'no cluster "nowhere"'),
        ({"client-certificate-data": "%%%", "client-key-data": "x"}, None, "not a usable kubeconfig"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, user: dict[str, Any], context: str | None, why: str) -> None:
    with pytest.raises(ClientConfigError, match=why):
        from_kubeconfig(kubeconfig(tmp_path / "config", {}, user), context)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "contexts: 3", "current-context: x"])
def test_what_is_no_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ClientConfigError, match="not a usable kubeconfig"):
        from_kubeconfig(path)


def test_of_several_files_the_first_that_names_something_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first"
    first.write_text("current-context: two\nusers: [{name: u, user: {token: mine}}]\n")
    second = kubeconfig(tmp_path / "second", {}, {"token": "theirs"})
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{tmp_path / 'absent'}")
    config = default_config()
    assert (config.namespace, config.token) == ("default", "mine")


def test_a_pod_uses_its_service_account(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("jwt")
    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem)
    (tmp_path / "namespace").write_text("shop\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    config = in_cluster(tmp_path)
    assert (config.server, config.namespace, config.token_file) == ("https://[fd00::1]:443", "shop", tmp_path / "token")
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ClientConfigError, match="not usable"):
        in_cluster(tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ClientConfigError, match="not a pod"):
        in_cluster(tmp_path)
