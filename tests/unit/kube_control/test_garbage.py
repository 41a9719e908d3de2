"""The garbage collector on a real API: the three policies, and what it must never delete."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.control.garbage import GarbageCollector
from sampan.kube.control.ownership import Node, OwnerReference, OwnershipGraph
from sampan.kube.objects import Key, Object
from sampan.kube.resources import CONFIG_MAPS, EVENTS, NAMESPACES, NODES, SECRETS
from tests.unit.kube_control.conftest import World


def owned(*owners: Object, block: bool = False, controller: bool = False) -> list[Object]:
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
            "controller": controller,
        }
        for owner in owners
    ]


@pytest.fixture(params=["watches", "feed"])
async def collector(world: World, request: pytest.FixtureRequest) -> GarbageCollector:
    for name in ("default", "other"):
        await world.create(NAMESPACES, name)
    collector = GarbageCollector(world.context, world.types, world.feed if request.param == "feed" else None)
    await collector.start()
    return collector


@pytest.fixture
async def owner(world: World, collector: GarbageCollector) -> Object:
    return await world.create(CONFIG_MAPS, "owner", "default")


async def test_dependents_go_when_their_owner_has_gone(world: World, owner: Object) -> None:
    child = await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner))
    await world.create(SECRETS, "grandchild", "default", ownerReferences=owned(child))
    await world.create(SECRETS, "bystander", "default")
    await world.client.delete(CONFIG_MAPS, "owner", "default")
    await world.gone(CONFIG_MAPS, "child", "default")
    await world.gone(SECRETS, "grandchild", "default")
    assert await world.find(SECRETS, "bystander", "default")


async def test_a_dependent_with_another_owner_only_loses_the_reference(world: World, owner: Object) -> None:
    second = await world.create(CONFIG_MAPS, "second", "default")
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner, second))
    await world.client.delete(CONFIG_MAPS, "owner", "default")

    async def trimmed() -> bool:
        child = await world.client.get(CONFIG_MAPS, "child", "default")
        return [reference["name"] for reference in child["metadata"]["ownerReferences"]] == ["second"]

    await world.until(trimmed)


async def test_an_object_born_to_a_dead_owner_is_deleted(world: World, owner: Object) -> None:
    await world.client.delete(CONFIG_MAPS, "owner", "default")
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner))
    await world.gone(CONFIG_MAPS, "child", "default")


async def test_a_new_object_of_the_owners_name_is_not_the_owner(world: World, owner: Object) -> None:
    await world.client.delete(CONFIG_MAPS, "owner", "default")
    await world.create(CONFIG_MAPS, "owner", "default")
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner))
    await world.gone(CONFIG_MAPS, "child", "default")
    assert await world.find(CONFIG_MAPS, "owner", "default")


async def test_foreground_deletion_waits_for_blocking_dependents(world: World, owner: Object) -> None:
    await world.create(
        CONFIG_MAPS, "child", "default", ownerReferences=owned(owner, block=True), finalizers=["example.com/hold"]
    )
    await world.client.delete(CONFIG_MAPS, "owner", "default", propagation="Foreground")

    async def child_deleting() -> bool:
        child = await world.client.get(CONFIG_MAPS, "child", "default")
        return "deletionTimestamp" in child["metadata"]

    await world.until(child_deleting)
    await world.settle()
    assert (await world.client.get(CONFIG_MAPS, "owner", "default"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    await world.client.patch(CONFIG_MAPS, "child", {"metadata": {"finalizers": None}}, "default")
    await world.gone(CONFIG_MAPS, "owner", "default")
    await world.gone(CONFIG_MAPS, "child", "default")


async def test_foreground_deletion_passes_down_the_chain(world: World, owner: Object) -> None:
    child = await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner, block=True))
    await world.create(CONFIG_MAPS, "grandchild", "default", ownerReferences=owned(child, block=True))
    await world.client.delete(CONFIG_MAPS, "owner", "default", propagation="Foreground")
    for name in ("grandchild", "child", "owner"):
        await world.gone(CONFIG_MAPS, name, "default")


async def test_foreground_deletion_does_not_wait_for_others(world: World, owner: Object) -> None:
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner), finalizers=["example.com/hold"])
    await world.client.delete(CONFIG_MAPS, "owner", "default", propagation="Foreground")
    await world.gone(CONFIG_MAPS, "owner", "default")


async def test_a_circle_of_foreground_deletions_ends(world: World, owner: Object) -> None:
    child = await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner, block=True))
    patch = {"metadata": {"ownerReferences": owned(child, block=True)}}
    await world.client.patch(CONFIG_MAPS, "owner", patch, "default")
    await world.client.delete(CONFIG_MAPS, "owner", "default", propagation="Foreground")
    await world.gone(CONFIG_MAPS, "owner", "default")
    await world.gone(CONFIG_MAPS, "child", "default")


async def test_orphaned_dependents_stay_without_the_reference(world: World, owner: Object) -> None:
    second = await world.create(CONFIG_MAPS, "second", "default")
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner))
    await world.create(SECRETS, "shared", "default", ownerReferences=owned(owner, second))
    await world.client.delete(CONFIG_MAPS, "owner", "default", propagation="Orphan")
    await world.gone(CONFIG_MAPS, "owner", "default")
    await world.settle()
    child = await world.client.get(CONFIG_MAPS, "child", "default")
    shared = await world.client.get(SECRETS, "shared", "default")
    assert not child["metadata"].get("ownerReferences")
    assert [reference["name"] for reference in shared["metadata"]["ownerReferences"]] == ["second"]


async def test_an_owner_in_another_namespace_does_not_count_and_is_told(world: World, owner: Object) -> None:
    await world.create(CONFIG_MAPS, "child", "other", ownerReferences=owned(owner))
    await world.gone(CONFIG_MAPS, "child", "other")

    async def told() -> list[Object]:
        return (await world.client.list(EVENTS, "other")).items

    await world.until(told)
    (event,) = await told()
    assert (event["reason"], event["type"]) == ("OwnerRefInvalidNamespace", "Warning")
    assert event["involvedObject"]["name"] == "child" and 'does not exist in namespace "other"' in event["message"]


async def test_a_cluster_scoped_owner_counts_everywhere(world: World, collector: GarbageCollector) -> None:
    node = await world.create(NODES, "node")
    await world.create(CONFIG_MAPS, "child", "other", ownerReferences=owned(node))
    await world.settle()
    assert await world.find(CONFIG_MAPS, "child", "other")
    await world.client.delete(NODES, "node")
    await world.gone(CONFIG_MAPS, "child", "other")


async def test_an_owner_of_an_unknown_kind_keeps_its_dependents(world: World, owner: Object) -> None:
    reference: dict[str, Any] = {"apiVersion": "example.com/v1", "kind": "Nothing", "name": "x", "uid": "nowhere"}
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=[reference])
    await world.settle()
    assert await world.find(CONFIG_MAPS, "child", "default")


async def test_what_the_collector_missed_while_it_was_down_is_collected(world: World) -> None:
    await world.create(NAMESPACES, "default")
    owner = await world.create(CONFIG_MAPS, "owner", "default")
    await world.create(CONFIG_MAPS, "child", "default", ownerReferences=owned(owner))
    await world.create(
        CONFIG_MAPS, "kept", "default", ownerReferences=owned(await world.create(SECRETS, "s", "default"))
    )
    await world.client.delete(CONFIG_MAPS, "owner", "default")
    await GarbageCollector(world.context, world.types).start()
    await world.gone(CONFIG_MAPS, "child", "default")
    assert await world.find(CONFIG_MAPS, "kept", "default")


def _node(uid: str, owners: tuple[str, ...], deleting: bool, foreground: bool) -> Node:
    references = tuple(OwnerReference(owner, "v1", "ConfigMap", owner, True) for owner in owners)
    return Node(uid, CONFIG_MAPS, Key("n", uid), "ConfigMap", "v1", references, deleting, foreground, False)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.lists(st.sampled_from("abcd"), max_size=2),
            st.booleans(),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_the_graphs_dependents_are_always_the_inverse_of_the_owners(
    steps: list[tuple[str, list[str], bool, bool]],
) -> None:
    graph = OwnershipGraph()
    model: dict[str, Node] = {}
    for uid, owners, removed, deleting in steps:
        if removed:
            model.pop(uid, None)
            graph.remove(uid)
        else:
            model[uid] = _node(uid, tuple(owners), deleting, deleting)
            visits = graph.put(model[uid])
            assert deleting <= (uid in visits)
            assert uid in visits or graph.settled(model[uid])
        for owner in "abcd":
            expected = {node.uid for node in model.values() if any(r.uid == owner for r in node.owners)}
            assert {node.uid for node in graph.dependents(owner)} == expected
    for uid in list(model):
        graph.remove(uid)
    assert len(graph) == 0 and not any(graph.dependents(uid) for uid in "abcd")


def test_siblings_refer_to_their_owner_in_one_place() -> None:
    graph = OwnershipGraph()
    graph.put(_node("owner", (), False, False))
    # as decoded, nothing of an object is another's
    for number in range(3):
        graph.put(_node(f"child-{number}", ("own" + "er"[:],), False, False))
    first, *others = graph.dependents("owner")
    assert all(each.owners[0] is first.owners[0] for each in others)
    owner = graph.get("owner")
    assert owner is not None and first.owners[0].uid is owner.uid
