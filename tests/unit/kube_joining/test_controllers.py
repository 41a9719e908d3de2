"""What the platform does for joining nodes: the signed description, ends of tokens, pod ranges, approvals, departures."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest

from sampan.kube.access.bootstrap import default_objects
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.control.bootstrap_tokens import ClusterInfo, TokenCleaner
from sampan.kube.control.certificates_signing import CertificateApprover
from sampan.kube.control.node_departure import LEFT, NodeDeparture
from sampan.kube.control.node_ranges import TAKEN_RANGES, NodeRanges, free_range, networks
from sampan.kube.joining import discovery
from sampan.kube.joining.credentials import Wanted, make_request, of_client, of_kubelet, of_network
from sampan.kube.joining.tokens import Token, secret_object
from sampan.kube.objects import Key, Object
from sampan.kube.resources import CERTIFICATE_SIGNING_REQUESTS, CONFIG_MAPS, NAMESPACES, NODES, SECRETS, SERVICES
from tests.unit.kube_control.conftest import World

TOKEN = Token("abcdef", "0123456789abcdef")


def stamp(world: World, ahead: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(world.clock.time() + ahead, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def info(world: World) -> dict[str, str]:
    found = await world.find(CONFIG_MAPS, "cluster-info", "kube-public")
    data: dict[str, str] = (found or {}).get("data") or {}
    return data


async def test_each_token_signs_for_as_long_as_it_lives(world: World) -> None:
    await ClusterInfo(world.context, "https://10.0.0.1:6443", "PEM").start()

    async def described() -> bool:
        return "kubeconfig" in await info(world)

    await world.until(described)
    await world.client.create(SECRETS, secret_object(TOKEN, expiration=stamp(world, 3600)))
    await world.client.create(SECRETS, secret_object(Token("authen", "0" * 16), usages=["authentication"]))

    async def signed() -> bool:
        return "jws-kubeconfig-abcdef" in await info(world)

    await world.until(signed)
    found = await world.client.get(CONFIG_MAPS, "cluster-info", "kube-public")
    assert discovery.believed(found, TOKEN, []) == discovery.Cluster("https://10.0.0.1:6443", "PEM")
    assert "jws-kubeconfig-authen" not in found["data"]
    world.clock.jump(3601)

    async def withdrawn() -> bool:
        return not await signed()

    await world.until(withdrawn)


async def test_a_description_that_somebody_changed_is_put_right(world: World) -> None:
    await ClusterInfo(world.context, "https://10.0.0.1:6443", "PEM").start()

    async def right() -> bool:
        return "10.0.0.1" in (await info(world)).get("kubeconfig", "")

    await world.until(right)
    patch = {"data": {"kubeconfig": "server: https://10.9.9.9:6443"}}
    await world.client.patch(CONFIG_MAPS, "cluster-info", patch, "kube-public")
    await world.until(right)


async def test_tokens_are_deleted_when_their_time_is_over(world: World) -> None:
    await TokenCleaner(world.context).start()
    await world.client.create(SECRETS, secret_object(TOKEN, expiration=stamp(world, 3600)))
    await world.client.create(SECRETS, secret_object(Token("always", "0" * 16)))
    await world.client.create(SECRETS, secret_object(Token("broken", "0" * 16), expiration="soon"))
    await world.gone(SECRETS, "bootstrap-token-broken", "kube-system")
    await world.settle()
    assert await world.find(SECRETS, TOKEN.name, "kube-system")
    world.clock.jump(3601)
    await world.gone(SECRETS, TOKEN.name, "kube-system")
    assert await world.find(SECRETS, "bootstrap-token-always", "kube-system")


@pytest.mark.parametrize(
    ("taken", "free"),
    [
        ([], "10.244.128.0/24"),
        (["10.244.128.0/24"], "10.244.129.0/24"),
        (["10.244.128.0/23", "10.244.131.0/28"], "10.244.130.0/24"),
        (["10.244.128.0/17"], "10.244.0.0/24"),
        (["10.244.0.0/16"], ""),
        (["10.245.0.0/16", "nonsense"], "10.244.128.0/24"),
    ],
)
def test_a_range_is_free_when_it_touches_no_other(taken: list[str], free: str) -> None:
    assert free_range(networks(taken)) == free


def test_platforms_begin_at_different_places_and_go_round() -> None:
    assert free_range([], begin=3) == "10.244.131.0/24"
    assert free_range([], begin=128 * 7 + 127) == "10.244.255.0/24"
    assert free_range(networks(["10.244.255.0/24"]), begin=127) == "10.244.128.0/24"
    assert free_range(networks(["10.244.128.0/17"]), begin=127) == "10.244.0.0/24"


async def pod_range(world: World, name: str) -> str:
    found = await world.find(NODES, name)
    chosen: str = ((found or {}).get("spec") or {}).get("podCIDR", "")
    return chosen


async def test_nodes_that_join_get_ranges_of_their_own(world: World) -> None:
    uid = (await world.create(NAMESPACES, "kube-system"))["metadata"]["uid"]
    places = [f"10.244.{128 + (zlib.crc32(uid.encode()) + further) % 128}.0/24" for further in range(3)]
    await world.create(NODES, "first", spec={"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]})
    await NodeRanges(world.context).start()
    for name in ("a", "b"):
        metadata = {"name": name, "annotations": {TAKEN_RANGES: places[1]}}
        await world.client.create(NODES, {"metadata": metadata})
    await world.create(NODES, "bare")

    async def given() -> bool:
        return bool(await pod_range(world, "a") and await pod_range(world, "b"))

    await world.until(given)
    assert {await pod_range(world, "a"), await pod_range(world, "b")} == {places[0], places[2]}
    assert await pod_range(world, "bare") == ""


async def test_a_node_that_has_left_is_taken_out(world: World) -> None:
    await world.create(NODES, "gone")
    await world.create(NODES, "here")
    await NodeDeparture(world.context).start()
    await world.client.patch(NODES, "gone", {"metadata": {"annotations": {LEFT: "true"}}})
    await world.gone(NODES, "gone")
    assert await world.find(NODES, "here")


async def test_a_node_that_has_come_back_is_not_taken_for_the_one_that_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.create(NODES, "back")
    departure = NodeDeparture(world.context)
    former = {"metadata": {"name": "back", "uid": "former", "annotations": {LEFT: "true"}}}
    monkeypatch.setattr(departure, "informer", lambda _: {Key("", "back"): former})  # what it knows is a little old
    await departure.reconcile(Key("", "back"))
    assert await world.find(NODES, "back")


async def approval(world: World, wanted: Wanted, user: str = "system:node:a") -> Object:
    """The request that ``user`` made, after the approver has looked at it."""
    _, pem = make_request(wanted)
    spec = {
        "request": base64.b64encode(pem).decode(),
        "signerName": wanted.signer,
        "usages": list(wanted.usages),
        "username": user,  # admission writes it; there is none here
    }
    made = await world.client.create(CERTIFICATE_SIGNING_REQUESTS, {"metadata": {"generateName": "csr-"}, "spec": spec})
    await world.settle()
    return await world.client.get(CERTIFICATE_SIGNING_REQUESTS, made["metadata"]["name"])


def decided(request: Object) -> list[str]:
    return [one["type"] for one in request.get("status", {}).get("conditions") or []]


class Allowing(CertificateApprover):
    """An approver whose questions to the API are answered as told."""

    allowed: frozenset[str] = frozenset()

    async def _may(self, spec: Any, subresource: str) -> bool:
        return subresource in self.allowed


async def test_a_kubelets_certificate_is_for_the_addresses_of_its_node(world: World) -> None:
    approver = Allowing(world.context)
    approver.allowed = frozenset({"selfnodeserver"})
    await approver.start()
    await world.create(NODES, "a")
    addresses = [{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "Hostname", "address": "a"}, {}]
    await world.client.patch(NODES, "a", {"status": {"addresses": addresses}}, subresource="status")
    await world.settle()
    assert decided(await approval(world, of_kubelet("a", ["10.0.0.2"]))) == ["Approved"]
    assert decided(await approval(world, of_kubelet("a", ["10.0.0.1"]))) == []
    assert decided(await approval(world, of_kubelet("a", ["10.0.0.2"]), user="system:node:b")) == []
    approver.allowed = frozenset()
    assert decided(await approval(world, of_kubelet("a", ["10.0.0.2"]))) == []


@pytest.mark.parametrize(
    "name", ["kubernetes.default.svc", "Localhost", "10.96.0.1", "b", "x.default.svc.cluster.local"]
)
async def test_a_kubelets_certificate_is_for_no_name_of_the_api_server_or_another_node(world: World, name: str) -> None:
    approver = Allowing(world.context)
    approver.allowed = frozenset({"selfnodeserver"})
    await approver.start()
    service = {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443}]}
    await world.create(SERVICES, "kubernetes", "default", spec=service)
    await world.create(NODES, "a")
    await world.create(NODES, "b")
    addresses = [{"type": "Hostname", "address": "a"}, {"type": "InternalDNS", "address": name}]
    await world.client.patch(NODES, "a", {"status": {"addresses": addresses}}, subresource="status")
    await world.settle()
    assert decided(await approval(world, of_kubelet("a", [name]))) == []
    assert decided(await approval(world, of_kubelet("a", []))) == ["Approved"]


async def test_nobody_becomes_the_platforms_own_node(world: World) -> None:
    approver = Allowing(world.context)
    approver.allowed = frozenset({"nodeclient", "selfnodeclient"})
    await approver.start()
    await world.create(NODES, "own")
    await world.create(NODES, "a")
    await world.client.patch(NODES, "a", {"metadata": {"annotations": {JOINED: "true"}}})
    await world.settle()
    assert decided(await approval(world, of_client("own"), user="system:bootstrap:abcdef")) == []
    assert decided(await approval(world, of_client("own"), user="system:node:own")) == []
    for name in ("a", "new"):
        assert decided(await approval(world, of_client(name), user="system:bootstrap:abcdef")) == ["Approved"]


async def test_a_request_that_came_before_the_addresses_is_looked_at_again(world: World) -> None:
    approver = Allowing(world.context)
    approver.allowed = frozenset({"selfnodeserver"})
    await approver.start()
    await world.create(NODES, "a")
    made = await approval(world, of_kubelet("a", ["10.0.0.2"]))
    assert decided(made) == []
    addresses = [{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "Hostname", "address": "a"}]
    await world.client.patch(NODES, "a", {"status": {"addresses": addresses}}, subresource="status")

    async def approved() -> bool:
        found = await world.client.get(CERTIFICATE_SIGNING_REQUESTS, made["metadata"]["name"])
        return decided(found) == ["Approved"]

    await world.until(approved)


async def test_only_nodes_become_the_one_that_follows_services(world: World) -> None:
    approver = Allowing(world.context)
    approver.allowed = frozenset({"nodeproxy"})
    await approver.start()
    assert decided(await approval(world, of_network())) == ["Approved"]
    assert decided(await approval(world, of_network(), user="ann")) == []
    assert decided(await approval(world, of_network()._replace(common_name="system:admin"))) == []
    assert decided(await approval(world, of_network()._replace(organizations=("system:masters",)))) == []


def test_the_roles_that_joining_needs_are_among_the_defaults() -> None:
    names = {(obj["kind"], obj["metadata"]["name"]) for _, obj in default_objects()}
    assert {
        ("Role", "kubeadm:bootstrap-signer-clusterinfo"),
        ("RoleBinding", "kubeadm:bootstrap-signer-clusterinfo"),
        ("ClusterRoleBinding", "kubeadm:get-nodes"),
        ("ClusterRoleBinding", "sampan:node-autoapprove-serving"),
        ("ClusterRoleBinding", "sampan:node-autoapprove-network"),
        ("ClusterRoleBinding", "sampan:node-network"),
    } <= names
