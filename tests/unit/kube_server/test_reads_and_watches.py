"""Lists at a snapshot and watches from a revision."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sampan.kube.client import WatchEvent
from sampan.kube.objects import Resource, dig
from sampan.kube.resources import CONFIG_MAPS, DEPLOYMENTS, EVENTS
from sampan.kube.server import watches
from sampan.kube.server.call import Call
from sampan.kube.server.negotiation import PLAIN, negotiate
from sampan.kube.server.options import ListOptions
from sampan.kube.status import ApiError

from .conftest import Cluster


def config_map(name: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": labels}}


async def take(events: Any, count: int) -> list[WatchEvent]:
    found = []
    async with asyncio.timeout(5):
        async for event in events:
            found.append(event)
            if len(found) == count:
                return found
    raise AssertionError(f"the watch ended after {found}")


def told(events: list[WatchEvent]) -> list[tuple[str, str]]:
    return [(event.type, event.object["metadata"]["name"]) for event in events]


async def test_pages_are_of_one_snapshot(cluster: Cluster) -> None:
    for index in range(5):
        await cluster.client.create(CONFIG_MAPS, config_map(f"m{index}"))
    first = await cluster.client.list(CONFIG_MAPS, limit=2)
    await cluster.client.create(CONFIG_MAPS, config_map("m1x"))
    await cluster.client.delete(CONFIG_MAPS, "m3", "default")
    second = await cluster.client.list(CONFIG_MAPS, limit=2, continue_token=first.continue_token)
    third = await cluster.client.list(CONFIG_MAPS, limit=2, continue_token=second.continue_token)
    names = [item["metadata"]["name"] for page in (first, second, third) for item in page.items]
    assert names == ["m0", "m1", "m2", "m3", "m4"]
    assert first.revision == second.revision == third.revision
    assert not third.continue_token


async def test_the_remaining_count_is_told_only_without_selectors(cluster: Cluster) -> None:
    for index in range(5):
        await cluster.client.create(CONFIG_MAPS, config_map(f"m{index}", odd=str(index % 2)))
    type = cluster.types.find(CONFIG_MAPS)
    assert type is not None
    call = Call(cluster.client._user, type)
    page = await cluster.api.list(call, ListOptions(limit=2))
    assert page.metadata()["remainingItemCount"] == 3
    following = await cluster.api.list(call, ListOptions(limit=2, continue_token=page.continue_token))
    assert following.metadata()["remainingItemCount"] == 1
    selected = await cluster.api.list(call, ListOptions(limit=1, label_selector="odd=1"))
    assert selected.continue_token and "remainingItemCount" not in selected.metadata()


async def test_a_broken_continue_token_is_a_bad_request(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="continue key is not valid"):
        await cluster.client.list(CONFIG_MAPS, limit=1, continue_token="nonsense")


async def test_selectors_choose_by_labels_and_fields(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a", tier="x"))
    await cluster.client.create(CONFIG_MAPS, config_map("b", tier="y"))
    await cluster.client.create(CONFIG_MAPS, config_map("a", "other", tier="y"))

    async def names(**selectors: str) -> list[str]:
        page = await cluster.client.list(CONFIG_MAPS, **selectors)  # type: ignore[arg-type]
        return [f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in page.items]

    assert await names(label_selector="tier in (y)") == ["default/b", "other/a"]
    assert await names(field_selector="metadata.name=a") == ["default/a", "other/a"]
    assert await names(field_selector="metadata.name=a,metadata.namespace!=other") == ["default/a"]
    with pytest.raises(ApiError) as raised:
        await names(field_selector="data.x=1")
    assert raised.value.code == 400


async def test_a_list_may_not_be_older_than_asked(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a"))
    waiting = asyncio.ensure_future(cluster.client.list(CONFIG_MAPS, revision=str(cluster.store.revision + 1)))
    await asyncio.sleep(0)
    await cluster.client.create(CONFIG_MAPS, config_map("b"))
    assert len((await waiting).items) == 2
    hopeless = asyncio.ensure_future(cluster.client.list(CONFIG_MAPS, revision=str(cluster.store.revision + 1)))
    await asyncio.sleep(0.01)
    cluster.clock.jump(4)
    with pytest.raises(ApiError, match="Too large resource version") as raised:
        await hopeless
    assert (raised.value.code, raised.value.details["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")


async def test_a_watch_begins_with_what_exists_and_goes_on(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a"))
    async with cluster.client.watch(CONFIG_MAPS) as events:
        await cluster.client.create(CONFIG_MAPS, config_map("b"))
        await cluster.client.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, "default")
        await cluster.client.delete(CONFIG_MAPS, "b", "default")
        found = await take(events, 4)
    assert told(found) == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
    revisions = [int(event.revision) for event in found]
    assert revisions == sorted(set(revisions)) and revisions[-1] == cluster.store.revision


async def test_a_watch_from_a_revision_misses_and_repeats_nothing(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a"))
    since = (await cluster.client.list(CONFIG_MAPS)).revision
    await cluster.client.create(CONFIG_MAPS, config_map("b"))
    async with cluster.client.watch(CONFIG_MAPS, revision=since) as events:
        await cluster.client.create(CONFIG_MAPS, config_map("c"))
        assert told(await take(events, 2)) == [("ADDED", "b"), ("ADDED", "c")]


async def test_watches_opened_between_a_write_and_its_delivery_see_it_once(cluster: Cluster) -> None:
    async with cluster.client.watch(CONFIG_MAPS) as first:
        await cluster.client.create(CONFIG_MAPS, config_map("a"))
        async with cluster.client.watch(CONFIG_MAPS) as second:
            await cluster.client.create(CONFIG_MAPS, config_map("b"))
            assert told(await take(first, 2)) == told(await take(second, 2)) == [("ADDED", "a"), ("ADDED", "b")]


async def test_objects_enter_and_leave_a_selection(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a", on="no"))
    async with cluster.client.watch(CONFIG_MAPS, "default", label_selector="on=yes") as events:
        for value in ("yes", "yes", "no", "no"):
            patch = {"metadata": {"labels": {"on": value}}, "data": {"n": str(cluster.store.revision)}}
            await cluster.client.patch(CONFIG_MAPS, "a", patch, "default")
        await cluster.client.create(CONFIG_MAPS, config_map("b", on="yes"))
        found = await take(events, 4)
    assert told(found) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b")]
    assert found[2].object["metadata"]["labels"] == {"on": "yes"}, "the state that was last in the selection"


async def test_watches_by_name_and_namespace_see_only_theirs(cluster: Cluster) -> None:
    async with (
        cluster.client.watch(CONFIG_MAPS, "one") as one,
        cluster.client.watch(CONFIG_MAPS, field_selector="metadata.name=x") as named,
    ):
        await cluster.client.create(CONFIG_MAPS, config_map("y", "two"))
        await cluster.client.create(CONFIG_MAPS, config_map("x", "two"))
        await cluster.client.create(CONFIG_MAPS, config_map("y", "one"))
        await cluster.client.create(CONFIG_MAPS, config_map("x", "one"))
        assert [event.object["metadata"]["name"] for event in await take(one, 2)] == ["y", "x"]
        assert [event.object["metadata"]["namespace"] for event in await take(named, 2)] == ["two", "one"]


async def test_the_beginning_of_a_watch_by_name_is_of_that_name(cluster: Cluster) -> None:
    since = str(cluster.store.revision)
    for namespace in ("one", "two"):
        for name in ("x", "y"):
            await cluster.client.create(CONFIG_MAPS, config_map(name, namespace))
    named = "metadata.name=x"
    async with cluster.client.watch(CONFIG_MAPS, field_selector=named) as events:
        assert [event.object["metadata"]["namespace"] for event in await take(events, 2)] == ["one", "two"]
    async with cluster.client.watch(CONFIG_MAPS, field_selector=named, revision=since) as events:
        await cluster.client.delete(CONFIG_MAPS, "y", "one")
        await cluster.client.delete(CONFIG_MAPS, "x", "one")
        assert told(await take(events, 3)) == [("ADDED", "x"), ("ADDED", "x"), ("DELETED", "x")]
    async with cluster.client.watch(CONFIG_MAPS, "one", field_selector=named) as events:
        await cluster.client.create(CONFIG_MAPS, config_map("x", "one"))
        assert told(await take(events, 1)) == [("ADDED", "x")]


async def test_a_revision_that_is_forgotten_is_expired(cluster: Cluster) -> None:
    for index in range(3):
        await cluster.client.create(CONFIG_MAPS, config_map(f"m{index}"))
    cluster.store._history.trim(cluster.store.revision, 0)
    with pytest.raises(ApiError) as raised:
        async with cluster.client.watch(CONFIG_MAPS, revision="2"):
            pass
    assert raised.value.expired


async def test_bookmarks_tell_idle_watches_where_the_store_is(cluster: Cluster) -> None:
    async with cluster.client.watch(CONFIG_MAPS) as events:
        await cluster.client.create(
            DEPLOYMENTS,
            {
                "metadata": {"name": "d", "namespace": "default"},
                "spec": {
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {
                        "metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "c", "image": "i"}]},
                    },
                },
            },
        )
        reading = asyncio.ensure_future(take(events, 1))
        await asyncio.sleep(0.01)
        cluster.clock.jump(watches.BOOKMARK_INTERVAL + 1)
        (bookmark,) = await reading
    assert (bookmark.type, bookmark.revision) == ("BOOKMARK", str(cluster.store.revision))


async def test_a_streaming_list_ends_its_beginning_with_a_marked_bookmark(cluster: Cluster) -> None:
    await cluster.client.create(CONFIG_MAPS, config_map("a"))
    type = cluster.types.find(CONFIG_MAPS)
    assert type is not None
    options = ListOptions(bookmarks=True, send_initial_events=True, revision_match="NotOlderThan")
    watch = await cluster.api.watch(Call(cluster.client._user, type), options)
    assert [kind for kind, _ in watch.initial] == ["ADDED"]
    assert watch.initial_end == cluster.store.revision
    marked = watches.bookmark_object(type, watch.initial_end, initial_end=True)
    assert marked["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    watch.close()


async def test_events_have_two_shapes_of_one_object(cluster: Cluster) -> None:
    newer = Resource("events.k8s.io", "v1", "events")
    async with cluster.client.watch(newer) as events:
        event = {
            "metadata": {"name": "e", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "reason": "Tested",
            "message": "it works",
            "type": "Normal",
        }
        await cluster.client.create(EVENTS, event)
        (seen,) = await take(events, 1)
    assert (seen.object["apiVersion"], seen.object["note"]) == ("events.k8s.io/v1", "it works")
    read = await cluster.client.get(newer, "e", "default")
    assert dig(read, "regarding", "name") == "p"


async def test_watchers_of_one_representation_share_its_bytes(cluster: Cluster) -> None:
    type = cluster.types.find(CONFIG_MAPS)
    assert type is not None
    open_watches = [await cluster.api.watch(Call(cluster.client._user, type), ListOptions()) for _ in range(2)]
    got: list[list[bytes]] = [[], []]

    class Sink:
        def __init__(self, into: list[bytes]) -> None:
            self.into = into

        def events(self, events: list[tuple[str, watches.Event]]) -> None:
            self.into.extend(event.chunk(kind, PLAIN, "Metadata", cluster.clock.now()) for kind, event in events)

        def bookmark(self, revision: int) -> None: ...

        def end(self) -> None: ...

    for watch, into in zip(open_watches, got, strict=True):
        watch.start(Sink(into))
    await cluster.client.create(CONFIG_MAPS, config_map("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert got[0] and got[0][0] is got[1][0]
    for watch in open_watches:
        watch.close()
    assert cluster.api.hub.count == 0


@pytest.mark.parametrize(
    ("accept", "shape", "yaml"),
    [
        ("", "", False),
        ("*/*", "", False),
        ("application/json", "", False),
        ("application/yaml", "", True),
        ("application/vnd.kubernetes.protobuf, */*", "", False),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Table", False),
        ("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,"
         "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json", "PartialObjectMetadata", False),
        ("application/json;as=Unknown;g=x;v=v1,application/json", "", False),
        ("text/html;q=0.9,application/json;q=0.8", "", False),
    ],
)  # fmt: skip
def test_the_first_acceptable_clause_decides(accept: str, shape: str, yaml: bool) -> None:
    assert negotiate(accept)[:2] == (yaml, shape)


def test_nothing_acceptable_is_406() -> None:
    with pytest.raises(ApiError, match="only the following media types are accepted"):
        negotiate("text/html, image/png")


@pytest.mark.parametrize("together", [True, False], ids=["in one step", "one by one"])
@pytest.mark.parametrize("remembered", [500, 1, 0])
async def test_a_watch_of_a_field_follows_objects_in_and_out(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, together: bool, remembered: int
) -> None:
    monkeypatch.setattr(watches, "SEEN", remembered)
    since = str(cluster.store.revision)
    expected = []
    async with cluster.client.watch(EVENTS, revision=since, field_selector="reason=Wanted") as events:

        async def write(name: str, reason: str, kind: str) -> None:
            metadata = {"name": name, "namespace": "default"}
            about = {"kind": "Pod", "name": "p", "namespace": "default"}
            await cluster.client.update(EVENTS, {"metadata": metadata, "involvedObject": about, "reason": reason})
            if kind:
                expected.append((kind, name))
            if not together:
                await asyncio.sleep(0.001)

        for name in ("a", "b"):
            await write(name, "Other", "")
            await write(name, "Wanted", "ADDED")
        for name in ("a", "b"):
            await write(name, "Other", "DELETED")
            await write(name, "Another", "")
            await write(name, "Wanted", "ADDED")
            await cluster.client.patch(EVENTS, name, {"message": "changed"}, "default")
            expected.append(("MODIFIED", name))
            await cluster.client.delete(EVENTS, name, "default")
            expected.append(("DELETED", name))
            await write(name, "Wanted", "ADDED")
        assert told(await take(events, len(expected))) == expected
