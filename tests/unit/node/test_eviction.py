"""What a pod may take, who goes first, and what a node grants of a resize: by value."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sampan.parts.node.agent.eviction import Candidate, LocalStorage, disk_used, limited, overrun, victim
from sampan.parts.node.agent.resizing import asked, changed, obstacle, restarts

MEBI = 1 << 20


def pod(*limits: str, size: str = "", medium: str = "") -> dict[str, Any]:
    containers = [
        {"name": f"c{n}", "image": "i", "resources": {"limits": {"ephemeral-storage": limit}} if limit else {}}
        for n, limit in enumerate(limits)
    ]
    options = {name: value for name, value in (("sizeLimit", size), ("medium", medium)) if value}
    return {
        "metadata": {"uid": "u"},
        "spec": {"containers": containers, "volumes": [{"name": "v", "emptyDir": options}]},
    }


@pytest.mark.parametrize(
    ("of", "used", "words"),
    [
        (
            pod("", size="4Mi"),
            LocalStorage({}, {"v": 5 * MEBI}),
            'Usage of EmptyDir volume "v" exceeds the limit "4Mi". ',
        ),
        (pod("", size="4Mi"), LocalStorage({}, {"v": 4 * MEBI}), ""),
        (pod("", size="4Mi", medium="Memory"), LocalStorage({}, {"v": 5 * MEBI}), ""),
        (
            pod("4Mi", "4Mi"),
            LocalStorage({"c0": 5 * MEBI, "c1": 0}, {}),
            'Container c0 exceeded its local ephemeral storage limit "4Mi". ',
        ),
        (
            pod("4Mi"),
            LocalStorage({"c0": 2 * MEBI}, {"v": 3 * MEBI}),
            "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ",
        ),
        (pod("4Mi", ""), LocalStorage({"c0": 1 * MEBI, "c1": 9 * MEBI}, {"v": 9 * MEBI}), ""),
    ],
)
def test_what_a_pod_exceeds(of: dict[str, Any], used: LocalStorage, words: str) -> None:
    assert overrun(of, used) == words


def test_only_pods_with_limits_are_measured() -> None:
    assert limited(pod("4Mi"))
    assert limited(pod("", size="1Mi"))
    assert not limited(pod("", size="1Mi", medium="Memory"))
    assert not limited(pod(""))


def test_who_goes_first() -> None:
    within = Candidate("within", used=900, requested=1000, priority=0)
    over = Candidate("over", used=200, requested=100, priority=0)
    more = Candidate("more", used=500, requested=100, priority=0)
    important = Candidate("important", used=5000, requested=0, priority=1000)
    assert victim([within, over, more, important]) == more
    assert victim([within, important]) == important
    assert victim([within]) == within
    assert victim([]) is None


def test_the_disk_under_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x" * 100_000)
    (tmp_path / "a" / "out").symlink_to("/usr")
    assert 100_000 <= disk_used(tmp_path) < 200_000
    assert disk_used(tmp_path / "nowhere") == 0


ALLOCATABLE = {"cpu": "2", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("wanted", "others", "reason"),
    [
        ({"cpu": "1", "memory": "512Mi"}, {"cpu": "1", "memory": "512Mi"}, ""),
        ({"cpu": "3"}, {}, "Infeasible"),
        ({"memory": "2Gi"}, {}, "Infeasible"),
        ({"cpu": "1500m"}, {"cpu": "1"}, "Deferred"),
        ({"memory": "600Mi"}, {"memory": "600Mi"}, "Deferred"),
    ],
)
def test_what_a_node_grants(wanted: dict[str, str], others: dict[str, str], reason: str) -> None:
    found = obstacle(asked([{"requests": wanted}]), asked([{"requests": others}]), ALLOCATABLE)
    assert (found[0] if found else "") == reason


def test_what_a_container_asks_for() -> None:
    assert asked(
        [{"limits": {"cpu": "2"}}, {"requests": {"cpu": "500m", "memory": "1Ki"}, "limits": {"cpu": "1"}}]
    ) == {
        "cpu": Decimal("2.5"),
        "memory": Decimal(1024),
    }


def test_amounts_are_compared_not_their_spelling() -> None:
    assert changed({"requests": {"cpu": "1000m"}}, {"requests": {"cpu": "1"}}) == set()
    assert changed({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "2Gi"}}) == {"memory"}
    assert changed(None, {"requests": {"cpu": "1"}}) == {"cpu"}
    spec = {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}
    assert restarts(spec, {"memory"})
    assert not restarts(spec, {"cpu"})
