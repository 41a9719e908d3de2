"""Rolling updates by value: the arithmetic, and a whole rollout as a state machine under any weather."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kube.objects import Object
from sampan.parts.workloads import ordinals, pods, rollout
from sampan.parts.workloads.rollout import Scale


def deployment(replicas: int, surge: int | str = "25%", unavailable: int | str = "25%") -> Object:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {
        "metadata": {"name": "d"},
        "spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}},
    }


def replica_set(name: str, replicas: int, available: int, created: str = "") -> Object:
    return {
        "metadata": {"name": name, "uid": name, "creationTimestamp": created or name, "annotations": {}},
        "spec": {"replicas": replicas},
        "status": {"availableReplicas": available, "replicas": replicas},
    }


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (4, 0, 0, (0, 1)),
        (3, "0%", "10%", (0, 1)),
        (2, 0, 5, (0, 2)),
        (0, "25%", "25%", (0, 1)),
    ],
)
def test_bounds(replicas: int, surge: int | str, unavailable: int | str, expected: tuple[int, int]) -> None:
    assert rollout.bounds(deployment(replicas, surge, unavailable)) == expected


def test_unavailable_old_pods_go_first() -> None:
    sick, well = replica_set("a-sick", 4, 0), replica_set("b-well", 6, 6)
    new = replica_set("new", 3, 0)
    steps = rollout.scale_old(deployment(10), new, [well, sick])
    assert {step.replica_set["metadata"]["name"]: step.replicas for step in steps} == {"a-sick": 2}


def test_a_set_that_was_just_scaled_down_is_not_counted_as_it_was() -> None:
    old, new = replica_set("old", 8, 10), replica_set("new", 5, 2)
    (step,) = rollout.scale_old(deployment(10), new, [old])
    assert step.replicas == 6  # with the two new ones that makes the eight there have to be


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.integers(1, 12),
    surge=st.integers(0, 5),
    unavailable=st.integers(0, 5),
    luck=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12),
)
def test_a_rollout_keeps_its_bounds_and_ends(
    wanted: int, surge: int, unavailable: int, luck: list[tuple[int, bool]]
) -> None:
    """Pods become available when they please; once they all do, the rollout completes."""
    plan = deployment(wanted, surge, unavailable)
    limits = rollout.bounds(plan)
    old, new = replica_set("a", wanted, wanted), replica_set("b", 0, 0)
    weather = iter([*luck, *[(99, True)] * 100])
    for _ in range(100):
        for step in rollout.scale_new(plan, new, [old]) or rollout.scale_old(plan, new, [old]):
            target = step.replica_set
            target["spec"]["replicas"] = step.replicas
            target["status"]["availableReplicas"] = min(target["status"]["availableReplicas"], step.replicas)
        assert old["spec"]["replicas"] + new["spec"]["replicas"] <= wanted + limits.surge
        serving = old["status"]["availableReplicas"] + new["status"]["availableReplicas"]
        assert serving >= wanted - limits.unavailable
        arriving, moves = next(weather)
        if moves:
            new["status"]["availableReplicas"] = min(
                new["spec"]["replicas"], new["status"]["availableReplicas"] + arriving
            )
    assert (old["spec"]["replicas"], new["spec"]["replicas"]) == (0, wanted)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    wanted=st.integers(0, 40),
)
def test_proportional_scaling_shares_out_exactly_what_is_allowed(sizes: list[int], wanted: int) -> None:
    before = sum(sizes)
    plan = deployment(wanted, 3, 2)
    sets = [replica_set(f"rs{n}", size, size) for n, size in enumerate(sizes)]
    for one in sets:
        one["metadata"]["annotations"] = {rollout.DESIRED: str(before), rollout.MAXIMUM: str(before)}
    new, old = sets[-1], sets[:-1]
    steps = rollout.scale_proportionally(plan, new, old)
    allowed = wanted + 3 if wanted else 0
    assert all(step.replicas >= 0 for step in steps)
    assert sum(step.replicas for step in steps) == allowed


def test_a_lone_set_takes_the_whole_change() -> None:
    only = replica_set("a", 3, 3)
    assert rollout.scale_proportionally(deployment(7), only, []) == [Scale(only, 7)]


# -- stateful sets


def stateful_set(replicas: int, policy: str, partition: int) -> Object:
    update = {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}
    return {
        "metadata": {"name": "s"},
        "spec": {"replicas": replicas, "podManagementPolicy": policy, "updateStrategy": update},
    }


def pod(ordinal: int, revision: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"s-{ordinal}",
            "uid": f"{ordinal}/{revision}",
            "labels": {"controller-revision-hash": revision},
        },
        "status": {"phase": "Pending"},
    }


def become(one: Object, *, ready: bool) -> None:
    one["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}


@settings(max_examples=80, deadline=None)
@given(
    policy=st.sampled_from(["OrderedReady", "Parallel"]),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    partition=st.integers(0, 5),
    weather=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["ready", "fail", "gone"])), max_size=25),
)
def test_a_stateful_set_gets_where_it_should_whatever_its_pods_do(
    policy: str, before: int, after: int, partition: int, weather: list[tuple[int, str]]
) -> None:
    target = stateful_set(after, policy, partition)
    world: dict[int, Object] = {}
    for number in range(before):
        world[number] = pod(number, "s-old")
        become(world[number], ready=True)
    calm = [(number, "settle") for number in range(5)] * 40
    for ordinal, event in [*weather, *calm]:
        step = ordinals.next_step(target, world, "s-old", "s-new", {})
        if policy == "OrderedReady":
            assert len(step.create) <= 1
        for made, revision in step.create:
            assert made not in world, "an identity is held once"
            world[made] = pod(made, revision)
        for doomed in step.delete:
            doomed["metadata"]["deletionTimestamp"] = "now"
        one = world.get(ordinal)
        if event == "settle":  # what is asked for happens
            for number, each in list(world.items()):
                if pods.is_terminating(each):
                    del world[number]
                elif pods.phase(each) in ("Pending", "Running"):
                    become(each, ready=True)
        elif one is not None and event == "gone":
            del world[ordinal]
        elif one is not None and not pods.is_terminating(one):
            if event == "fail":
                one["status"] = {"phase": "Failed"}
            elif pods.phase(one) != "Failed":
                become(one, ready=True)
    assert sorted(world) == list(range(after))
    for number, each in world.items():
        expected = {"s-new"} if number >= partition else {"s-old"}
        assert each["metadata"]["labels"]["controller-revision-hash"] in expected
