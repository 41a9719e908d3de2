"""Lists and watches against a plain model: whatever happened, replaying a watch from any revision leads to the present."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sampan.kernel.clock import Clock
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER
from sampan.kube.access.rbac import AlwaysAllow
from sampan.kube.client.inprocess import InProcessClient
from sampan.kube.resources import CONFIG_MAPS
from sampan.kube.server.cache import StoreCache
from sampan.kube.server.verbs import Api
from sampan.kube.status import ApiError
from sampan.kube.store.core import Store
from sampan.kube.store.memory import MemoryLog
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry

PLACES = st.sampled_from([(namespace, name) for namespace in ("a", "b") for name in ("x", "y", "z")])
STEPS = st.lists(st.tuples(st.sampled_from(["create", "label", "delete"]), PLACES, st.sampled_from("01")), max_size=25)
SELECTIONS = [
    {},
    {"label_selector": "on=1"},
    {"label_selector": "on notin (1)"},
    {"field_selector": "metadata.name=x"},
    {"field_selector": "metadata.name=x,metadata.namespace=a"},
    {"field_selector": "metadata.namespace!=a", "label_selector": "on"},
]
State = dict[tuple[str, str], str]


def chosen(state: State, namespace: str | None, selection: dict[str, str]) -> State:
    """The model of a selection."""

    def holds(place: tuple[str, str], on: str) -> bool:
        label, field = selection.get("label_selector", ""), selection.get("field_selector", "")
        if namespace is not None and place[0] != namespace:
            return False
        if (label == "on=1" and on != "1") or (label == "on notin (1)" and on == "1"):
            return False
        if "metadata.name=x" in field and place[1] != "x":
            return False
        if "metadata.namespace=a" in field and place[0] != "a":
            return False
        return not ("metadata.namespace!=a" in field and place[0] == "a")

    return {place: on for place, on in state.items() if holds(place, on)}


def listed(items: list[dict[str, Any]]) -> State:
    return {(i["metadata"]["namespace"], i["metadata"]["name"]): i["metadata"]["labels"]["on"] for i in items}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, start=st.integers(0, 25), namespace=st.sampled_from([None, "a"]), limit=st.integers(1, 4))
def test_replaying_any_watch_leads_to_the_present(
    steps: list[tuple[str, tuple[str, str], str]], start: int, namespace: str | None, limit: int
) -> None:
    asyncio.run(_replay(steps, start, namespace, limit))


async def _replay(steps: list[Any], start: int, namespace: str | None, limit: int) -> None:
    clock = Clock()
    store = Store(MemoryLog(), clock)
    await store.open()
    types = TypeRegistry(builtin_types())
    cache = StoreCache(store, types)
    api = Api(store, types, clock, cache=cache, authorizer=AlwaysAllow(), admission=AdmissionChain([]))
    client = InProcessClient(api, MASTER)
    state: State = {}
    snapshots: list[tuple[str, State, Any]] = []
    for verb, (space, name), on in steps:
        page = await client.list(CONFIG_MAPS, namespace, limit=limit)
        snapshots.append((str(store.revision), dict(state), page))
        try:
            if verb == "create":
                await client.create(CONFIG_MAPS, {"metadata": {"name": name, "namespace": space, "labels": {"on": on}}})
                state[space, name] = on
            elif verb == "label":
                await client.patch(CONFIG_MAPS, name, {"metadata": {"labels": {"on": on}}}, space)
                state[space, name] = on
            else:
                await client.delete(CONFIG_MAPS, name, space)
                del state[space, name]
        except ApiError as error:
            assert error.already_exists or error.not_found
    for selection in SELECTIONS:
        present = listed((await client.list(CONFIG_MAPS, namespace, **selection)).items)  # type: ignore[arg-type]
        assert present == chosen(state, namespace, selection)
    if snapshots:
        revision, then, page = snapshots[start % len(snapshots)]
        items, token = list(page.items), page.continue_token
        while token:
            following = await client.list(CONFIG_MAPS, namespace, limit=limit, continue_token=token)
            items, token = items + following.items, following.continue_token
        assert listed(items) == chosen(then, namespace, {}), "every page is of the first one's snapshot"
        for selection in SELECTIONS:
            view = chosen(then, namespace, selection)
            await _follow(client, api, namespace, selection, revision, view, chosen(state, namespace, selection))
    api.close()
    cache.close()
    await store.close()


async def _follow(
    client: InProcessClient,
    api: Api,
    namespace: str | None,
    selection: dict[str, str],
    revision: str,
    view: State,
    wanted: State,
) -> None:
    last = int(revision)
    async with client.watch(CONFIG_MAPS, namespace, revision=revision, **selection) as events:
        api.hub.end_all()
        async for kind, obj in events:
            metadata = obj["metadata"]
            place = (metadata["namespace"], metadata["name"])
            assert int(metadata["resourceVersion"]) > last
            last = int(metadata["resourceVersion"])
            assert (place in view) == (kind != "ADDED"), (kind, place, view)
            if kind == "DELETED":
                del view[place]
            else:
                view[place] = metadata["labels"]["on"]
    assert view == wanted, (selection, revision)
