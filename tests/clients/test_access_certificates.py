"""Certificates and lasting tokens, requested and used as people and joining nodes do."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes.client as kube
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.client.exceptions import ApiException
from kubernetes.watch import Watch

import sampan.testing
from sampan.kernel.certificates import Authority
from tests.clients.kubectl import kubectl as kubectl_binary
from tests.clients.whoami import whoami


class Key(NamedTuple):
    """A private key and what it asks to be certified as."""

    path: Path
    request: str


@pytest.fixture(scope="module")
def platform() -> Iterator[sampan.testing.Platform]:
    with sampan.testing.Platform(only=["kubernetes"]) as running:
        yield running


def client(platform: sampan.testing.Platform, **credentials: Any) -> kube.ApiClient:
    """A Python client with a token, or with a certificate and key (paths)."""
    configuration = kube.Configuration()
    configuration.host = f"https://{platform.address('kubernetes')}"
    configuration.ssl_ca_cert = str(platform.data_dir / "pki" / "ca.crt")
    if token := credentials.get("token"):
        configuration.api_key = {"authorization": f"Bearer {token}"}
    if "certificate" in credentials:
        configuration.cert_file, configuration.key_file = str(credentials["certificate"]), str(credentials["key"])
    return kube.ApiClient(configuration)


@pytest.fixture
def admin(platform: sampan.testing.Platform) -> kube.ApiClient:
    token = platform.data_dir / "parts" / "kubernetes" / "admin.token"
    return client(platform, token=token.read_text().strip())


def key(folder: Path, common_name: str, organization: str = "") -> Key:
    private = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization))
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes)).sign(private, hashes.SHA256())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(pem)
    return Key(folder / "key.pem", base64.b64encode(asked.public_bytes(serialization.Encoding.PEM)).decode())


def requested(api: kube.ApiClient, name: str, asked: Key, signer: str, *usages: str) -> None:
    spec = kube.V1CertificateSigningRequestSpec(request=asked.request, signer_name=signer, usages=list(usages))
    body = kube.V1CertificateSigningRequest(metadata=kube.V1ObjectMeta(name=name), spec=spec)
    kube.CertificatesV1Api(api).create_certificate_signing_request(body)


def issued(api: kube.ApiClient, name: str, folder: Path) -> Path:
    """Wait until a request is signed; the certificate's path."""
    listing = kube.CertificatesV1Api(api).list_certificate_signing_request
    for event in Watch().stream(listing, field_selector=f"metadata.name={name}", timeout_seconds=20):
        status = event["object"].status
        if status is not None and status.certificate:
            encoded = status.certificate
            path = folder / "certificate.pem"
            path.write_bytes(base64.b64decode(encoded))
            return path
    raise AssertionError(f"{name} was not signed")


def test_a_person_gets_a_certificate_once_it_is_approved(
    platform: sampan.testing.Platform, admin: kube.ApiClient, tmp_path: Path
) -> None:
    asked = key(tmp_path, "carol", "dev")
    requested(admin, "carol", asked, "kubernetes.io/kube-apiserver-client", "client auth")
    approve = [str(kubectl_binary()), "--kubeconfig", str(platform.kubeconfig), "certificate", "approve", "carol"]
    subprocess.run(approve, check=True, capture_output=True, timeout=60)
    carol = client(platform, certificate=issued(admin, "carol", tmp_path), key=asked.path)
    user = whoami(carol)
    assert user.username == "carol"
    assert set(user.groups or ()) == {"dev", "system:authenticated"}


def test_a_node_joins_with_a_bootstrap_token_and_keeps_to_itself(
    platform: sampan.testing.Platform, admin: kube.ApiClient, tmp_path: Path
) -> None:
    data = {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}
    secret = kube.V1Secret(
        metadata=kube.V1ObjectMeta(name="bootstrap-token-abcdef"),
        type="bootstrap.kubernetes.io/token",
        string_data=data,
    )
    kube.CoreV1Api(admin).create_namespaced_secret("kube-system", secret)
    joining = client(platform, token="abcdef.0123456789abcdef")
    asked = key(tmp_path, "system:node:edge1", "system:nodes")
    signer = "kubernetes.io/kube-apiserver-client-kubelet"
    requested(joining, "join-edge1", asked, signer, "digital signature", "client auth")
    edge1 = client(platform, certificate=issued(joining, "join-edge1", tmp_path), key=asked.path)

    core = kube.CoreV1Api(edge1)
    made = core.create_node(kube.V1Node(metadata=kube.V1ObjectMeta(name="edge1")))
    assert made.spec is not None
    assert made.spec.taints
    assert made.spec.taints[0].key == "node.kubernetes.io/not-ready"
    lease = kube.V1Lease(metadata=kube.V1ObjectMeta(name="edge1"), spec=kube.V1LeaseSpec(holder_identity="edge1"))
    kube.CoordinationV1Api(edge1).create_namespaced_lease("kube-node-lease", lease)
    assert core.list_pod_for_all_namespaces().items == []
    refusals: tuple[Callable[[], object], ...] = (
        lambda: core.create_node(kube.V1Node(metadata=kube.V1ObjectMeta(name="edge2"))),
        lambda: core.list_secret_for_all_namespaces(),
        lambda: core.read_namespaced_secret("bootstrap-token-abcdef", "kube-system"),
        lambda: core.delete_node("edge1"),
    )
    for refused in refusals:
        with pytest.raises(ApiException) as error:
            refused()
        assert error.value.status == 403


def test_a_node_gets_tokens_for_its_own_pods_only(
    platform: sampan.testing.Platform, admin: kube.ApiClient, tmp_path: Path
) -> None:
    authority = Authority(platform.data_dir / "pki")
    pair = authority.client_certificate("system:node:edge3", ["system:nodes"], "node-edge3")
    core = kube.CoreV1Api(client(platform, certificate=pair.certificate, key=pair.key))
    own = kube.V1PodSpec(containers=[kube.V1Container(name="c", image="i")], node_name="edge3")
    kube.CoreV1Api(admin).create_namespaced_service_account(
        "kube-public", kube.V1ServiceAccount(metadata=kube.V1ObjectMeta(name="worker"))
    )
    own.service_account_name = "worker"
    body = kube.V1Pod(metadata=kube.V1ObjectMeta(name="worker"), spec=own)
    pod = kube.CoreV1Api(admin).create_namespaced_pod("kube-public", body)

    def request(reference: kube.V1BoundObjectReference | None) -> str:
        spec = kube.V1TokenRequestSpec(audiences=[], bound_object_ref=reference)
        body = kube.AuthenticationV1TokenRequest(spec=spec)
        made = core.create_namespaced_service_account_token("worker", "kube-public", body)
        assert made.status is not None
        assert made.status.token is not None
        return made.status.token

    assert pod.metadata is not None
    bound = kube.V1BoundObjectReference(kind="Pod", api_version="v1", name="worker", uid=pod.metadata.uid)
    assert request(bound).count(".") == 2
    with pytest.raises(ApiException) as unbound:
        request(None)
    assert unbound.value.status == 403
    assert "only tokens bound to a pod" in str(unbound.value.body)


def test_a_token_secret_is_filled_and_dies_with_its_account(
    platform: sampan.testing.Platform, admin: kube.ApiClient
) -> None:
    core = kube.CoreV1Api(admin)
    core.create_namespaced_service_account("default", kube.V1ServiceAccount(metadata=kube.V1ObjectMeta(name="lasting")))
    annotations = {"kubernetes.io/service-account.name": "lasting"}
    metadata = kube.V1ObjectMeta(name="lasting-token", annotations=annotations)
    secret = kube.V1Secret(metadata=metadata, type="kubernetes.io/service-account-token")
    core.create_namespaced_secret("default", secret)
    token = b""
    only = {"field_selector": "metadata.name=lasting-token", "timeout_seconds": 20}
    for event in Watch().stream(core.list_namespaced_secret, "default", **only):
        data = event["object"].data or {}
        if "token" in data:
            token = base64.b64decode(data["token"])
            assert base64.b64decode(data["ca.crt"]) == (platform.data_dir / "pki" / "ca.crt").read_bytes()
            assert base64.b64decode(data["namespace"]) == b"default"
            break
    lasting = client(platform, token=token.decode())
    assert whoami(lasting).username == "system:serviceaccount:default:lasting"
    core.delete_namespaced_service_account("lasting", "default")
    with pytest.raises(ApiException) as refused:
        whoami(lasting)
    assert refused.value.status == 401
    for _ in range(800):
        try:
            core.read_namespaced_secret("lasting-token", "default")
        except ApiException as error:
            assert error.status == 404
            return
        time.sleep(0.05)
    raise AssertionError("the token's Secret outlived its account")


def test_the_token_controllers_look_at_no_other_secrets(
    platform: sampan.testing.Platform, admin: kube.ApiClient
) -> None:
    def added() -> dict[str, float]:
        command = [str(kubectl_binary()), "--kubeconfig", str(platform.kubeconfig), "get", "--raw", "/metrics"]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        found = re.findall(r'^workqueue_adds_total\{name="([a-z-]+)"\} (\S+)$', text, re.MULTILINE)
        return {name: float(count) for name, count in found if name in ("serviceaccount-token", "token-cleaner")}

    core = kube.CoreV1Api(admin)
    core.create_namespaced_service_account("default", kube.V1ServiceAccount(metadata=kube.V1ObjectMeta(name="alone")))
    before = added()
    for number in range(20):
        core.create_namespaced_secret("default", kube.V1Secret(metadata=kube.V1ObjectMeta(name=f"opaque-{number}")))
    about = kube.V1ObjectMeta(name="about-alone", annotations={"kubernetes.io/service-account.name": "alone"})
    core.create_namespaced_secret("default", kube.V1Secret(metadata=about, type="kubernetes.io/service-account-token"))
    for event in Watch().stream(core.list_namespaced_secret, "default", timeout_seconds=20):
        if event["object"].metadata.name == "about-alone" and "token" in (event["object"].data or {}):
            break
    after = added()
    assert after["token-cleaner"] == before["token-cleaner"]
    assert 0 < after["serviceaccount-token"] - before["serviceaccount-token"] < 10


def test_a_claim_in_use_waits_for_its_pod(platform: sampan.testing.Platform, admin: kube.ApiClient) -> None:
    def kubectl(*arguments: str, stdin: Any = None) -> str:
        command = [str(kubectl_binary()), "--kubeconfig", str(platform.kubeconfig), *arguments]
        given = None if stdin is None else json.dumps(stdin)
        done = subprocess.run(command, capture_output=True, text=True, input=given, timeout=60)
        return done.stdout + done.stderr

    kubectl("create", "serviceaccount", "default")
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim}
    assert "created" in kubectl("create", "--validate=false", "-f", "-", stdin=kind)
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]
    spec = {"nodeName": "somewhere", "volumes": volumes, "containers": [{"name": "c", "image": "nginx"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"}, "spec": spec}
    assert "created" in kubectl("create", "--validate=false", "-f", "-", stdin=pod)
    kubectl("delete", "pvc", "data", "--wait=false")
    found = kube.CoreV1Api(admin).read_namespaced_persistent_volume_claim("data", "default")
    assert found.metadata is not None
    assert found.spec is not None
    assert found.metadata.deletion_timestamp is not None
    assert found.metadata.finalizers == ["kubernetes.io/pvc-protection"]
    assert found.spec.storage_class_name == "standard"
    kubectl("delete", "pod", "user", "--force", "--grace-period=0")
    assert "condition met" in kubectl("wait", "--for=delete", "pvc/data", "--timeout=20s") or "not found" in kubectl(
        "get", "pvc", "data"
    )


def test_tokens_and_certificates_are_good_after_a_restart(tmp_path: Path) -> None:
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path) as platform:
        token_file = platform.data_dir / "parts" / "kubernetes" / "admin.token"
        static = token_file.read_text().strip()
        core = kube.CoreV1Api(client(platform, token=static))
        request = kube.AuthenticationV1TokenRequest(spec=kube.V1TokenRequestSpec(audiences=[]))
        account = kube.V1ServiceAccount(metadata=kube.V1ObjectMeta(name="stayer"))
        core.create_namespaced_service_account("default", account)
        status = core.create_namespaced_service_account_token("stayer", "default", request).status
        assert status is not None
        token = status.token
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path) as platform:
        for credentials, name in ((static, "system:admin"), (token, "system:serviceaccount:default:stayer")):
            assert whoami(client(platform, token=credentials)).username == name
