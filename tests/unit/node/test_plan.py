"""The agent's decisions and the statuses they show, by value."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kube.types.qos import qos_class
from sampan.parts.node.agent.plan import Decision, End, Finish, Kill, SetUp, Start, TearDown, completed, crashed, plan
from sampan.parts.node.agent.state import ContainerState, Ended, PodState, container_hash, next_delay, roles
from sampan.parts.node.agent.status import phase, pod_status

NOW, WALL = 1000.0, 1_700_000_000.0


def pod(*names: str, init: tuple[str, ...] = (), sidecars: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    containers = [{"name": name, "image": "i"} for name in names or ("c",)]
    inits = [{"name": name, "image": "i", "restartPolicy": "Always"} for name in sidecars]
    inits += [{"name": name, "image": "i"} for name in init]
    metadata = {"name": "p", "namespace": "default", "uid": "u", "generation": 1}
    return {"metadata": metadata, "spec": {"containers": containers, "initContainers": inits, **spec}}


def state(of: dict[str, Any], sandbox: bool = True) -> PodState:
    made = PodState(sandbox=sandbox, started=WALL, address="10.244.0.5")
    for spec, role in roles(of):
        made.containers[spec["name"]] = ContainerState(spec["name"], role, hash=container_hash(spec))
    return made


def run(container: ContainerState, ready: bool = True) -> None:
    container.running, container.id, container.started = True, "id", WALL
    container.started_up = container.ready = ready


def end(container: ContainerState, code: int = 0, ran: float = 1.0) -> None:
    container.running = container.ready = container.started_up = False
    container.id = "id"
    container.ended = Ended(code, WALL, WALL - ran, reason="Completed" if code == 0 else "Error")


def decide(of: dict[str, Any], seen: PodState, now: float = NOW) -> Decision:
    return plan(of, seen, now, WALL + now - NOW)


def test_a_new_pod_gets_its_sandbox_first() -> None:
    p = pod()
    s = state(p, sandbox=False)
    assert decide(p, s).actions == [SetUp()]
    s.sandbox_busy = True
    assert decide(p, s).actions == []
    s.sandbox_busy, s.sandbox_retry_at = False, NOW + 3
    waiting = decide(p, s)
    assert (waiting.actions, waiting.look_again_at) == ([], NOW + 3)


def test_init_containers_run_one_after_the_other_before_the_others() -> None:
    p = pod("a", "b", init=("i", "j"))
    s = state(p)
    assert decide(p, s).actions == [Start("i")]
    run(s.containers["i"])
    assert decide(p, s).actions == []
    end(s.containers["i"])
    assert decide(p, s).actions == [Start("j")]
    end(s.containers["j"])
    assert decide(p, s).actions == [Start("a"), Start("b")]
    assert s.initialized


def test_a_failed_init_container_is_retried_or_fails_the_pod() -> None:
    p = pod(init=("i",), restartPolicy="Always")
    s = state(p)
    end(s.containers["i"], 1)
    assert decide(p, s).actions == [Start("i")]
    never = pod(init=("i",), restartPolicy="Never")
    s = state(never)
    end(s.containers["i"], 1)
    assert decide(never, s).actions == [TearDown()]
    assert phase(never, s) == "Failed"


def test_sidecars_start_in_order_once_the_one_before_has_started_and_do_not_hold_the_pod_back() -> None:
    p = pod("c", sidecars=("s", "t"), restartPolicy="Never")
    s = state(p)
    assert decide(p, s).actions == [Start("s")]
    run(s.containers["s"], ready=False)
    assert decide(p, s).actions == []
    s.containers["s"].started_up = True
    assert decide(p, s).actions == [Start("t")]
    run(s.containers["t"])
    assert decide(p, s).actions == [Start("c")]
    end(s.containers["c"])
    assert completed(p, s) == "Succeeded"
    s.finished = "Succeeded"
    assert decide(p, s).actions == [Kill("t", 30.0, "Killing", "Stopping container t")]
    end(s.containers["t"], 143)
    assert [action.container for action in decide(p, s).actions if isinstance(action, Kill)] == ["s"]
    end(s.containers["s"], 143)
    assert decide(p, s).actions == [TearDown()]


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_the_restart_policy_decides(policy: str, code: int, again: bool) -> None:
    p = pod(restartPolicy=policy)
    s = state(p)
    s.initialized = True
    end(s.containers["c"], code)
    assert decide(p, s).actions == ([Start("c")] if again else [])
    assert completed(p, s) == ("" if again else "Succeeded" if code == 0 else "Failed")


def test_crashes_are_restarted_at_once_then_after_ten_twenty_and_at_most_three_hundred_seconds() -> None:
    container = ContainerState("c", "main")
    waits = []
    for _ in range(8):
        end(container, 1)
        crashed(container, NOW)
        waits.append(container.retry_at - NOW)
        container.delay = next_delay(container.delay)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    end(container, 1, ran=601)
    crashed(container, NOW)
    assert container.retry_at == NOW


def test_a_backoff_is_waited_for_and_shown() -> None:
    p = pod()
    s = state(p)
    s.initialized = True
    end(s.containers["c"], 1)
    s.containers["c"].delay, s.containers["c"].retry_at = 20.0, NOW + 20
    waiting = decide(p, s)
    assert (waiting.actions, waiting.look_again_at) == ([], NOW + 20)
    status = pod_status(p, s, NOW, WALL, "127.0.0.1")["containerStatuses"][0]
    assert status["state"]["waiting"] == {
        "reason": "CrashLoopBackOff",
        "message": "back-off 20s restarting failed container=c pod=p_default(u)",
    }
    assert status["lastState"]["terminated"]["exitCode"] == 1


def test_a_deleted_pod_is_ended_cleared_away_and_only_then_removed() -> None:
    p = pod("a", "b")
    p["metadata"]["deletionTimestamp"] = "now"
    p["metadata"]["deletionGracePeriodSeconds"] = 7
    s = state(p)
    for container in s.containers.values():
        run(container)
    assert [(a.container, a.grace) for a in decide(p, s).actions if isinstance(a, Kill)] == [("a", 7.0), ("b", 7.0)]
    for container in s.containers.values():
        container.busy = "killing"
    assert decide(p, s).actions == []
    for container in s.containers.values():
        container.busy = ""
        end(container, 143)
    assert decide(p, s).actions == [TearDown()]
    s.sandbox, s.removed = False, True
    assert decide(p, s).actions == [Finish()]


def test_a_changed_image_replaces_the_running_container_only() -> None:
    p = pod("a", "b")
    s = state(p)
    for container in s.containers.values():
        run(container)
    p["spec"]["containers"][1]["image"] = "other"
    (kill,) = decide(p, s).actions
    assert kill == Kill("b", 30.0, "Killing", "Container b definition changed, will be restarted")


def test_a_deadline_ends_the_pod() -> None:
    p = pod(activeDeadlineSeconds=60)
    s = state(p)
    run(s.containers["c"])
    assert decide(p, s, NOW + 59).look_again_at == NOW + 60
    (action,) = decide(p, s, NOW + 60).actions
    assert isinstance(action, End)
    assert action.reason == "DeadlineExceeded"


def test_statuses_of_a_starting_running_and_completed_pod() -> None:
    p = pod(restartPolicy="Never")
    s = state(p)
    status = pod_status(p, s, NOW, WALL, "127.0.0.1")
    assert status["phase"] == "Pending"
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    decide(p, s)
    run(s.containers["c"])
    status = pod_status(p, s, NOW, WALL, "127.0.0.1")
    assert status["phase"] == "Running"
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"
    p["status"] = status
    s.containers["c"].ready = False
    later = pod_status(p, s, NOW, WALL + 100, "127.0.0.1")
    moved = {c["type"]: c["lastTransitionTime"] for c in later["conditions"]}
    before = {c["type"]: c["lastTransitionTime"] for c in status["conditions"]}
    assert moved["Ready"] != before["Ready"]
    assert moved["Initialized"] == before["Initialized"]
    ready = next(c for c in later["conditions"] if c["type"] == "Ready")
    assert (ready["reason"], ready["message"]) == ("ContainersNotReady", "containers with unready status: [c]")
    end(s.containers["c"])
    done = pod_status(p, s, NOW, WALL, "127.0.0.1")
    assert done["phase"] == "Succeeded"
    assert done["containerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"
    assert next(c for c in done["conditions"] if c["type"] == "Ready")["reason"] == "PodCompleted"


def test_readiness_gates_hold_ready_back() -> None:
    p = pod(readinessGates=[{"conditionType": "example.com/gate"}])
    s = state(p)
    s.initialized = True
    run(s.containers["c"])
    ready = next(c for c in pod_status(p, s, NOW, WALL, "h")["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "ReadinessGatesNotReady"
    p["status"] = {"conditions": [{"type": "example.com/gate", "status": "True"}]}
    conditions = {c["type"]: c["status"] for c in pod_status(p, s, NOW, WALL, "h")["conditions"]}
    assert conditions["Ready"] == "True"
    assert "example.com/gate" not in conditions, "another's condition, written back, could undo its newest value"


def test_times_follow_from_what_was_told_and_not_from_an_object_that_lags_behind() -> None:
    p = pod()
    s = state(p)
    s.initialized = True
    run(s.containers["c"])
    told = pod_status(p, s, NOW, WALL, "h")
    p["status"] = pod_status(p, s, NOW, WALL - 100, "h")
    assert pod_status(p, s, NOW, WALL + 100, "h", told) == told


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_qos_classes(resources: dict[str, Any], expected: str) -> None:
    assert qos_class({"containers": [{"name": "c", "resources": resources}]}) == expected
