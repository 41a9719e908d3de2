"""Informers that hold encoded what nobody uses: nobody can tell, and it is gone from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import SharedInformers, informer
from sampan.kube.control.held import SCANNED, KeysByValue
from sampan.kube.control.informer import SharedInformer
from sampan.kube.control.local import LocalFeed
from sampan.kube.objects import Key, Object, Resource, copy, encode
from sampan.kube.resources import CONFIG_MAPS
from sampan.kube.store import MemoryLog, Store
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.custom.served import resource_types
from sampan.kube.types.resource import TypeRegistry
from tests.unit.kube_control.conftest import World

BOATS = Resource("ex.io", "v1", "boats")
KEYS = [Key(namespace, name) for namespace in "xy" for name in "abc"]
VALUES: list[Any] = ["a", "True", True, 1, 1.0, None, [1, {"b": 1}], {"b": True}, "x" * 300]


def definition(revision: int, **fields: Any) -> Object:
    """Boats whose spec has these fields; ``revision`` is the definition's own."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}
    names = {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    spec = {"group": "ex.io", "scope": "Namespaced", "names": names, "versions": [version]}
    metadata = {"name": "boats.ex.io", "generation": 1, "resourceVersion": str(revision)}
    return {"metadata": metadata, "spec": spec, "status": {"acceptedNames": names}}


ANY = {"x-kubernetes-preserve-unknown-fields": True}
SHAPES: list[dict[str, Any]] = [
    {"value": ANY},
    {"value": ANY, "colour": {"type": "string", "default": "red"}},
    {"colour": {"type": "string", "default": "blue"}},  # value is pruned
]


def values(obj: Object) -> list[str]:
    spec = obj.get("spec") or {}
    return [repr(spec.get("value")), str(spec.get("colour"))]


class Lazy(RuleBasedStateMachine):
    """The same store feeds an informer that may freeze and one that never does; both must say the same."""

    @initialize(shape=st.sampled_from(range(len(SHAPES))))
    def begin(self, shape: int) -> None:
        self.runner = asyncio.Runner()
        self.uids = 0
        self.told: dict[str, list[bytes]] = {"lazy": [], "eager": []}
        self.runner.run(self._begin(shape))

    async def _begin(self, shape: int) -> None:
        self.clock = Clock()
        self.store = Store(MemoryLog(), self.clock)
        await self.store.open()
        self.types = TypeRegistry(builtin_types())
        self._define(0)
        for key in KEYS[::2]:
            await self._write(key, 1)
        self._define(shape)  # what is there already is read by it
        feed = LocalFeed(self.store, self.types, custom=True)
        self.tasks = await Tasks(self.clock).__aenter__()
        self.informers = SharedInformers(None, self.clock, self.tasks, feed)  # type: ignore[arg-type]  # never asked
        self.eager, self.lazy = SharedInformer(BOATS), self.informers.informer(BOATS)
        assert feed.follow(BOATS, self.eager)
        for name, one in (("lazy", self.lazy), ("eager", self.eager)):
            one.add_index("value", values)
            self._listen(name, one)

    def _listen(self, name: str, one: SharedInformer) -> None:
        told = self.told[name]
        one.on_change(
            lambda old, new: told.append(
                b"->".join(b"none" if each is None else encode(each, 0) for each in (old, new))
            )
        )

    def _define(self, shape: int) -> None:
        self.types.add(resource_types(definition(self.store.revision, **SHAPES[shape])))

    async def _write(self, key: Key, value: Any) -> None:
        kind = self.types.find(BOATS)
        assert kind is not None
        path = kind.key(*key)
        entry = self.store.get(path)
        if entry is None:
            self.uids += 1
        owner = {"uid": f"o{self.uids % 3}", "controller": True, "kind": "Fleet", "name": "f", "apiVersion": "ex.io/v1"}
        metadata = {
            "name": key.name,
            "namespace": key.namespace,
            "uid": f"u{self.uids}" if entry is None else self.lazy_uid(key),
            "labels": {"l": str(self.uids % 2)},
            "ownerReferences": [owner],
            "managedFields": [{"manager": "m"}],
        }
        obj: Object = {"apiVersion": "ex.io/v1", "kind": "Boat", "metadata": metadata, "spec": {"value": value}}
        kind.strategy.prune(obj)
        kind.strategy.default(obj)
        await self.store.put(path, lambda revision: encode(obj, revision), None)

    def lazy_uid(self, key: Key) -> str:
        found = self.lazy.get(key)
        assert found is not None
        return str(found["metadata"]["uid"])

    @rule(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES))
    def write(self, key: Key, value: Any) -> None:
        self.runner.run(self._write(key, value))

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: Key) -> None:
        path = f"/registry/ex.io/boats/{key.namespace}/{key.name}"
        if self.store.get(path) is not None:
            self.runner.run(self.store.delete(path, None))

    @rule(shape=st.sampled_from(range(len(SHAPES))))
    def redefine(self, shape: int) -> None:
        self._define(shape)

    @rule(times=st.integers(1, 3))
    def sweep(self, times: int) -> None:
        for _ in range(times):
            self.runner.run(self.informers.rest())

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: Key) -> None:
        self._same([self.lazy.get(key)], [self.eager.get(key)])

    @rule(namespace=st.sampled_from([None, "x", "y", "z"]), label=st.sampled_from([None, "0"]))
    def scan(self, namespace: str | None, label: str | None) -> None:
        labels = None if label is None else {"l": label}
        self._same(self.lazy.objects(namespace, labels), self.eager.objects(namespace, labels))
        selector = {"matchLabels": labels or {}}
        self._same(self.lazy.select(namespace, selector), self.eager.select(namespace, selector))

    @rule(index=st.sampled_from(["value", "owner"]), data=st.data())
    def look_up(self, index: str, data: st.DataObject) -> None:
        choice = [*map(repr, VALUES), "red", "blue", "None"] if index == "value" else ["o0", "o1", "o2"]
        value = data.draw(st.sampled_from(choice))
        self._same(self.lazy.indexed(index, value), self.eager.indexed(index, value))

    @rule()
    def index_anew(self) -> None:
        for one in (self.lazy, self.eager):
            one.add_index("late", values)
        self._same(self.lazy.indexed("late", "red"), self.eager.indexed("late", "red"))

    @rule()
    def listen_anew(self) -> None:
        for name, one in (("lazy", self.lazy), ("eager", self.eager)):
            self._listen(name, one)

    def _same(self, lazy: Sequence[Object | None], eager: Sequence[Object | None]) -> None:
        assert [each and encode(each, 0) for each in lazy] == [each and encode(each, 0) for each in eager]
        assert [each and each["metadata"]["resourceVersion"] for each in lazy] == [
            each and each["metadata"]["resourceVersion"] for each in eager
        ]

    @invariant()
    def both_told_the_same(self) -> None:
        assert self.told["lazy"] == self.told["eager"]
        assert len(self.lazy) == len(self.eager)

    def teardown(self) -> None:
        async def end() -> None:
            await self.tasks.cancel()
            await self.store.close()

        self.runner.run(end())
        self.runner.close()


TestLazy = Lazy.TestCase
TestLazy.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
async def informers(world: World) -> SharedInformers:
    """Informers fed by the store; there are two hundred ConfigMaps."""
    for number in range(200):
        await world.create(CONFIG_MAPS, f"c{number}", "default", data={"n": str(number)})
    return SharedInformers(world.client, world.clock, world.context.tasks, world.feed)


@pytest.fixture
async def held(informers: SharedInformers) -> SharedInformer:
    """The informer of ConfigMaps."""
    return informers.informer(CONFIG_MAPS)


async def test_what_is_not_used_between_two_sweeps_is_let_go(informers: SharedInformers, held: SharedInformer) -> None:
    held.on_change(lambda old, new: None)
    assert await informers.rest() == 0  # just told of
    used = Key("default", "c7")
    assert held.get(used) is not None
    assert await informers.rest() == 199
    assert held.get(used) is not None
    assert (await informers.rest(), held.thaws) == (0, 0)
    assert (await informers.rest(), held.thaws) == (1, 0)


async def test_what_is_asked_for_is_decoded_once_and_kept_while_it_is_used(
    informers: SharedInformers, held: SharedInformer
) -> None:
    for _ in range(2):
        await informers.rest()
    key = Key("default", "c7")
    found = held.get(key)
    assert found is not None and found["data"] == {"n": "7"} and "managedFields" not in found["metadata"]
    assert held.get(key) is found and held.thaws == 1
    for _ in range(5):
        await informers.rest()
        assert held.get(key) == found
    assert held.thaws == 1
    assert len(held.objects("default")) == 200 and held.thaws == 200
    assert len(held.objects("default")) == 200 and held.thaws == 200
    assert [await informers.rest() for _ in range(8)] == [0] * SCANNED + [200, 0]


async def test_what_is_asked_for_during_a_sweep_stays(held: SharedInformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "SLICE", 50)
    steps = held.rest()
    first = next(steps)
    for number in range(200):
        held.get(Key("default", f"c{number}"))
    assert (first, sum(steps), held.thaws) == (50, 0, 50)


async def test_a_scan_keeps_warm_what_it_went_over_and_nothing_else(
    world: World, informers: SharedInformers, held: SharedInformer
) -> None:
    await world.create(CONFIG_MAPS, "elsewhere", "other", data={})
    held.on_change(lambda old, new: None)
    await informers.rest()
    held.objects("default")
    assert await informers.rest() == 1
    held.objects()
    assert held.thaws == 1
    assert await informers.rest() == 0


async def test_what_is_picked_by_its_labels_is_found_without_decoding_the_rest(
    world: World, informers: SharedInformers, held: SharedInformer
) -> None:
    for name in ("a", "b"):
        await world.create(CONFIG_MAPS, name, "default", labels={"app": name})
    for _ in range(2):
        await informers.rest()
    assert [one["metadata"]["name"] for one in held.objects("default", {"app": "a"})] == ["a"] and held.thaws == 1
    assert held.objects("other", {"app": "a"}) == [] and held.thaws == 1
    # who does it again goes over all of them often
    (one,) = held.select("default", {"matchLabels": {"app": "b"}})
    assert one["metadata"]["name"] == "b" and held.thaws == 202


async def test_a_frozen_object_costs_what_a_pointer_costs(
    world: World, informers: SharedInformers, held: SharedInformer
) -> None:
    for _ in range(2):
        await informers.rest()
    kept = held._held._kept[Key("default", "c7")]
    entry = world.feed._store.get("/registry/core/configmaps/default/c7")
    assert entry is not None and kept is entry.value


async def test_a_change_of_a_frozen_object_tells_the_state_before(
    world: World, informers: SharedInformers, held: SharedInformer
) -> None:
    told: list[tuple[Object | None, Object | None]] = []
    held.on_change(lambda old, new: told.append((old, new)))
    for _ in range(3):
        await informers.rest()
    told.clear()
    before = copy(held.get(Key("default", "c1")))
    for _ in range(3):
        await informers.rest()
    await world.client.patch(CONFIG_MAPS, "c1", {"data": {"n": "x"}}, "default")
    await world.client.delete(CONFIG_MAPS, "c1", "default")
    (old, new), (last, gone) = told
    assert old == before and new is not None and new["data"] == {"n": "x"}
    assert last is not None and last["data"] == {"n": "x"} and gone is None


async def test_sweeps_go_by_the_clock_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform's may stand still."""
    monkeypatch.setattr(informer, "SWEEP", 0.01)
    clock = Clock()
    clock.freeze()
    store = Store(MemoryLog(), clock)
    await store.open()
    types = TypeRegistry(builtin_types())
    kind = types.find(CONFIG_MAPS)
    assert kind is not None
    value = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "x", "uid": "u"}}
    await store.put(kind.key("x", "a"), lambda revision: encode(value, revision), 0)
    async with Tasks(clock) as tasks:
        held = SharedInformers(None, clock, tasks, LocalFeed(store, types)).informer(CONFIG_MAPS)  # type: ignore[arg-type]
        for _ in range(2000):
            if type(held._held._kept[Key("x", "a")]) is bytes:
                break
            await asyncio.sleep(0.005)
        assert type(held._held._kept[Key("x", "a")]) is bytes
        await tasks.cancel()
    await store.close()


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("vw"), st.sampled_from(KEYS[:3])), max_size=30))
def test_an_index_remembers_the_keys_of_a_value_in_the_order_of_their_coming(
    steps: list[tuple[bool, str, Key]],
) -> None:
    index = KeysByValue()
    model: dict[str, dict[Key, None]] = {"v": {}, "w": {}}
    for add, value, key in steps:
        if add:
            index.add(value, key)
            model[value][key] = None
        else:
            index.discard(value, key)
            model[value].pop(key, None)
        assert {each: list(index.of(each)) for each in model} == {each: list(keys) for each, keys in model.items()}
