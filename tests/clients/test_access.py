"""Real clients pass the gates: certificates, tokens, impersonation, RBAC, quota, pod security, policies."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import kubernetes.client as kube
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.client.exceptions import ApiException
from kubernetes.config.incluster_config import InClusterConfigLoader

import sampan.testing
from tests.clients.kubectl import kubectl as kubectl_binary
from tests.clients.whoami import whoami


class World:
    """One platform for this module, and clients to it."""

    def __init__(self, platform: sampan.testing.Platform, folder: Path) -> None:
        self.platform = platform
        self.folder = folder
        self.authority = platform.data_dir / "pki" / "ca.crt"
        address = platform.address("kubernetes")
        self.url = f"https://{address}"

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None, version: str = "newest") -> str:
        """Output of kubectl as the administrator (with errors, unless they are fatal)."""
        command = [
            str(kubectl_binary(version)),
            "--kubeconfig",
            str(self.platform.kubeconfig),
            "--cache-dir",
            str(self.folder),
        ]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, input=stdin, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout + done.stderr

    def apply(self, *objects: Any) -> str:
        return self.kubectl(
            "apply",
            "--validate=false",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        )

    def client(self, token: str = "") -> kube.ApiClient:
        """A Python client with a bearer token, or anonymous."""
        configuration = kube.Configuration()
        configuration.host = self.url
        configuration.ssl_ca_cert = str(self.authority)
        if token:
            configuration.api_key = {"authorization": f"Bearer {token}"}
        return kube.ApiClient(configuration)

    def namespace(self, name: str, **labels: str) -> str:
        """A namespace with its default account."""
        metadata = {"name": name, "labels": labels}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.kubectl("create", "serviceaccount", "default", "-n", name, check=False)
        return name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with sampan.testing.Platform(only=["kubernetes"]) as platform:
        yield World(platform, tmp_path_factory.mktemp("kubectl"))


def pod(name: str, **container: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "image": "nginx", **container}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("version", ["newest", "1.32", "1.29"])
def test_kubectl_knows_who_it_is_and_what_it_may(world: World, version: str) -> None:
    def kubectl(*arguments: str, check: bool = True) -> str:
        return world.kubectl(*arguments, check=check, version=version)

    who = json.loads(kubectl("auth", "whoami", "-o", "json"))
    assert who["status"]["userInfo"]["username"] == "kubernetes-admin"
    assert "system:masters" in who["status"]["userInfo"]["groups"]
    assert kubectl("auth", "can-i", "delete", "pods").strip() == "yes"
    assert "selfsubjectaccessreviews.authorization.k8s.io" in kubectl("auth", "can-i", "--list", "--as=ann")
    assert kubectl("auth", "can-i", "list", "pods", "--as=ann", check=False).strip() == "no"
    account = f"teller-{version.replace('.', '-')}"
    kubectl("create", "serviceaccount", account)
    claims = jwt.decode(kubectl("create", "token", account).strip(), options={"verify_signature": False})
    assert claims["sub"] == f"system:serviceaccount:default:{account}"
    assert claims["exp"] - claims["iat"] == 3600


def test_impersonation_shows_the_refusal_of_the_impersonated(world: World) -> None:
    refused = world.kubectl("get", "pods", "--as=ann", "--as-group=dev", check=False)
    assert 'User "ann" cannot list resource "pods" in API group "" in the namespace "default"' in refused
    world.kubectl("create", "clusterrolebinding", "dev-views", "--clusterrole=view", "--group=dev")
    assert "No resources found" in world.kubectl("get", "pods", "--as=ann", "--as-group=dev")


def test_a_service_account_token_works_in_kubectl_and_python_once_it_is_bound(world: World) -> None:
    world.kubectl("create", "serviceaccount", "robot")
    token = world.kubectl("create", "token", "robot", "--duration=20m").strip()
    core = kube.CoreV1Api(world.client(token))
    with pytest.raises(ApiException) as refused:
        core.list_namespaced_config_map("default")
    assert refused.value.status == 403
    assert "system:serviceaccount:default:robot" in str(refused.value.body)
    world.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    world.kubectl("create", "rolebinding", "robot-reads", "--role=reader", "--serviceaccount=default:robot")
    assert core.list_namespaced_config_map("default").kind == "ConfigMapList"
    plain = [str(kubectl_binary()), "--kubeconfig=/dev/null", f"--server={world.url}", f"--token={token}"]
    who = [*plain, f"--certificate-authority={world.authority}", "auth", "whoami", "-o", "name"]
    assert subprocess.run(who, capture_output=True, timeout=60).returncode == 0


def test_a_programme_in_a_pod_finds_its_way_in(world: World, tmp_path: Path) -> None:
    namespace = world.namespace("inside")
    world.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(pod("programme")))
    uid = world.kubectl("get", "pod", "programme", "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    bound = ("--bound-object-kind=Pod", "--bound-object-name=programme", f"--bound-object-uid={uid}")
    (tmp_path / "token").write_text(world.kubectl("create", "token", "default", "-n", namespace, *bound).strip())
    (tmp_path / "ca.crt").write_bytes(world.authority.read_bytes())
    host, _, port = world.url.removeprefix("https://").partition(":")
    loader = InClusterConfigLoader(
        token_filename=tmp_path / "token",
        cert_filename=tmp_path / "ca.crt",
        environ={"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port},
    )
    configuration = kube.Configuration()
    loader.load_and_set(configuration)
    client = kube.ApiClient(configuration)
    user = whoami(client)
    assert user.username == "system:serviceaccount:inside:default"
    assert user.extra is not None
    assert user.extra["authentication.kubernetes.io/pod-name"] == ["programme"]
    world.kubectl("delete", "pod", "programme", "-n", namespace, "--force", "--grace-period=0")
    with pytest.raises(ApiException) as refused:
        whoami(client)
    assert refused.value.status == 401


def test_outsiders_verify_a_token_by_the_published_keys(world: World) -> None:
    world.kubectl("create", "serviceaccount", "published")
    token = world.kubectl("create", "token", "published", "--audience=vault").strip()
    discovery = json.loads(world.kubectl("get", "--raw", "/.well-known/openid-configuration"))
    keys = jwt.PyJWKSet.from_dict(json.loads(world.kubectl("get", "--raw", "/openid/v1/jwks")))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="vault", issuer=discovery["issuer"])
    assert claims["sub"] == "system:serviceaccount:default:published"
    review = kube.V1TokenReview(spec=kube.V1TokenReviewSpec(token=token, audiences=["vault"]))
    admin = (world.platform.data_dir / "parts" / "kubernetes" / "admin.token").read_text().strip()
    answer = kube.AuthenticationV1Api(world.client(admin)).create_token_review(review)
    assert answer.status is not None
    assert answer.status.authenticated
    assert answer.status.audiences == ["vault"]


def test_a_deleted_account_ends_its_tokens(world: World) -> None:
    world.kubectl("create", "serviceaccount", "brief")
    client = world.client(world.kubectl("create", "token", "brief").strip())
    assert kube.VersionApi(client).get_code().major == "1"
    world.kubectl("delete", "serviceaccount", "brief")
    with pytest.raises(ApiException) as refused:
        kube.VersionApi(client).get_code()
    assert refused.value.status == 401


def test_bad_credentials_are_refused_and_none_are_anonymous(world: World) -> None:
    with pytest.raises(ApiException) as wrong:
        kube.CoreV1Api(world.client("nonsense")).list_namespace()
    assert wrong.value.status == 401
    with pytest.raises(ApiException) as anonymous:
        kube.CoreV1Api(world.client()).list_namespace()
    assert anonymous.value.status == 403
    assert "system:anonymous" in str(anonymous.value.body)
    assert kube.VersionApi(world.client()).get_code().git_version.startswith("v1.")


def test_nobody_grants_what_they_do_not_hold(world: World) -> None:
    world.kubectl("create", "clusterrole", "grants", "--verb=create", "--resource=roles")
    world.kubectl("create", "clusterrolebinding", "grants", "--clusterrole=grants", "--user=granter")
    command = ("create", "role", "too-much", "--verb=delete", "--resource=secrets", "--as=granter")
    refused = world.kubectl(*command, check=False)
    assert "attempting to grant RBAC permissions not currently held" in refused
    assert '{APIGroups:[""], Resources:["secrets"], Verbs:["delete"]}' in refused


def test_a_quota_holds_against_many_at_once(world: World) -> None:
    namespace = world.namespace("quota")
    world.kubectl("create", "quota", "few", "--hard=configmaps=5", "-n", namespace)
    admin = (world.platform.data_dir / "parts" / "kubernetes" / "admin.token").read_text().strip()
    core = kube.CoreV1Api(world.client(admin))
    before = len(core.list_namespaced_config_map(namespace).items)

    def create(number: int) -> str:
        body = kube.V1ConfigMap(metadata=kube.V1ObjectMeta(name=f"c{number}"))
        try:
            core.create_namespaced_config_map(namespace, body)
        except ApiException as error:
            return str(json.loads(error.body or "{}")["message"])
        return ""

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(20)))
    assert answers.count("") == 5 - before
    expected = "exceeded quota: few, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"
    assert {answer.partition(" is forbidden: ")[2] for answer in answers if answer} == {expected}


def test_pod_security_refuses_and_warns(world: World) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}
    namespace = world.namespace("secure", **labels)
    privileged = pod("p", securityContext={"privileged": True})
    refused = world.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(privileged), check=False)
    assert 'violates PodSecurity "baseline:latest": privileged' in refused
    warned = world.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(pod("q")))
    assert 'Warning: would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false' in warned
    assert "pod/q created" in warned


def test_a_pod_is_completed_by_admission(world: World) -> None:
    namespace = world.namespace("limits")
    limits = {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}}
    kind = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l", "namespace": namespace}}
    world.apply({**kind, "spec": {"limits": [limits]}})
    world.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(pod("p")))
    spec = json.loads(world.kubectl("get", "pod", "p", "-n", namespace, "-o", "json"))["spec"]
    assert spec["containers"][0]["resources"] == {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}
    assert spec["serviceAccountName"] == "default"
    assert spec["volumes"][0]["name"].startswith("kube-api-access-")
    assert [each["tolerationSeconds"] for each in spec["tolerations"]] == [300, 300]
    assert spec["priority"] == 0


def test_a_policy_refuses_and_names_itself(world: World) -> None:
    rules = [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]
    api = "admissionregistration.k8s.io/v1"
    validation = {
        "expression": "object.spec.replicas <= int(params.data.most)",
        "messageExpression": "'at most ' + params.data.most",
    }
    spec = {
        "failurePolicy": "Fail",
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": rules},
        "validations": [validation],
    }
    reference = {"name": "most", "namespace": "default", "parameterNotFoundAction": "Deny"}
    binding = {"policyName": "small", "validationActions": ["Deny"], "paramRef": reference}
    world.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "most", "namespace": "default"},
            "data": {"most": "2"},
        },
        {"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "small"}, "spec": spec},
        {"apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "small"}, "spec": binding},
    )
    create = ("create", "deployment", "web", "--image=nginx")
    refused = world.kubectl(*create, "--replicas=3", check=False)
    assert "ValidatingAdmissionPolicy 'small' with binding 'small' denied request: at most 2" in refused
    world.kubectl(*create, "--replicas=2")
    world.kubectl("delete", "validatingadmissionpolicybinding", "small")


def test_a_certificate_is_requested_in_the_requesters_name(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "carol")])
    asked = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    encoded = base64.b64encode(asked.public_bytes(serialization.Encoding.PEM)).decode()
    spec = {"request": encoded, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}
    kind = {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest"}
    world.apply({**kind, "metadata": {"name": "carol"}, "spec": {**spec, "username": "mallory"}})
    found = json.loads(world.kubectl("get", "csr", "carol", "-o", "json"))
    assert found["spec"]["username"] == "kubernetes-admin"
    world.kubectl("certificate", "approve", "carol")
    found = json.loads(world.kubectl("get", "csr", "carol", "-o", "json"))
    assert found["status"]["conditions"][0]["type"] == "Approved"
