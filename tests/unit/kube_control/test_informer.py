"""Informers follow their collection through disconnections, lost history and recreated objects."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import SharedInformers
from sampan.kube.control.informer import SharedInformer
from sampan.kube.objects import Key, Object, Resource
from sampan.kube.resources import CONFIG_MAPS, PODS
from sampan.kube.status import unavailable
from tests.unit.kube_control.cluster import Cluster, settle

Change = tuple[str | None, str | None]


def pod(name: str, namespace: str = "default", owner: str | None = None, **labels: str) -> Object:
    metadata: Object = {"name": name, "namespace": namespace, "labels": labels}
    if owner:
        reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}
        metadata["ownerReferences"] = [reference]
    metadata["managedFields"] = [{"manager": "test"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster.started(history_count=20)


@pytest.fixture
async def informers(cluster: Cluster) -> AsyncIterator[SharedInformers]:
    async with Tasks(cluster.clock) as tasks:
        yield SharedInformers(cluster, cluster.clock, tasks)


def recorded(informer: SharedInformer) -> list[Change]:
    changes: list[Change] = []

    def note(obj: Object | None) -> str | None:
        return None if obj is None else f"{obj['metadata']['name']}:{obj['metadata']['uid']}"

    informer.on_change(lambda old, new: changes.append((note(old), note(new))))
    return changes


async def test_an_informer_lists_then_follows(cluster: Cluster, informers: SharedInformers) -> None:
    await cluster.create(PODS, pod("a"))
    informer = informers.informer(PODS)
    assert not informer.synced and informers.informer(PODS) is informer
    await informer.wait_synced()
    changes = recorded(informer)
    assert [obj["metadata"]["name"] for obj in informer.objects()] == ["a"]
    await cluster.create(PODS, pod("b"))
    await cluster.delete(PODS, "a", "default")
    await settle()
    assert changes == [(None, "a:uid-1"), (None, "b:uid-2"), ("a:uid-1", None)]
    assert informer.get(Key("default", "a")) is None
    assert "managedFields" not in informer.get(Key("default", "b"))["metadata"]  # type: ignore[index]


async def test_look_ups_by_namespace_labels_selector_and_owner(cluster: Cluster, informers: SharedInformers) -> None:
    await cluster.create(PODS, pod("a", owner="rs", app="web"))
    await cluster.create(PODS, pod("b", "other", owner="rs", app="web", tier="x"))
    await cluster.create(PODS, pod("c", app="db"))
    informer = informers.informer(PODS)
    informer.add_index("app", lambda obj: [obj["metadata"]["labels"]["app"]])
    await informer.wait_synced()

    def names(objects: list[Object]) -> list[str]:
        return [obj["metadata"]["name"] for obj in objects]

    assert names(informer.objects("default")) == ["a", "c"]
    assert names(informer.objects(labels={"app": "web"})) == ["a", "b"]
    assert names(informer.select(None, {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]})) == [
        "a",
        "c",
    ]
    assert informer.select(None, None) == [] and names(informer.select("other", {})) == ["b"]
    assert names(informer.indexed("owner", "rs")) == ["a", "b"] and names(informer.indexed("app", "db")) == ["c"]
    informer.add_index("tier", lambda obj: [obj["metadata"]["labels"].get("tier", "")])
    assert names(informer.indexed("tier", "x")) == ["b"]
    await cluster.patch(PODS, "b", {"metadata": {"labels": {"tier": "y"}}}, "other")
    await settle()
    assert informer.indexed("tier", "x") == [] and names(informer.indexed("tier", "y")) == ["b"]


async def test_a_selector_has_an_informer_of_its_own(cluster: Cluster, informers: SharedInformers) -> None:
    informer = informers.informer(PODS, label_selector="app=web")
    await informer.wait_synced()
    await cluster.create(PODS, pod("a", app="web"))
    await cluster.create(PODS, pod("b", app="db"))
    await settle()
    assert [o["metadata"]["name"] for o in informer.objects()] == ["a"]
    await cluster.patch(PODS, "a", {"metadata": {"labels": {"app": "db"}}}, "default")
    await settle()
    assert informer.objects() == []


async def test_a_cut_watch_is_resumed_without_a_list(cluster: Cluster, informers: SharedInformers) -> None:
    informer = informers.informer(PODS)
    await informer.wait_synced()
    await cluster.create(PODS, pod("a"))
    await settle()
    cluster.cut_watches()
    await cluster.create(PODS, pod("b"))
    await settle()
    assert len(informer) == 2
    assert cluster.requests.count(("list", "pods")) == 1 and cluster.requests.count(("watch", "pods")) == 2


async def test_lost_history_means_a_list_whose_differences_are_told(
    cluster: Cluster, informers: SharedInformers
) -> None:
    informer = informers.informer(PODS)
    for name in ("kept", "gone", "again", "changed"):
        await cluster.create(PODS, pod(name))
    await informer.wait_synced()
    await settle()
    changes = recorded(informer)
    changes.clear()
    down = True

    def fault(verb: str, resource: Resource) -> None:
        if down and resource == PODS and verb == "watch":
            raise unavailable("restarting")

    cluster.fault = fault
    cluster.cut_watches()
    await settle()
    await cluster.delete(PODS, "gone", "default")
    await cluster.delete(PODS, "again", "default")
    await cluster.create(PODS, pod("again"))
    await cluster.patch(PODS, "changed", {"metadata": {"labels": {"x": "y"}}}, "default")
    for number in range(30):
        await cluster.create(CONFIG_MAPS, pod(f"noise-{number}"))
    down = False
    cluster.clock.jump(60)
    await asyncio.sleep(0.01)
    await settle()
    assert changes == [
        ("gone:uid-2", None),
        ("again:uid-3", None),
        (None, "again:uid-5"),
        ("changed:uid-4", "changed:uid-4"),
    ]


async def test_a_resource_that_is_not_served_yet_is_waited_for(cluster: Cluster, informers: SharedInformers) -> None:
    cluster.served = set()
    informer = informers.informer(PODS)
    await settle()
    assert not informer.synced
    cluster.served.add(PODS)
    cluster.clock.jump(2)
    await informer.wait_synced()


async def test_long_collections_are_read_in_pages(
    cluster: Cluster, informers: SharedInformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sampan.kube.control.reflector.PAGE", 3)
    for number in range(10):
        await cluster.create(PODS, pod(f"p{number}"))
    informer = informers.informer(PODS)
    await informer.wait_synced()
    assert len(informer) == 10 and cluster.requests.count(("list", "pods")) == 4


async def test_pages_that_expire_are_replaced_by_one_list(
    cluster: Cluster, informers: SharedInformers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sampan.kube.control.reflector.PAGE", 3)
    for number in range(30):
        await cluster.create(PODS, pod(f"p{number}"))
    listed = 0
    page = cluster.list

    async def slow(*args: object, **options: object) -> object:
        nonlocal listed
        listed += 1
        if listed == 2:
            for number in range(30):
                await cluster.create(CONFIG_MAPS, pod(f"n{number}"))
        return await page(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cluster, "list", slow)
    informer = informers.informer(PODS)
    await informer.wait_synced()
    assert len(informer) == 30 and listed == 3


async def test_a_faulty_listener_harms_neither_cache_nor_others(cluster: Cluster, informers: SharedInformers) -> None:
    informer = informers.informer(PODS)

    def faulty(old: Object | None, new: Object | None) -> None:
        raise RuntimeError("listener")

    informer.on_change(faulty)
    changes = recorded(informer)
    await cluster.create(PODS, pod("a"))
    await informer.wait_synced()
    await settle()
    assert len(changes) == 1 and len(informer) == 1


async def test_after_any_disturbance_the_cache_and_its_tellings_equal_the_collection() -> None:
    chance = random.Random(3)
    clock = Clock()
    cluster = await Cluster.started(clock, history_count=15)
    async with Tasks(clock) as tasks:
        informer = SharedInformers(cluster, clock, tasks).informer(PODS)
        told: dict[str, str] = {}

        def follow(old: Object | None, new: Object | None) -> None:
            if old is not None:
                assert told.pop(old["metadata"]["name"]) == old["metadata"]["uid"]
            if new is not None:
                assert new["metadata"]["name"] not in told
                told[new["metadata"]["name"]] = new["metadata"]["uid"]

        informer.on_change(follow)
        for _ in range(400):
            name = f"p{chance.randrange(8)}"
            present = cluster.store.get(f"/registry/core/pods/default/{name}") is not None
            match chance.randrange(6):
                case 0 | 1 if not present:
                    await cluster.create(PODS, pod(name))
                case 2 if present:
                    await cluster.delete(PODS, name, "default")
                case 3 if present:
                    await cluster.patch(PODS, name, {"metadata": {"labels": {"n": str(chance.random())}}}, "default")
                case 4:
                    cluster.cut_watches()
                case 5:
                    await settle(turns=chance.randrange(8))
        await settle()
        clock.jump(120)
        await asyncio.sleep(0.01)
        await settle()
        live = (await cluster.list(PODS)).items
        assert told == {o["metadata"]["name"]: o["metadata"]["uid"] for o in live}
        assert {o["metadata"]["resourceVersion"] for o in informer.objects()} == {
            o["metadata"]["resourceVersion"] for o in live
        }
