"""Certificates are approved and signed, token Secrets filled, protected storage released."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sampan.kernel.certificates import Authority
from sampan.kernel.clock import Clock, Timeline
from sampan.kernel.tasks import Tasks
from sampan.kube.access.tokens import SigningKey
from sampan.kube.access.tokens import Tokens as AccountTokens
from sampan.kube.control.certificates_signing import (
    CLIENT,
    KUBELET_CLIENT,
    KUBELET_SERVING,
    CertificateApprover,
    CertificateCleaner,
    CertificateSigner,
)
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.service_account_tokens import ServiceAccountTokens
from sampan.kube.control.storage_protection import ClaimProtection, VolumeProtection
from sampan.kube.objects import Key, Object, Resource, copy
from sampan.kube.resources import (
    CERTIFICATE_SIGNING_REQUESTS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from sampan.kube.status import not_found
from tests.unit.kube_access.worlds import Cache, named

STANDING_STILL = Timeline(origin=0.0, base=0.0, wall_offset=1_800_000_000.0, rate=0.0)


class World:
    """A cache that stands for the cluster; it is the client and the informers at once."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.clock = Clock(STANDING_STILL)
        self.may: set[tuple[str, str]] = set()
        self.context = ControlContext(
            client=cast(Any, self), informers=cast(Any, self), clock=self.clock, tasks=Tasks(self.clock)
        )

    def informer(self, resource: Resource, **_: Any) -> Any:
        return _Informer(self.cache, resource)

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        found = self.cache.get(resource, namespace or "", name)
        if found is None:
            raise not_found(resource, name)
        return cast(Object, copy(found))

    async def create(self, resource: Resource, obj: Mapping[str, Any]) -> Object:
        assert resource.plural == "subjectaccessreviews"
        spec = obj["spec"]
        return {"status": {"allowed": (spec["user"], spec["resourceAttributes"]["subresource"]) in self.may}}

    async def update(self, resource: Resource, obj: Object, *, subresource: str | None = None) -> Object:
        self.cache.put(resource, obj)
        return obj

    async def delete(self, resource: Resource, name: str, namespace: str | None = None, **_: Any) -> Object:
        self.cache.drop(resource, namespace or "", name)
        return {}


class _Informer:
    def __init__(self, cache: Cache, resource: Resource) -> None:
        self.cache, self.resource = cache, resource

    def get(self, key: Key) -> Object | None:
        return self.cache.get(self.resource, key.namespace, key.name)

    def objects(self, namespace: str | None = None) -> list[Object]:
        return self.cache.objects(self.resource, namespace)


@pytest.fixture
def world() -> World:
    return World()


def pem(common_name: str, organization: str = "", dns: str = "") -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organization))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if dns:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns)]), critical=False)
    request = builder.sign(key, hashes.SHA256())
    return base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode()


NODE_USAGES = ["digital signature", "client auth"]


def request(signer: str, request_pem: str, usages: list[str], username: str = "ann", approved: bool = False) -> Object:
    made = named("r", spec={"signerName": signer, "request": request_pem, "usages": usages, "username": username})
    made["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z"
    if approved:
        made["status"] = {
            "conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "2027-01-15T08:00:00Z"}]
        }
    return made


def stored(world: World) -> Object:
    found = world.cache.get(CERTIFICATE_SIGNING_REQUESTS, "", "r")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("username", "subject", "usages", "allowed", "approved"),
    [
        ("system:bootstrap:abc", ("system:node:n1", "system:nodes"), NODE_USAGES, "nodeclient", True),
        ("system:node:n1", ("system:node:n1", "system:nodes"), NODE_USAGES, "selfnodeclient", True),
        ("system:node:n2", ("system:node:n1", "system:nodes"), NODE_USAGES, "selfnodeclient", False),
        ("system:bootstrap:abc", ("system:node:n1", "system:nodes"), NODE_USAGES, "", False),
        ("system:bootstrap:abc", ("system:node:n1", "system:masters"), NODE_USAGES, "nodeclient", False),
        ("system:bootstrap:abc", ("admin", "system:nodes"), NODE_USAGES, "nodeclient", False),
        ("system:bootstrap:abc", ("system:node:n1", "system:nodes"), ["server auth"], "nodeclient", False),
    ],
)
async def test_a_nodes_request_is_approved_when_it_may_ask(
    world: World, username: str, subject: tuple[str, str], usages: list[str], allowed: str, approved: bool
) -> None:
    if allowed:
        world.may.add((username, allowed))
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, request(KUBELET_CLIENT, pem(*subject), usages, username))
    await CertificateApprover(world.context).reconcile(Key("", "r"))
    conditions = stored(world).get("status", {}).get("conditions", [])
    assert [(each["type"], each["reason"]) for each in conditions] == (
        [("Approved", "AutoApproved")] if approved else []
    )


async def test_an_approved_request_is_signed_by_the_authority(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signer = CertificateSigner(world.context, authority, authority.apart("kubelets"))
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, request(CLIENT, pem("ann", "dev"), ["client auth"]))
    await signer.reconcile(Key("", "r"))
    assert "status" not in stored(world)
    asked = request(CLIENT, pem("ann", "dev"), ["client auth", "digital signature"], approved=True)
    asked["spec"]["expirationSeconds"] = 3600
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, asked)
    await signer.reconcile(Key("", "r"))
    certificate = x509.load_pem_x509_certificate(base64.b64decode(stored(world)["status"]["certificate"]))
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))
    assert certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == "ann"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < timedelta(hours=3)


async def test_what_a_kubelet_serves_with_is_worth_nothing_to_other_clients(world: World, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    kubelets = authority.apart("kubelets")
    own = pem("system:node:n1", "system:nodes", "127.0.0.1")
    asked = request(KUBELET_SERVING, own, ["server auth"], "system:node:n1", approved=True)
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, asked)
    await CertificateSigner(world.context, authority, kubelets).reconcile(Key("", "r"))
    certificate = x509.load_pem_x509_certificate(base64.b64decode(stored(world)["status"]["certificate"]))
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(kubelets.certificate_pem))
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


@pytest.mark.parametrize(
    ("signer", "request_pem", "usages", "why"),
    [
        (CLIENT, pem("ann"), ["server auth"], "usages did not contain client auth"),
        (CLIENT, pem("ann"), ["client auth", "cert sign"], "usages contain cert sign"),
        (CLIENT, pem("front-proxy-client"), ["client auth"], "is reserved"),
        (KUBELET_SERVING, pem("system:node:n1", "system:nodes"), ["server auth"], "subjectAltName is required"),
        (KUBELET_SERVING, pem("system:node:n2", "system:nodes", "n2"), ["server auth"], "not the requesting user"),
        (KUBELET_CLIENT, pem("system:node:n1", "system:nodes", "n1"), ["client auth"], "are not allowed"),
        (CLIENT, "bm9uc2Vuc2U=", ["client auth"], "unable to parse csr"),
    ],
    # of the keys, which every worker makes anew, no name may tell
    ids=["usage missing", "usage too much", "front proxy", "no names", "other node", "names", "nonsense"],
)
async def test_what_a_signer_does_not_give_is_marked_failed(
    world: World, tmp_path: Path, signer: str, request_pem: str, usages: list[str], why: str
) -> None:
    asked = request(signer, request_pem, usages, "system:node:n1", approved=True)
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, asked)
    authority = Authority(tmp_path)
    await CertificateSigner(world.context, authority, authority).reconcile(Key("", "r"))
    failed = stored(world)["status"]["conditions"][-1]
    assert (failed["type"], failed["reason"]) == ("Failed", "SignerValidationFailure")
    assert why in failed["message"]


async def test_requests_are_forgotten_an_hour_after_they_are_done(world: World) -> None:
    cleaner = CertificateCleaner(world.context)
    done = request(CLIENT, "", [], approved=True)
    done["status"]["certificate"] = "x"
    world.cache.put(CERTIFICATE_SIGNING_REQUESTS, done)
    assert await cleaner.reconcile(Key("", "r")) == 3600.0
    world.clock.jump(3601)
    assert await cleaner.reconcile(Key("", "r")) is None
    assert world.cache.get(CERTIFICATE_SIGNING_REQUESTS, "", "r") is None


def token_secret(uid: str = "") -> Object:
    made = named("s", "ns", type="kubernetes.io/service-account-token")
    made["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "robot"}
    if uid:
        made["metadata"]["annotations"]["kubernetes.io/service-account.uid"] = uid
    return made


async def test_a_token_secret_is_filled_and_its_token_works(world: World, tmp_path: Path) -> None:
    tokens = AccountTokens(SigningKey(tmp_path / "key"), world.cache, world.clock)
    controller = ServiceAccountTokens(world.context, tokens, b"CA")
    world.cache.put(SERVICE_ACCOUNTS, named("robot", "ns"))
    world.cache.put(SECRETS, token_secret())
    await controller.reconcile(Key("ns", "s"))
    secret = world.cache.get(SECRETS, "ns", "s")
    assert secret is not None
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"] == "uid-robot"
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    assert (data["ca.crt"], data["namespace"]) == (b"CA", b"ns")
    verified = tokens.verify(data["token"].decode())
    assert verified is not None
    assert verified.user.name == "system:serviceaccount:ns:robot"
    before = world.cache.generation(SECRETS)
    await controller.reconcile(Key("ns", "s"))
    assert world.cache.generation(SECRETS) == before


@pytest.mark.parametrize("uid", ["", "another"])
async def test_a_token_secret_goes_with_its_account(world: World, tmp_path: Path, uid: str) -> None:
    tokens = AccountTokens(SigningKey(tmp_path / "key"), world.cache, world.clock)
    if uid:
        world.cache.put(SERVICE_ACCOUNTS, named("robot", "ns"))
    world.cache.put(SECRETS, token_secret(uid))
    await ServiceAccountTokens(world.context, tokens, b"CA").reconcile(Key("ns", "s"))
    assert world.cache.get(SECRETS, "ns", "s") is None


def going(name: str, finalizer: str, namespace: str = "", **fields: Any) -> Object:
    made = named(name, namespace, **fields)
    made["metadata"] |= {"deletionTimestamp": "2027-01-15T08:00:00Z", "finalizers": [finalizer, "other"]}
    return made


async def test_a_claim_stays_while_a_live_pod_uses_it(world: World) -> None:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    pod = named("p", "ns", spec={"nodeName": "n1", "volumes": volumes}, status={"phase": "Running"})
    world.cache.put(PODS, pod)
    world.cache.put(PERSISTENT_VOLUME_CLAIMS, going("c", "kubernetes.io/pvc-protection", "ns"))
    protection = ClaimProtection(world.context)
    await protection.reconcile(Key("ns", "c"))
    claim = world.cache.get(PERSISTENT_VOLUME_CLAIMS, "ns", "c")
    assert claim is not None
    assert len(claim["metadata"]["finalizers"]) == 2
    world.cache.put(PODS, {**pod, "status": {"phase": "Succeeded"}})
    await protection.reconcile(Key("ns", "c"))
    claim = world.cache.get(PERSISTENT_VOLUME_CLAIMS, "ns", "c")
    assert claim is not None
    assert claim["metadata"]["finalizers"] == ["other"]


async def test_a_volume_stays_while_it_is_bound(world: World) -> None:
    protection = VolumeProtection(world.context)
    for phase, left in (("Bound", 2), ("Released", 1)):
        world.cache.put(PERSISTENT_VOLUMES, going("v", "kubernetes.io/pv-protection", status={"phase": phase}))
        await protection.reconcile(Key("", "v"))
        volume = world.cache.get(PERSISTENT_VOLUMES, "", "v")
        assert volume is not None
        assert len(volume["metadata"]["finalizers"]) == left
