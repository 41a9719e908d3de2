"""What every write does to an object on its way into the store."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sampan.kube.control.compact import Compactor
from sampan.kube.objects import Resource
from sampan.kube.resources import CONFIG_MAPS, CONTROLLER_REVISIONS, DEPLOYMENTS, LEASES, NAMESPACES, PODS, SERVICES
from sampan.kube.server.sizes import DEEPEST
from sampan.kube.status import ApiError
from sampan.kube.store import FullError, MemoryLog
from sampan.kube.types.custom import resource_types
from tests.unit.kube_custom.widgets import definition, widget

from .conftest import Cluster


def config_map(name: str = "a", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


def deployment(name: str = "web", replicas: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "nginx"}]},
            },
        },
    }


async def test_creation_sets_what_belongs_to_the_server(cluster: Cluster) -> None:
    given = deployment()
    given["metadata"] |= {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7}
    made = await cluster.client.create(DEPLOYMENTS, given)
    metadata = made["metadata"]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4.{3}-.{4}-.{12}", metadata["uid"])
    assert metadata["creationTimestamp"] == cluster.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    assert metadata["generation"] == 1
    assert metadata["resourceVersion"] == str(cluster.store.revision)
    assert (made["apiVersion"], made["kind"]) == ("apps/v1", "Deployment")
    assert given["metadata"]["uid"] == "mine", "the caller's object is its own"


async def test_creation_refuses_a_resource_version(cluster: Cluster) -> None:
    given = config_map()
    given["metadata"]["resourceVersion"] = "5"
    with pytest.raises(ApiError, match="resourceVersion should not be set on objects to be created"):
        await cluster.client.create(CONFIG_MAPS, given)


async def test_generated_names_avoid_each_other(cluster: Cluster) -> None:
    made = [
        await cluster.client.create(CONFIG_MAPS, {"metadata": {"generateName": "x-", "namespace": "default"}})
        for _ in range(20)
    ]
    names = {obj["metadata"]["name"] for obj in made}
    assert len(names) == 20
    assert all(re.fullmatch(r"x-[bcdfghjklmnpqrstvwxz2456789]{5}", name) for name in names)


async def test_a_second_creation_is_refused(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map())
    with pytest.raises(ApiError) as raised:
        await cluster.client.create(CONFIG_MAPS, config_map())
    assert (raised.value.code, raised.value.message) == (409, 'configmaps "a" already exists')


def nested(levels: int) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for _ in range(levels - 1):
        whole = {"in": whole}
    return whole


@pytest.mark.parametrize("levels", [DEEPEST, 600, 900])
async def test_what_is_nested_too_deep_for_its_readers_is_refused(cluster: Cluster, levels: int) -> None:
    given = {"metadata": {"name": "a", "namespace": "default"}, "revision": 1}
    with pytest.raises(ApiError, match="exceeded max depth") as refused:
        await cluster.client.create(CONTROLLER_REVISIONS, {**given, "data": nested(levels)})
    assert refused.value.code == 400
    await cluster.client.create(CONTROLLER_REVISIONS, {**given, "data": nested(DEEPEST - 10)})
    found = await cluster.client.list(CONTROLLER_REVISIONS)
    assert [Compactor().compact(one)["data"] for one in found.items] == [nested(DEEPEST - 10)]


async def test_an_update_that_changes_nothing_keeps_the_revision(cluster: Cluster) -> None:
    made = await cluster.client.create(CONFIG_MAPS, config_map(x="1"))
    cluster.clock.jump(60)
    again = await cluster.client.update(CONFIG_MAPS, made)
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert again == made


async def test_an_update_on_an_old_revision_conflicts(cluster: Cluster) -> None:
    made = await cluster.client.create(CONFIG_MAPS, config_map(x="1"))
    await cluster.client.patch(CONFIG_MAPS, "a", {"data": {"x": "2"}}, "default")
    with pytest.raises(ApiError) as raised:
        await cluster.client.update(CONFIG_MAPS, made)
    assert raised.value.conflict
    assert raised.value.message.endswith("please apply your changes to the latest version and try again")


async def test_an_update_without_server_metadata_keeps_it(cluster: Cluster) -> None:
    made = await cluster.client.create(DEPLOYMENTS, deployment())
    changed = await cluster.client.update(DEPLOYMENTS, deployment(replicas=3))
    for field in ("uid", "creationTimestamp"):
        assert changed["metadata"][field] == made["metadata"][field]
    assert changed["metadata"]["generation"] == 2


async def test_a_custom_precondition_on_the_uid_is_checked(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map())
    other = config_map(x="1")
    other["metadata"]["uid"] = "another"
    with pytest.raises(ApiError, match="Precondition failed: UID in precondition: another, UID in object meta"):
        await cluster.client.update(CONFIG_MAPS, other)


async def test_leases_demand_a_revision_unless_they_are_made_by_the_update(cluster: Cluster) -> None:
    lease = {"metadata": {"name": "l", "namespace": "default"}, "spec": {"holderIdentity": "me"}}
    made = await cluster.client.create(LEASES, lease)
    made["spec"]["holderIdentity"] = "you"
    assert (await cluster.client.update(LEASES, made))["spec"]["holderIdentity"] == "you"
    if not cluster.types.find(LEASES).strategy.unconditional_update:  # type: ignore[union-attr]
        with pytest.raises(ApiError, match="must be specified for an update"):
            await cluster.client.update(LEASES, lease)


async def test_status_and_spec_are_written_on_their_own_paths(cluster: Cluster) -> None:
    made = await cluster.client.create(DEPLOYMENTS, {**deployment(), "status": {"replicas": 9}})
    assert made.get("status", {}).get("replicas") != 9
    made["spec"]["replicas"] = 5
    made["status"] = {"replicas": 2}
    status = await cluster.client.update(DEPLOYMENTS, made, subresource="status")
    assert (status["spec"]["replicas"], status["status"]["replicas"]) == (1, 2)
    assert status["metadata"]["generation"] == 1
    status["status"]["replicas"] = 7
    status["spec"]["replicas"] = 3
    main = await cluster.client.update(DEPLOYMENTS, status)
    assert (main["spec"]["replicas"], main["status"]["replicas"]) == (3, 2)


async def test_a_dry_run_stores_nothing(cluster: Cluster) -> None:
    before = cluster.store.revision
    made = await cluster.client.create(CONFIG_MAPS, config_map(), dry_run=True)
    assert made["metadata"]["uid"] and "resourceVersion" not in made["metadata"]
    assert cluster.store.revision == before
    with pytest.raises(ApiError) as raised:
        await cluster.client.get(CONFIG_MAPS, "a", "default")
    assert raised.value.not_found


async def test_the_body_must_agree_with_the_path(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="does not match the namespace sent on the request"):
        await cluster.client.create(CONFIG_MAPS, config_map(), "other")
    with pytest.raises(ApiError, match="the API version in the data"):
        await cluster.client.create(CONFIG_MAPS, {**config_map(), "apiVersion": "apps/v1"})


async def test_patches_apply_to_what_is_stored_and_retry_races(cluster: Cluster) -> None:
    import asyncio

    await cluster.client.create(CONFIG_MAPS, config_map())
    await asyncio.gather(
        *(cluster.client.patch(CONFIG_MAPS, "a", {"data": {f"k{i}": "v"}}, "default") for i in range(5))
    )
    stored = await cluster.client.get(CONFIG_MAPS, "a", "default")
    assert set(stored["data"]) == {f"k{i}" for i in range(5)}


async def test_a_patch_with_an_old_revision_conflicts(cluster: Cluster) -> None:
    made = await cluster.client.create(CONFIG_MAPS, config_map())
    revision = made["metadata"]["resourceVersion"]
    await cluster.client.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default")
    patch = {"metadata": {"resourceVersion": revision}, "data": {"x": "2"}}
    with pytest.raises(ApiError) as raised:
        await cluster.client.patch(CONFIG_MAPS, "a", patch, "default")
    assert raised.value.conflict


async def test_strategic_patches_merge_lists_by_key(cluster: Cluster) -> None:
    await cluster.client.create(DEPLOYMENTS, deployment())
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "busybox"}]}}}}
    patched = await cluster.client.patch(DEPLOYMENTS, "web", patch, "default", patch_type="strategic")
    names = {container["name"] for container in patched["spec"]["template"]["spec"]["containers"]}
    assert names == {"c", "side"}


async def test_apply_creates_owns_and_conflicts(cluster: Cluster) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", **config_map(x="1")}
    made = await cluster.client.apply(CONFIG_MAPS, config, field_manager="one")
    assert made["metadata"]["managedFields"][0]["manager"] == "one"
    same = await cluster.client.apply(CONFIG_MAPS, config, field_manager="one")
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    other = {**config, "data": {"x": "2"}}
    with pytest.raises(ApiError, match='conflict with "one"') as raised:
        await cluster.client.apply(CONFIG_MAPS, other, field_manager="two")
    assert raised.value.details["causes"][0]["reason"] == "FieldManagerConflict"
    forced = await cluster.client.apply(CONFIG_MAPS, other, field_manager="two", force=True)
    assert forced["data"] == {"x": "2"}


async def test_scale_reads_and_writes_replicas(cluster: Cluster) -> None:
    await cluster.client.create(DEPLOYMENTS, deployment())
    scale = await cluster.client.get(DEPLOYMENTS, "web", "default", subresource="scale")
    assert scale["kind"] == "Scale"
    assert (scale["spec"]["replicas"], scale["status"]["selector"]) == (1, "app=web")
    scaled = await cluster.client.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 4}}, "default", subresource="scale")
    assert scaled["spec"]["replicas"] == 4
    stored = await cluster.client.get(DEPLOYMENTS, "web", "default")
    assert (stored["spec"]["replicas"], stored["metadata"]["generation"]) == (4, 2)


async def test_a_pod_is_bound_once(cluster: Cluster) -> None:
    pod = {
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    }
    await cluster.client.create(PODS, pod)
    binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
    await cluster.client.create(PODS, binding, "default", name="p", subresource="binding")
    stored = await cluster.client.get(PODS, "p", "default")
    assert stored["spec"]["nodeName"] == "n1"
    assert stored["status"]["conditions"][0]["type"] == "PodScheduled"
    with pytest.raises(ApiError, match='already assigned to node "n1"') as raised:
        await cluster.client.create(PODS, binding, "default", name="p", subresource="binding")
    assert raised.value.conflict


async def test_services_get_addresses_and_ports_of_their_own(cluster: Cluster) -> None:
    def service(name: str, **spec: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"port": 80}], **spec}}

    one = await cluster.client.create(SERVICES, service("one"))
    two = await cluster.client.create(SERVICES, service("two", type="NodePort"))
    assert one["spec"]["clusterIP"] != two["spec"]["clusterIP"]
    assert one["spec"]["clusterIPs"] == [one["spec"]["clusterIP"]]
    port = two["spec"]["ports"][0]["nodePort"]
    assert 30000 <= port <= 32767
    with pytest.raises(ApiError, match="provided IP is already allocated"):
        await cluster.client.create(SERVICES, service("three", clusterIP=one["spec"]["clusterIP"]))
    with pytest.raises(ApiError, match="provided port is already allocated"):
        await cluster.client.create(SERVICES, service("three", type="NodePort", ports=[{"port": 1, "nodePort": port}]))
    headless = await cluster.client.create(SERVICES, service("four", clusterIP="None"))
    assert headless["spec"]["clusterIPs"] == ["None"]
    await cluster.client.delete(SERVICES, "one", "default")
    again = await cluster.client.create(SERVICES, service("five", clusterIP=one["spec"]["clusterIP"]))
    assert again["spec"]["clusterIP"] == one["spec"]["clusterIP"]


async def test_namespaces_can_be_finalized_only_through_their_subresource(cluster: Cluster) -> None:
    made = await cluster.client.create(NAMESPACES, {"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}})
    assert made["spec"]["finalizers"] == ["kubernetes"]
    marked = await cluster.client.delete(NAMESPACES, "n")
    assert marked["status"]["phase"] == "Terminating"
    marked["spec"]["finalizers"] = []
    await cluster.client.update(NAMESPACES, marked, subresource="finalize")
    with pytest.raises(ApiError) as raised:
        await cluster.client.get(NAMESPACES, "n")
    assert raised.value.not_found


async def test_one_and_true_are_two_values_however_python_sees_it(cluster: Cluster) -> None:
    given = definition()
    cluster.types.add(resource_types(given))
    widgets = Resource("example.com", "v1", "widgets")
    made = await cluster.client.create(widgets, widget(any={"x": 1}))
    with pytest.raises(ApiError, match="must be of type integer"):
        await cluster.client.patch(widgets, "w", {"spec": {"size": True}}, "ns")
    changed = await cluster.client.patch(widgets, "w", {"spec": {"any": {"x": True}}}, "ns")
    assert changed["spec"]["any"]["x"] is True
    assert changed["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    assert (await cluster.client.get(widgets, "w", "ns"))["spec"]["any"]["x"] is True


async def test_a_transition_rule_holds_for_every_write_of_an_object_known_to_be_valid(cluster: Cluster) -> None:
    cluster.types.add(resource_types(definition()))
    widgets = Resource("example.com", "v1", "widgets")
    await cluster.client.create(widgets, widget(color="red", ports=[{"port": 1, "count": 5}]))
    for size in range(3):
        await cluster.client.patch(widgets, "w", {"spec": {"size": size}}, "ns")
    with pytest.raises(ApiError, match="color is immutable"):
        await cluster.client.patch(widgets, "w", {"spec": {"color": "blue"}}, "ns")
    with pytest.raises(ApiError, match="4 is below 5"):
        await cluster.client.patch(widgets, "w", {"spec": {"ports": [{"port": 1, "count": 4}]}}, "ns")
    with pytest.raises(ApiError, match="size may not exceed max"):
        await cluster.client.patch(widgets, "w", {"spec": {"max": 1}}, "ns")
    await cluster.client.patch(widgets, "w", {"status": {"ready": 1}}, "ns", subresource="status")
    with pytest.raises(ApiError, match=r"status\.ready"):
        await cluster.client.patch(widgets, "w", {"status": {"ready": "x"}}, "ns", subresource="status")


async def test_what_the_store_cannot_take_is_a_status_to_who_writes_in_the_same_process(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FullError("no space left on device")

    client, other = cluster.client, {"apiVersion": "v1", "kind": "ConfigMap", **config_map("b")}
    await client.create(NAMESPACES, {"metadata": {"name": "default"}})
    kept = await client.create(CONFIG_MAPS, config_map("a"))
    with monkeypatch.context() as disk:
        disk.setattr(MemoryLog, "append", full)
        for write in (
            client.create(CONFIG_MAPS, other),
            client.update(CONFIG_MAPS, {**kept, "data": {"a": "b"}}),
            client.patch(CONFIG_MAPS, "a", {"data": {"a": "b"}}, "default"),
            client.apply(CONFIG_MAPS, other, field_manager="test"),
            client.delete(CONFIG_MAPS, "a", "default"),
            client.delete_collection(CONFIG_MAPS, "default"),
        ):
            with pytest.raises(ApiError) as refused:
                await write
            assert (refused.value.code, refused.value.reason) == (507, "InsufficientStorage")
    assert await client.get(CONFIG_MAPS, "a", "default") == kept
