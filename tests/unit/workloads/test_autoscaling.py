"""The autoscaler's arithmetic by value, and the controller with metrics played to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.client.interface import ObjectList
from sampan.kube.objects import Object
from sampan.kube.resources import DEPLOYMENTS, HORIZONTAL_POD_AUTOSCALERS
from sampan.kube.status import ApiError
from sampan.parts.workloads.autoscaling import Change, Memory, Sample, decide, propose, propose_total

from .conftest import Cluster
from .test_deployment import conditions, deployment


def ready(*values: int | None) -> list[Sample]:
    return [Sample(True, value) for value in values]


@pytest.mark.parametrize(
    ("current", "target", "samples", "expected"),
    [
        (3, 100, ready(300, 500, 700), 15),
        (2, 100, ready(100, 100), 2),
        (2, 100, ready(105, 109), 2),  # within tolerance
        (2, 100, ready(115, 115), 3),
        (4, 100, ready(20, 20, 20, 20), 1),
        (3, 100, ready(300, 300, None), 6),  # a missing sample counts as nothing when growing
        (3, 100, ready(10, 10, None), 2),  # and as the target when shrinking
        (3, 100, [*ready(300), Sample(False, 10), Sample(False, 10)], 3),  # unready ones dampen growth
    ],
)
def test_proposals(current: int, target: int, samples: list[Sample], expected: int) -> None:
    proposal = propose(current, float(target), samples)
    assert proposal is not None
    assert proposal.replicas == expected


def test_no_sample_no_proposal() -> None:
    assert propose(3, 100.0, ready(None, None)) is None


def test_a_total_is_shared_by_all() -> None:
    assert propose_total(2, 30.0, 100.0).replicas == 4
    assert propose_total(0, 30.0, 100.0).replicas == 4


def spec(low: int = 1, high: int = 100, **behaviour: Any) -> Object:
    return {"minReplicas": low, "maxReplicas": high, "behavior": behaviour}


def test_growth_is_at_most_double_or_four_a_quarter_minute() -> None:
    decision = decide(spec(), 3, 50, Memory(), 0.0)
    assert (decision.replicas, decision.limited_reason) == (7, "ScaleUpLimit")
    decision = decide(spec(), 10, 50, Memory(), 0.0)
    assert decision.replicas == 20
    decision = decide(spec(), 20, 50, Memory(ups=[Change(0.0, 10)]), 10.0)
    assert decision.replicas == 20, "the ten of ten seconds ago use the allowance up"


def test_shrinking_waits_for_five_minutes_of_low_demand() -> None:
    memory = Memory()
    assert decide(spec(), 10, 10, memory, 0.0).replicas == 10
    for moment in range(15, 300, 15):
        decision = decide(spec(), 10, 2, memory, float(moment))
        assert (decision.replicas, decision.able_reason) == (10, "ScaleDownStabilized")
    assert decide(spec(), 10, 2, memory, 301.0).replicas == 2


def test_bounds_have_the_last_word() -> None:
    assert decide(spec(high=5), 4, 50, Memory(), 0.0)[0::4] == (5, "TooManyReplicas")
    assert decide(spec(low=3, scaleDown={"stabilizationWindowSeconds": 0}), 6, 1, Memory(), 0.0)[0::4] == (
        3,
        "TooFewReplicas",
    )


def test_behaviour_may_forbid_a_direction_or_slow_it_down() -> None:
    assert decide(spec(scaleUp={"selectPolicy": "Disabled"}), 3, 9, Memory(), 0.0).replicas == 3
    slow = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}
    assert decide(spec(scaleDown=slow), 9, 3, Memory(), 0.0).replicas == 8
    assert decide(spec(scaleDown=slow), 8, 3, Memory(downs=[Change(0.0, 1)]), 30.0).replicas == 8


@given(current=st.integers(1, 50), proposed=st.integers(0, 200), low=st.integers(1, 10), spread=st.integers(0, 50))
def test_a_decision_is_always_within_bounds(current: int, proposed: int, low: int, spread: int) -> None:
    decision = decide(spec(low, low + spread), current, proposed, Memory(), 0.0)
    assert low <= decision.replicas <= low + spread


# -- the controller


class Metrics:
    """Answers what metrics.k8s.io would."""

    def __init__(self, cluster: Cluster) -> None:
        self.cpu: int | None = None
        self._cluster = cluster
        self._list = cluster.client.list
        cluster.client.list = self.list  # type: ignore[method-assign]

    async def list(self, resource: Any, namespace: str | None = None, **options: Any) -> ObjectList:
        if resource.group != "metrics.k8s.io":
            return await self._list(resource, namespace, **options)
        if self.cpu is None:
            raise ApiError(
                404, "NotFound", "the server could not find the requested resource (get pods.metrics.k8s.io)"
            )
        items = [
            {
                "metadata": pod["metadata"],
                "containers": [{"name": "c", "usage": {"cpu": f"{self.cpu}m", "memory": "10Mi"}}],
            }
            for pod in await self._cluster.pods()
        ]
        return ObjectList(items, "1")


async def autoscaled(cluster: Cluster, replicas: int = 2, high: int = 10) -> Metrics:
    made = deployment(replicas)
    made["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "200m"}}
    await cluster.create(DEPLOYMENTS, made)
    await cluster.settle()
    metrics = Metrics(cluster)
    autoscaler = {
        "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1,
            "maxReplicas": high,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}},
                }
            ],
        },
    }
    await cluster.create(HORIZONTAL_POD_AUTOSCALERS, autoscaler)
    return metrics


async def test_demand_scales_up_and_its_end_down_again(cluster: Cluster) -> None:
    metrics = await autoscaled(cluster)
    metrics.cpu = 200  # 100 % of the request, twice the target
    await cluster.settle()
    assert (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"] == 4
    status = await cluster.status(HORIZONTAL_POD_AUTOSCALERS, "web")
    assert (status["currentReplicas"], status["desiredReplicas"]) == (2, 4)
    assert status["currentMetrics"] == [
        {
            "type": "Resource",
            "resource": {"name": "cpu", "current": {"averageValue": "200m", "averageUtilization": 100}},
        }
    ]
    assert any(
        reason == "SuccessfulRescale"
        and message.startswith("New size: 4; reason: cpu resource utilization (percentage of request) above target")
        for reason, message in await cluster.events("web")
    )
    metrics.cpu = 10
    await cluster.pass_time(200)
    scaled = (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"]
    assert scaled >= 4, "the window has not passed"
    await cluster.pass_time(300)
    assert (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"] == 1
    assert ("SuccessfulRescale", "New size: 1; reason: All metrics below target") in await cluster.events("web")


async def test_without_metrics_it_says_so_and_does_nothing(cluster: Cluster) -> None:
    await autoscaled(cluster)
    await cluster.pass_time(40)
    status = await cluster.status(HORIZONTAL_POD_AUTOSCALERS, "web")
    assert conditions(status)["AbleToScale"] == ("True", "SucceededGetScale")
    assert conditions(status)["ScalingActive"] == ("False", "FailedGetResourceMetric")
    assert (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"] == 2


async def test_a_target_outside_the_bounds_is_brought_in_without_metrics(cluster: Cluster) -> None:
    await autoscaled(cluster, replicas=8, high=5)
    await cluster.pass_time(16)
    assert (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"] == 5


async def test_a_target_scaled_to_zero_disables_it(cluster: Cluster) -> None:
    metrics = await autoscaled(cluster, replicas=0)
    metrics.cpu = 500
    await cluster.pass_time(40)
    assert conditions(await cluster.status(HORIZONTAL_POD_AUTOSCALERS, "web"))["ScalingActive"] == (
        "False",
        "ScalingDisabled",
    )
    assert (await cluster.get(DEPLOYMENTS, "web"))["spec"]["replicas"] == 0
