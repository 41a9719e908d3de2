"""The controller base, events, election, and the small built-in controllers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import ControlContext, Controller, EventRecorder, For, Owns, SharedInformers, Source, Watches
from sampan.kube.control.cluster_roles import ClusterRoleAggregation
from sampan.kube.control.election import Election, LeadershipLostError
from sampan.kube.control.events import RETRY_AFTER, SIMILAR_WINDOW, STEP, TRIES, WAITING
from sampan.kube.control.quota import QuotaController
from sampan.kube.control.ttl import RETRY, ROUND, TTL, EventExpiry
from sampan.kube.objects import Key, Object, Resource
from sampan.kube.resources import CLUSTER_ROLES, CONFIG_MAPS, EVENTS, LEASES, NAMESPACES, PODS, RESOURCE_QUOTAS, SECRETS
from sampan.kube.status import ApiError, conflict, unavailable
from sampan.kube.store.interface import FullError
from tests.unit.kube_control.cluster import Cluster, settle
from tests.unit.kube_control.conftest import World

POD = {"containers": [{"name": "c", "image": "nginx", "resources": {"requests": {"cpu": "250m"}}}]}


class Recording(Controller):
    """Notes what it is asked to reconcile; ``outcomes`` are raised or returned in turn."""

    name = "recording"

    def __init__(self, context: ControlContext, sources: list[Source]) -> None:
        super().__init__(context)
        self.asked: list[Key] = []
        self.outcomes: list[Exception | float] = []
        self._sources = sources

    def sources(self) -> list[Source]:
        return self._sources

    async def reconcile(self, key: Key) -> float | None:
        self.asked.append(key)
        if not self.outcomes:
            return None
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def config_map(name: str, owner: str = "", kind: str = "ReplicaSet") -> Object:
    obj: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}
    if owner:
        reference = {"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": owner, "controller": True}
        obj["metadata"]["ownerReferences"] = [reference]
    return obj


async def running(sources: list[Source], clock: Clock, tasks: Tasks) -> tuple[Cluster, Recording, CollectorRegistry]:
    cluster = await Cluster.started(clock)
    registry = CollectorRegistry()
    context = ControlContext(cluster, SharedInformers(cluster, clock, tasks), clock, tasks, registry)
    controller = Recording(context, sources)
    await controller.start()
    return cluster, controller, registry


async def test_sources_give_the_keys_to_reconcile() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        sources: list[Source] = [
            For(SECRETS),
            Owns(CONFIG_MAPS, "ReplicaSet"),
            Owns(PODS, "Node", namespaced=False),
            Watches(PODS, lambda obj: [Key("watched", obj["metadata"]["name"])]),
        ]
        cluster, controller, _ = await running(sources, clock, tasks)
        await cluster.create(SECRETS, config_map("self"))
        await cluster.create(CONFIG_MAPS, config_map("owned", "rs"))
        await cluster.create(CONFIG_MAPS, config_map("foreign", "x", "Job"))
        await cluster.create(PODS, config_map("pod", "node", "Node"))
        await settle()
        assert sorted(controller.asked) == [
            Key("", "node"),
            Key("default", "rs"),
            Key("default", "self"),
            Key("watched", "pod"),
        ]


async def test_failures_are_retried_later_conflicts_at_once_and_delays_kept() -> None:
    clock = Clock()
    clock.freeze()
    async with Tasks(clock) as tasks:
        cluster, controller, registry = await running([For(SECRETS)], clock, tasks)
        controller.outcomes = [conflict(SECRETS, "a"), RuntimeError("broken"), unavailable("down"), 30.0]
        await cluster.create(SECRETS, config_map("a"))
        await settle()
        assert len(controller.asked) == 2, "the conflict was retried at once, the failure was not"
        for jump, calls in ((0.01, 3), (0.02, 4), (29.0, 4), (1.0, 5), (1000.0, 5)):
            clock.jump(jump)
            await asyncio.sleep(0.002)
            await settle()
            assert len(controller.asked) == calls
        for result, count in (("success", 1), ("error", 2), ("requeue", 1), ("requeue_after", 1)):
            labels = {"controller": "recording", "result": result}
            assert registry.get_sample_value("controller_runtime_reconcile_total", labels) == count
        assert registry.get_sample_value("controller_runtime_reconcile_errors_total", {"controller": "recording"}) == 2


# -- events


async def recorder(cluster: Cluster, tasks: Tasks) -> EventRecorder:
    return EventRecorder(cluster, cluster.clock, tasks, "test")


def about(name: str = "web") -> Object:
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "7"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


async def events(cluster: Cluster) -> list[Object]:
    """What is there once the moment has come at which events are written."""
    await settle()
    cluster.clock.jump(2 * STEP)
    await settle()
    return (await cluster.list(EVENTS)).items


async def test_an_event_has_the_fields_describe_shows() -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    async with Tasks(clock) as tasks:
        (await recorder(cluster, tasks)).event(
            about(), "Warning", "BackOff", "Back-off restarting", action="Restarting"
        )
        now = clock.time_ns()
        assert not (await cluster.list(EVENTS)).items
        (event,) = await events(cluster)
    name, _, stamp = event["metadata"]["name"].partition(".")
    assert name == "web" and 0 <= int(stamp, 16) - now < 2**20
    assert event["involvedObject"]["uid"] == "uid-web" and event["source"] == {"component": "test"}
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "BackOff", 1)
    assert event["firstTimestamp"] == event["lastTimestamp"] and event["action"] == "Restarting"


async def test_repeats_are_counted_on_one_event() -> None:
    clock = Clock()
    cluster = await Cluster.started(clock)
    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        for _ in range(3):
            source.event(about(), "Normal", "Pulled", "pulled")
            clock.jump(5)
        (event,) = await events(cluster)
    assert event["count"] == 3 and event["lastTimestamp"] > event["firstTimestamp"]


async def test_what_is_counted_up_while_it_waits_is_written_once_and_all_at_the_same_moment() -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)

    def written() -> list[str]:
        return [verb for verb, plural in cluster.requests if plural == "events" and verb != "list"]

    async with Tasks(clock) as tasks:
        source, other = await recorder(cluster, tasks), await recorder(cluster, tasks)
        source.event(about(), "Normal", "Pulled", "pulled")
        clock.jump(STEP * 0.4)
        source.event(about(), "Normal", "Pulled", "pulled")
        other.event(about("b"), "Normal", "Pulled", "pulled")
        await settle()
        assert written() == []
        found = await events(cluster)
        assert sorted(event["count"] for event in found) == [1, 2]
        assert written() == ["create", "create"]


async def test_a_platform_that_stands_still_says_what_happens() -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    async with Tasks(clock) as tasks:
        (await recorder(cluster, tasks)).event(about(), "Normal", "Pulled", "pulled")
        async with asyncio.timeout(30):
            while not (await cluster.list(EVENTS)).items:
                await asyncio.sleep(0.01)


async def test_what_waits_when_a_component_ends_is_written_first() -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    began = asyncio.Event()

    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        for number in range(5):
            source.event(about(f"p{number}"), "Normal", "Killing", "stopping")
        await settle()
        assert not (await cluster.list(EVENTS)).items
    assert len((await cluster.list(EVENTS)).items) == 5
    assert not source.dropped

    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        source.event(about("late"), "Normal", "Killing", "stopping")
        await settle()

        def fault(verb: str, resource: Resource) -> None:
            if verb == "create":
                began.set()
                raise unavailable("down")

        cluster.fault = fault
        clock.jump(2 * STEP)
        await began.wait()
        await settle()
        cluster.fault = lambda verb, resource: None
    assert len((await cluster.list(EVENTS)).items) == 6, "it was being tried again"


async def test_a_counted_event_that_was_deleted_is_made_again() -> None:
    cluster = await Cluster.started()
    async with Tasks(cluster.clock) as tasks:
        source = await recorder(cluster, tasks)
        source.event(about(), "Normal", "Pulled", "pulled")
        (event,) = await events(cluster)
        await cluster.delete(EVENTS, event["metadata"]["name"], "default")
        source.event(about(), "Normal", "Pulled", "pulled")
        (event,) = await events(cluster)
    assert event["count"] == 2


async def test_ten_similar_events_are_combined_and_a_flood_is_dropped() -> None:
    cluster = await Cluster.started()
    async with Tasks(cluster.clock) as tasks:
        source = await recorder(cluster, tasks)
        for number in range(40):
            source.event(about(), "Warning", "Failed", f"attempt {number}")
        source.event(about("other"), "Normal", "Fine", "is another object")
        written = await events(cluster)
    combined = [e for e in written if e["message"].startswith("(combined from similar events): ")]
    assert len(written) == 9 + 1 + 1 and len(combined) == 1
    assert combined[0]["count"] == 25 - 9 and source.dropped == 15


async def test_an_event_waits_for_a_server_but_not_for_a_refusal() -> None:
    clock = Clock()
    cluster = await Cluster.started(clock)
    failures: list[ApiError] = [unavailable("down"), unavailable("down")]

    def fault(verb: str, resource: Resource) -> None:
        if resource == EVENTS and verb == "create" and failures:
            raise failures.pop()

    cluster.fault = fault
    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        with autojump(clock):
            source.event(about(), "Normal", "A", "a")
            await clock.sleep(60)
            assert len(await events(cluster)) == 1
            failures.append(ApiError(403, "Forbidden", "no"))
            source.event(about(), "Normal", "B", "b")
            await clock.sleep(60)
        assert len(await events(cluster)) == 1 and source.dropped == 1


async def test_an_event_that_finds_no_server_holds_up_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # else its second try may be due by the machine's clock, which nobody steers, before the second event is there
    monkeypatch.setattr("sampan.kube.control.events.random", SimpleNamespace(random=lambda: 1.0))
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    tried: list[object] = []

    def refuse_first(event: Mapping[str, object]) -> None:
        tried.append(event["involvedObject"]["name"])  # type: ignore[index]
        if tried[-1] == "first" and len(tried) < 4:
            raise unavailable("down")

    cluster.refusal = refuse_first
    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        source.event(about("first"), "Normal", "A", "a")
        assert await events(cluster) == []
        source.event(about("second"), "Normal", "A", "a")
        (event,) = await events(cluster)
        assert event["involvedObject"]["name"] == "second" and tried[:2] == ["first", "second"]
        source.event(about("first"), "Normal", "A", "a")
        await events(cluster)
        assert tried == ["first", "second", "first"], "the newer count takes the older one's place at once"
        clock.jump(RETRY_AFTER)
        first, _ = sorted(await events(cluster), key=lambda event: event["metadata"]["name"])
        assert first["count"] == 2 and source.dropped == 0


async def test_an_event_is_tried_so_often_and_the_loss_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    tried = 0

    def down(event: Mapping[str, object]) -> None:
        nonlocal tried
        tried += 1
        raise unavailable("down")

    cluster.refusal = down
    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        source.event(about(), "Normal", "A", "a")
        for _ in range(TRIES + 2):
            clock.jump(RETRY_AFTER)
            await events(cluster)
        assert tried == TRIES and source.dropped == 1
        for number in range(WAITING + 7):
            source.event(about(f"p{number}"), "Normal", "A", "a")
        await settle()
        assert source.dropped == 1 + 7
        assert len([record for record in caplog.records if "dropped" in record.message]) == 1
        cluster.refusal = lambda event: None


async def test_a_recorder_on_a_clock_that_stands_still_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampan.kube.control.events.RETRY_AFTER", 0.01)
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    failures = [unavailable("down"), unavailable("down")]

    def fault(event: Mapping[str, object]) -> None:
        if failures:
            raise failures.pop()

    cluster.refusal = fault
    async with Tasks(clock) as tasks:
        (await recorder(cluster, tasks)).event(about(), "Normal", "Pulled", "pulled")
        async with asyncio.timeout(30):
            while not (await cluster.list(EVENTS)).items:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("failure", [unavailable("down"), FullError("no space left on device")], ids=["server", "disk"])
async def test_what_expires_together_is_deleted_together(world: World, failure: Exception) -> None:
    clock = world.clock
    clock.freeze()
    await world.create(NAMESPACES, "default")
    expiry = EventExpiry(world.context)
    await expiry.start()
    for index in range(150):
        await world.client.create(EVENTS, {"metadata": {"name": f"e{index}", "namespace": "default"}, "reason": "A"})
    seen: list[str] = []
    under_way = most = 0
    delete = world.client.delete

    async def counted(*given: object, **options: object) -> Object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        try:
            if given[1] == "e7" and not clock_passed:
                raise failure
            return await delete(*given, **options)  # type: ignore[arg-type]
        finally:
            under_way -= 1

    clock_passed: list[bool] = []
    world.client.delete = counted  # type: ignore[method-assign]

    async def left() -> list[str]:
        return [event["metadata"]["name"] for event in (await world.client.list(EVENTS)).items]

    async with world.client.watch(EVENTS, revision=(await world.client.list(EVENTS)).revision) as changes:
        clock.jump(TTL)
        await world.until(lambda: _is(left, ["e7"]))
        assert ROUND / 2 < most <= ROUND
        clock_passed.append(True)
        clock.jump(RETRY)
        await world.until(lambda: _is(left, []))
        async for change in changes:
            if change.type == "DELETED":
                seen.append(change.object["metadata"]["name"])
            if len(seen) == 150:
                break
    assert sorted(seen) == sorted(f"e{index}" for index in range(150))


async def _is(value: Callable[[], Awaitable[object]], wanted: object) -> bool:
    return await value() == wanted


async def test_events_expire_an_hour_after_their_last_write(world: World) -> None:
    clock = world.clock
    await world.create(NAMESPACES, "default")
    await EventExpiry(world.context).start()
    source = EventRecorder(world.client, clock, world.context.tasks, "test")
    source.event(about("a"), "Normal", "A", "a")
    source.event(about("b"), "Normal", "B", "b")
    await world.settle()
    clock.jump(1)
    await world.settle()
    clock.jump(3000)
    source.event(about("b"), "Normal", "B", "b")
    await world.settle()
    clock.jump(1)
    await world.settle()
    clock.jump(700)
    await world.settle()
    assert [event["reason"] for event in (await world.client.list(EVENTS)).items] == ["B"]
    clock.jump(3000)
    await world.settle()
    assert (await world.client.list(EVENTS)).items == []


# -- election


def candidate(cluster: Cluster, identity: str) -> Election:
    return Election(cluster, cluster.clock, "kube-system", "boat", identity)


async def test_one_leads_until_it_is_done_then_the_other() -> None:
    clock = Clock()
    cluster = await Cluster.started(clock)
    log: list[str] = []

    async def lead(identity: str) -> None:
        election = candidate(cluster, identity)

        async def work() -> None:
            log.append(f"{identity} begins")
            await clock.sleep(60)
            log.append(f"{identity} ends")

        await election.run(work)

    with autojump(clock):
        async with Tasks(clock) as tasks:
            tasks.start("a", lead("a"))
            await clock.sleep(1)
            tasks.start("b", lead("b"))
            await tasks.wait()
    assert log == ["a begins", "a ends", "b begins", "b ends"]
    lease = (await cluster.get(LEASES, "boat", "kube-system"))["spec"]
    assert lease["holderIdentity"] == "" and lease["leaseTransitions"] >= 1


async def test_a_leader_that_cannot_renew_stops_before_another_begins() -> None:
    clock = Clock()
    cluster = await Cluster.started(clock)
    log: list[tuple[str, float]] = []
    cut_off: set[str] = set()

    class Cut(Cluster):
        async def update(self, resource: Resource, obj: Object, **options: object) -> Object:  # type: ignore[override]
            if obj["spec"]["holderIdentity"] in cut_off:
                raise unavailable("cut off")
            return await super().update(resource, obj, **options)  # type: ignore[arg-type]

    shared = Cut(cluster.store, clock)

    async def lead(identity: str) -> None:
        async def work() -> None:
            log.append((f"{identity} begins", clock.monotonic()))
            try:
                await clock.sleep(100)
            finally:
                log.append((f"{identity} ends", clock.monotonic()))

        try:
            await candidate(shared, identity).run(work)
        except LeadershipLostError:
            log.append((f"{identity} lost", clock.monotonic()))

    with autojump(clock):
        async with Tasks(clock) as tasks:
            tasks.start("a", lead("a"))
            await clock.sleep(5)
            tasks.start("b", lead("b"))
            await clock.sleep(20)
            cut_off |= {"a", ""}
            await clock.sleep(40)
    names = [name for name, _ in log]
    assert names[:4] == ["a begins", "a ends", "a lost", "b begins"]
    assert 3.0 < log[3][1] - log[1][1] < 10.0


async def test_an_election_runs_on_a_real_api(world: World) -> None:
    await world.create(NAMESPACES, "kube-system")
    seen: list[Object] = []

    async def work() -> None:
        seen.append(await world.client.get(LEASES, "boat", "kube-system"))

    for identity in ("a", "b"):
        await Election(world.client, world.clock, "kube-system", "boat", identity).run(work)
    assert [lease["spec"]["holderIdentity"] for lease in seen] == ["a", "b"]
    assert (seen[1]["spec"]["leaseDurationSeconds"], seen[1]["spec"]["leaseTransitions"]) == (15, 1)


def test_an_election_refuses_impossible_times() -> None:
    with pytest.raises(ValueError):
        Election(None, Clock(), "n", "x", "i", lease_duration=5, renew_deadline=10)  # type: ignore[arg-type]


# -- quota, roles


async def test_a_quotas_status_follows_what_it_counts(world: World) -> None:
    await world.create(NAMESPACES, "default")
    await QuotaController(world.context, world.types).start()
    hard = {"pods": "2", "requests.cpu": "1", "count/deployments.apps": "3"}
    await world.create(RESOURCE_QUOTAS, "q", "default", spec={"hard": hard})
    await world.create(PODS, "a", "default", spec=POD)

    def used(expected: dict[str, str]) -> object:
        async def holds() -> bool:
            status = (await world.client.get(RESOURCE_QUOTAS, "q", "default")).get("status") or {}
            return status == {"hard": hard, "used": expected}

        return holds

    await world.until(used({"pods": "1", "requests.cpu": "250m", "count/deployments.apps": "0"}))  # type: ignore[arg-type]
    await world.client.delete(PODS, "a", "default", grace_period=0)
    await world.until(used({"pods": "0", "requests.cpu": "0", "count/deployments.apps": "0"}))  # type: ignore[arg-type]


async def test_aggregated_roles_have_the_rules_of_those_they_select(world: World) -> None:
    def rule(resource: str) -> Object:
        return {"apiGroups": [""], "resources": [resource], "verbs": ["get"]}

    await ClusterRoleAggregation(world.context).start()
    selector = {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}
    await world.create(CLUSTER_ROLES, "all", aggregationRule=selector, rules=[rule("forged")])
    await world.create(CLUSTER_ROLES, "b", labels={"to": "all"}, rules=[rule("pods"), rule("nodes")])
    await world.create(CLUSTER_ROLES, "a", labels={"to": "all"}, rules=[rule("pods")])
    await world.create(CLUSTER_ROLES, "c", rules=[rule("secrets")])

    def rules(*resources: str) -> object:
        async def holds() -> bool:
            return (await world.client.get(CLUSTER_ROLES, "all")).get("rules") == [rule(each) for each in resources]

        return holds

    await world.until(rules("pods", "nodes"))  # type: ignore[arg-type]
    await world.client.delete(CLUSTER_ROLES, "b")
    await world.until(rules("pods"))  # type: ignore[arg-type]


async def test_what_no_longer_makes_a_difference_is_forgotten_and_counting_goes_on_for_an_hour() -> None:
    clock = Clock()
    clock.freeze()
    cluster = await Cluster.started(clock)
    async with Tasks(clock) as tasks:
        source = await recorder(cluster, tasks)
        for number in range(300):
            source.event(about(f"p{number}"), "Normal", "Pulled", "pulled")
        for number in range(20):
            source.event(about("p7"), "Warning", "Failed", f"attempt {number}")
        await events(cluster)
        clock.jump(2 * SIMILAR_WINDOW)
        await settle()
        assert (len(source._similar), len(source._buckets), len(source._counted)) == (0, 1, 300 + 10)
        source.event(about("p8"), "Normal", "Pulled", "pulled")
        counts = [each["count"] for each in await events(cluster) if each["involvedObject"]["name"] == "p8"]
        assert counts == [2]
        for _ in range(30):
            clock.jump(SIMILAR_WINDOW)
            await settle()
        assert not (source._similar or source._buckets or source._counted)
        assert source._forgetting is None
        source.event(about("p8"), "Normal", "Pulled", "pulled")
        counts = [each["count"] for each in await events(cluster) if each["involvedObject"]["name"] == "p8"]
        assert counts == [2, 1]
