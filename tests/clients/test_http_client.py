"""Both transports of the client behave alike: the same script, in process and over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import sampan.testing
from sampan.kube.client import Client
from sampan.kube.client.http import HttpClient
from sampan.kube.resources import CONFIG_MAPS, NAMESPACES, PODS
from sampan.kube.status import ApiError


@pytest_asyncio.fixture(params=["in process", "http"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with sampan.testing.Platform(only=["kubernetes"], settings={"kubernetes.store": "memory"}) as platform:
        if request.param == "http":
            async with platform.client() as http:
                yield http
        else:
            yield platform.get(Client)


def boat(**data: str) -> dict[str, object]:
    return {"kind": "ConfigMap", "metadata": {"name": "boat", "namespace": "default"}, "data": data}


async def test_an_object_lives(client: Client) -> None:
    created = await client.create(CONFIG_MAPS, boat(oars="1"))
    assert (created["kind"], created["apiVersion"]) == ("ConfigMap", "v1")
    created["data"]["oars"] = "2"
    assert (await client.update(CONFIG_MAPS, created, dry_run=True))["data"] == {"oars": "2"}
    assert (await client.get(CONFIG_MAPS, "boat", "default"))["data"] == {"oars": "1"}
    updated = await client.update(CONFIG_MAPS, created)
    with pytest.raises(ApiError) as conflict:
        await client.update(CONFIG_MAPS, created)
    assert conflict.value.conflict
    patched = await client.patch(CONFIG_MAPS, "boat", {"data": {"sail": "no"}}, "default")
    assert patched["data"] == {"oars": "2", "sail": "no"}
    replace = [{"op": "replace", "path": "/data/oars", "value": "3"}]
    assert (await client.patch(CONFIG_MAPS, "boat", replace, "default", patch_type="json"))["data"]["oars"] == "3"
    applied = await client.apply(CONFIG_MAPS, boat(flag="red"), field_manager="painter")
    assert applied["data"] == {"oars": "3", "sail": "no", "flag": "red"}
    with pytest.raises(ApiError) as precondition:
        await client.delete(CONFIG_MAPS, "boat", "default", uid="another")
    assert precondition.value.code == 409
    await client.delete(CONFIG_MAPS, "boat", "default", uid=updated["metadata"]["uid"])
    with pytest.raises(ApiError) as gone:
        await client.get(CONFIG_MAPS, "boat", "default")
    assert gone.value.not_found
    assert str(gone.value) == 'configmaps "boat" not found'


async def test_lists_come_in_pages_of_objects_that_name_their_kind(client: Client) -> None:
    for name in ("a", "b", "c"):
        obj = {"metadata": {"name": name, "labels": {"crew": "yes"}}, "kind": "ConfigMap"}
        await client.create(CONFIG_MAPS, obj, "default")
    first = await client.list(CONFIG_MAPS, "default", label_selector="crew", limit=2)
    rest = await client.list(
        CONFIG_MAPS, "default", label_selector="crew", limit=2, continue_token=first.continue_token
    )
    assert [item["metadata"]["name"] for item in (*first.items, *rest.items)] == ["a", "b", "c"]
    assert {(item["kind"], item["apiVersion"]) for item in first.items} == {("ConfigMap", "v1")}
    assert not rest.continue_token
    await client.delete_collection(CONFIG_MAPS, "default", label_selector="crew")
    assert (await client.list(CONFIG_MAPS, "default", label_selector="crew")).items == []


async def test_a_watch_delivers_what_happens_after_its_revision(client: Client) -> None:
    page = await client.list(CONFIG_MAPS, "default")
    async with client.watch(CONFIG_MAPS, "default", revision=page.revision) as events:
        await client.create(CONFIG_MAPS, boat())
        await client.delete(CONFIG_MAPS, "boat", "default")
        seen = []
        async for event in events:
            if event.type != "BOOKMARK":
                seen.append((event.type, event.object["metadata"]["name"]))
            if len(seen) == 2:
                break
    assert seen == [("ADDED", "boat"), ("DELETED", "boat")]


async def test_a_revision_of_no_shape_is_an_error(client: Client) -> None:
    with pytest.raises(ApiError) as error:
        async with client.watch(CONFIG_MAPS, "default", revision="soon"):
            pass
    assert error.value.code == 422


async def test_impersonation_is_authorized_and_takes_effect(client: Client) -> None:
    nobody = client.impersonate("ann", ["sailors"])
    with pytest.raises(ApiError) as error:
        await nobody.list(PODS, "default")
    assert error.value.code == 403
    assert 'User "ann" cannot list resource "pods"' in str(error.value)


async def test_nobody_there_is_an_api_error_too() -> None:
    async with HttpClient("http://127.0.0.1:9") as client:
        with pytest.raises(ApiError) as error:
            await client.list(NAMESPACES)
    assert error.value.code == 503


async def test_the_fixture_gives_a_client(kube: HttpClient) -> None:
    assert "default" in [item["metadata"]["name"] for item in (await kube.list(NAMESPACES)).items]
