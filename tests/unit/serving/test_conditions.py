"""Ready follows from its dependents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sampan.kube.control.conditions import ConditionSet, is_ready
from sampan.parts.serving.configmaps import GarbageSettings
from sampan.parts.serving.control.configuration import stale

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def obj(**status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "status": status}


def test_everything_starts_unknown() -> None:
    conditions = ConditionSet(obj(), ("A", "B"), NOW)
    assert conditions.ready == ("Unknown", "", "")


def test_ready_is_true_when_all_are() -> None:
    conditions = ConditionSet(obj(), ("A", "B"), NOW)
    conditions.true("A")
    conditions.true("B")
    assert conditions.ready[0] == "True"
    assert [one["type"] for one in conditions.conditions()] == ["A", "B", "Ready"]


def test_false_outranks_unknown_and_gives_its_reason() -> None:
    conditions = ConditionSet(obj(), ("A", "B"), NOW)
    conditions.unknown("A", "Waiting", "a while")
    conditions.false("B", "Broken", "for good")
    assert conditions.ready == ("False", "Broken", "for good")


def test_informational_conditions_do_not_count() -> None:
    conditions = ConditionSet(obj(), ("A",), NOW, informational=("Info",))
    conditions.true("A")
    conditions.false("Info", "NoTraffic")
    assert conditions.ready[0] == "True"
    assert next(one for one in conditions.conditions() if one["type"] == "Info")["severity"] == "Info"


def test_times_move_only_with_changes() -> None:
    first = ConditionSet(obj(), ("A",), NOW)
    first.true("A")
    stored = first.conditions()
    later = ConditionSet(obj(conditions=stored, observedGeneration=2), ("A",), NOW + timedelta(hours=1))
    later.true("A")
    assert later.conditions() == stored


def test_a_new_generation_starts_over() -> None:
    first = ConditionSet(obj(), ("A",), NOW)
    first.true("A")
    later = ConditionSet(obj(conditions=first.conditions(), observedGeneration=1), ("A",), NOW)
    assert later.ready[0] == "Unknown"


def test_ready_must_speak_of_the_current_generation() -> None:
    ready = [{"type": "Ready", "status": "True"}]
    assert is_ready(obj(conditions=ready, observedGeneration=2))
    assert not is_ready(obj(conditions=ready, observedGeneration=1))


def revision(name: str, hours: int, **extra: str) -> dict[str, Any]:
    stamp = (NOW - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": stamp,
            "labels": {"serving.knative.dev/routingState": "reserve"},
            "annotations": {"serving.knative.dev/routingStateModified": stamp, **extra},
        }
    }


def test_old_unused_revisions_are_collected_down_to_the_minimum() -> None:
    owned = [revision(f"r{age}", age) for age in (100, 90, 80, 10)]
    doomed = stale(owned, set(), GarbageSettings(minimum=2), NOW)
    assert [one["metadata"]["name"] for one in doomed] == ["r100", "r90"]


def test_pinned_and_protected_revisions_stay() -> None:
    owned = [revision("latest", 100), revision("kept", 100, **{"serving.knative.dev/no-gc": "true"})]
    assert stale(owned, {"latest"}, GarbageSettings(minimum=0), NOW) == []


def test_the_maximum_holds_whatever_their_age() -> None:
    owned = [revision(f"r{age}", age) for age in (3, 2, 1)]
    doomed = stale(owned, set(), GarbageSettings(minimum=0, maximum=1), NOW)
    assert [one["metadata"]["name"] for one in doomed] == ["r3", "r2"]


def test_disabled_limits_collect_nothing() -> None:
    owned = [revision(f"r{age}", age) for age in (1000, 900)]
    assert stale(owned, set(), GarbageSettings(None, None, 0, None), NOW) == []
