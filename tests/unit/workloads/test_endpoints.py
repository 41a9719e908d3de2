"""Endpoints and EndpointSlices: by value, and behind real pods."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.objects import Object
from sampan.kube.resources import ENDPOINT_SLICES, ENDPOINTS, PODS, SERVICES
from sampan.parts.workloads import endpoints
from sampan.parts.workloads.endpoints import MAX_ENDPOINTS, Group, plan_slices

from .conftest import Cluster, template


def service(ports: list[Object] | None = None, **spec: Any) -> Object:
    ports = ports or [{"name": "http", "port": 80, "targetPort": 8080}]
    return {
        "metadata": {"name": "web", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
    }


def pod(name: str = "p", plays: dict[str, str] | None = None, **spec: Any) -> Object:
    made = template({"app": "web"}, plays=plays, **spec)
    return {"metadata": {"name": name, **made["metadata"]}, "spec": made["spec"]}


async def slice_of(cluster: Cluster) -> Object:
    (found,) = await cluster.list(ENDPOINT_SLICES)
    return found


async def test_a_ready_pod_is_behind_its_service_in_both_forms(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.create(PODS, pod())
    await cluster.settle()
    made = await cluster.get(PODS, "p")
    found = await slice_of(cluster)
    assert found["metadata"]["name"].startswith("web-")
    assert found["metadata"]["labels"] == {
        "team": "a",
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    assert found["addressType"] == "IPv4"
    assert found["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert found["endpoints"] == [
        {
            "addresses": [made["status"]["podIP"]],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "p", "uid": made["metadata"]["uid"]},
            "nodeName": "node-1",
        }
    ]
    (subset,) = (await cluster.get(ENDPOINTS, "web"))["subsets"]
    assert subset["addresses"][0]["ip"] == made["status"]["podIP"]
    assert subset["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]


async def test_an_unready_pod_is_listed_but_not_served(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.create(PODS, pod(plays={"play/ready": "false"}))
    await cluster.settle()
    (one,) = (await slice_of(cluster))["endpoints"]
    assert one["conditions"] == {"ready": False, "serving": False, "terminating": False}
    (subset,) = (await cluster.get(ENDPOINTS, "web"))["subsets"]
    assert "addresses" not in subset
    assert len(subset["notReadyAddresses"]) == 1
    await cluster.patch(SERVICES, "web", {"spec": {"publishNotReadyAddresses": True}})
    await cluster.settle()
    assert (await slice_of(cluster))["endpoints"][0]["conditions"]["ready"] is True


async def test_a_terminating_pod_still_serves_but_is_not_ready(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.create(PODS, pod(plays={"play/linger": "10"}))
    await cluster.settle()
    await cluster.client.delete(PODS, "p", "default")
    await cluster.settle()
    (one,) = (await slice_of(cluster))["endpoints"]
    assert one["conditions"] == {"ready": False, "serving": True, "terminating": True}
    await cluster.pass_time(12)
    assert not (await slice_of(cluster)).get("endpoints")


async def test_a_named_port_may_differ_from_pod_to_pod(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service([{"port": 80, "targetPort": "web"}]))
    for name, number in (("a", 8080), ("b", 9090), ("none", 0)):
        ports = [{"name": "web", "containerPort": number}] if number else []
        await cluster.create(PODS, pod(name, containers=[{"name": "c", "image": "x", "ports": ports}]))
    await cluster.settle()
    slices = await cluster.list(ENDPOINT_SLICES)
    assert {one["ports"][0]["port"]: [e["targetRef"]["name"] for e in one["endpoints"]] for one in slices} == {
        8080: ["a"],
        9090: ["b"],
    }


async def test_headless_names_and_labels(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service(clusterIP="None"))
    await cluster.create(PODS, pod(hostname="web-0", subdomain="web"))
    await cluster.settle()
    found = await slice_of(cluster)
    assert found["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    assert found["endpoints"][0]["hostname"] == "web-0"


async def test_a_service_without_pods_has_empty_ones_and_without_selector_none(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    bare = service()
    bare["metadata"]["name"] = "bare"
    del bare["spec"]["selector"]
    await cluster.create(SERVICES, bare)
    await cluster.settle()
    assert await cluster.names(ENDPOINTS) == ["web"]
    assert not (await slice_of(cluster)).get("endpoints")


async def test_labels_of_the_service_are_kept_on_its_slices(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.settle()
    await cluster.patch(SERVICES, "web", {"metadata": {"labels": {"team": "b"}}})
    await cluster.settle()
    assert (await slice_of(cluster))["metadata"]["labels"]["team"] == "b"
    assert (await cluster.get(ENDPOINTS, "web"))["metadata"]["labels"]["team"] == "b"


async def test_both_forms_go_with_the_service(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.create(PODS, pod())
    await cluster.settle()
    await cluster.client.delete(SERVICES, "web", "default")
    await cluster.settle()
    assert await cluster.names(ENDPOINTS) == []
    assert await cluster.names(ENDPOINT_SLICES) == []


async def test_a_meddled_slice_is_put_right(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service())
    await cluster.create(PODS, pod())
    await cluster.settle()
    name = (await slice_of(cluster))["metadata"]["name"]
    await cluster.patch(ENDPOINT_SLICES, name, {"endpoints": []})
    await cluster.patch(ENDPOINTS, "web", {"subsets": []})
    await cluster.settle()
    assert len((await slice_of(cluster))["endpoints"]) == 1
    assert len((await cluster.get(ENDPOINTS, "web"))["subsets"]) == 1
    await cluster.client.delete(ENDPOINT_SLICES, name, "default")
    await cluster.settle()
    assert len((await slice_of(cluster))["endpoints"]) == 1


async def test_what_is_right_is_not_written_again(cluster: Cluster) -> None:
    await cluster.create(SERVICES, service([{"port": 80}]))
    await cluster.create(PODS, pod())
    await cluster.settle()
    before = cluster.store.revision
    await cluster.patch(PODS, "p", {"metadata": {"annotations": {"note": "x"}}})
    await cluster.settle()
    assert cluster.store.revision == before + 1


def written(name: str = "db", **metadata: Any) -> Object:
    addresses = {"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.2.4"}]}
    return {
        "metadata": {"name": name, **metadata},
        "subsets": [{**addresses, "ports": [{"name": "sql", "port": 5432}]}],
    }


async def test_endpoints_written_by_hand_are_mirrored(cluster: Cluster) -> None:
    outside = {"metadata": {"name": "db"}, "spec": {"ports": [{"name": "sql", "port": 5432}]}}
    await cluster.create(SERVICES, outside)
    await cluster.create(ENDPOINTS, written())
    await cluster.settle()
    slices = {one["addressType"]: one for one in await cluster.list(ENDPOINT_SLICES)}
    assert slices["IPv4"]["metadata"]["labels"] == {
        "kubernetes.io/service-name": "db",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    }
    assert slices["IPv4"]["endpoints"] == [
        {"addresses": ["10.1.2.3"], "conditions": {"ready": True}},
        {"addresses": ["10.1.2.4"], "conditions": {"ready": False}},
    ]
    assert slices["IPv6"]["ports"] == [{"name": "sql", "protocol": "TCP", "port": 5432}]
    before = cluster.store.revision
    await cluster.patch(SERVICES, "db", {"metadata": {"labels": {"x": "y"}}})
    await cluster.settle()
    assert cluster.store.revision == before + 1
    await cluster.patch(
        ENDPOINTS, "db", {"subsets": [{"addresses": [{"ip": "10.9.9.9"}], "ports": [{"name": "sql", "port": 5432}]}]}
    )
    await cluster.settle()
    (left,) = await cluster.list(ENDPOINT_SLICES)
    assert left["endpoints"][0]["addresses"] == ["10.9.9.9"]
    await cluster.client.delete(ENDPOINTS, "db", "default")
    await cluster.settle()
    assert await cluster.names(ENDPOINT_SLICES) == []


async def test_mirroring_may_be_declined(cluster: Cluster) -> None:
    await cluster.create(SERVICES, {"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})
    await cluster.create(ENDPOINTS, written(labels={"endpointslice.kubernetes.io/skip-mirror": "true"}))
    await cluster.create(ENDPOINTS, written("lease", annotations={"control-plane.alpha.kubernetes.io/leader": "{}"}))
    await cluster.settle()
    assert await cluster.names(ENDPOINT_SLICES) == []


# -- slicing by value

PORTS = [{"name": "", "port": 80, "protocol": "TCP"}]


def entry(number: int) -> Object:
    return {
        "addresses": [f"10.0.{number // 256}.{number % 256}"],
        "targetRef": {"uid": str(number)},
        "conditions": {"ready": True},
    }


def applied(existing: list[Object], plan: endpoints.SlicePlan) -> list[Object]:
    """The slices after a plan."""
    kept = {one["id"]: one for one in existing}
    for one in plan.delete:
        del kept[one["id"]]
    for one, group in plan.update:
        kept[one["id"]] = {**one, "ports": group.ports, "endpoints": group.endpoints}
    fresh = [
        {"id": f"new{n}", "ports": group.ports, "endpoints": group.endpoints} for n, group in enumerate(plan.create)
    ]
    return [*kept.values(), *fresh]


@given(st.lists(st.sets(st.integers(0, 400), max_size=350), min_size=1, max_size=5))
def test_slices_hold_exactly_what_is_wanted_whatever_came_before(history: list[set[int]]) -> None:
    slices: list[Object] = []
    for step, wanted in enumerate(history):
        group = Group(PORTS, [entry(number) for number in sorted(wanted)])
        slices = [{**one, "id": f"{step}/{n}"} for n, one in enumerate(applied(slices, plan_slices([group], slices)))]
        held = [one["targetRef"]["uid"] for each in slices for one in each["endpoints"]]
        assert sorted(map(int, held)) == sorted(wanted)
        assert all(len(one["endpoints"]) <= MAX_ENDPOINTS for one in slices)
        again = plan_slices([group], slices)
        assert not (again.create or again.update or again.delete), "a second look changes nothing"


@pytest.mark.parametrize(("count", "expected"), [(0, 1), (1, 1), (100, 1), (101, 2), (250, 3)])
def test_a_hundred_endpoints_fill_a_slice(count: int, expected: int) -> None:
    plan = plan_slices([Group(PORTS, [entry(number) for number in range(count)])], [])
    assert len(plan.create) == expected


def test_one_more_endpoint_touches_one_slice() -> None:
    many = [entry(number) for number in range(250)]
    slices = [{**one, "id": str(n)} for n, one in enumerate(applied([], plan_slices([Group(PORTS, many)], [])))]
    plan = plan_slices([Group(PORTS, [*many, entry(999)])], slices)
    assert (len(plan.create), len(plan.update), len(plan.delete)) == (0, 1, 0)
