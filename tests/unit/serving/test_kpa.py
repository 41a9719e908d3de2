"""The autoscaler's decision on the reference vectors."""

from dataclasses import replace

import pytest

from sampan.parts.serving.autoscaling.kpa import Autoscaler, Decision, Sample, activators, within_bounds
from sampan.parts.serving.autoscaling.settings import ClusterSettings, SettingError, duration, read
from sampan.parts.serving.autoscaling.window import Window

CLUSTER = ClusterSettings()
BASE = replace(read({}, 0, CLUSTER), total=13.33, target=10.0, target_burst_capacity=100.0, max_scale_up_rate=10.0)


def test_reference_vector_below_capacity() -> None:
    decision = Autoscaler(BASE).decide(Sample(50, 50), ready=1, now=0)
    assert decision[:2] == (5, -137)


def test_reference_vector_in_panic() -> None:
    settings = replace(BASE, target=1.0, target_burst_capacity=98.0)
    decision = Autoscaler(settings).decide(Sample(11, 25), ready=10, now=0)
    assert decision.pods == 25
    assert decision.panicking


def test_no_data_gives_no_decision() -> None:
    assert Autoscaler(BASE).decide(None, ready=3, now=0) == Decision(-1, 0)


def test_scale_up_is_limited_by_rate() -> None:
    assert Autoscaler(BASE).decide(Sample(1000, 1000), ready=1, now=0).pods == 10


def test_scale_down_is_limited_by_rate_while_reachable() -> None:
    autoscaler = Autoscaler(BASE)
    assert autoscaler.decide(Sample(0, 0), ready=10, now=0).pods == 5
    assert autoscaler.decide(Sample(0, 0), ready=10, now=1, reachable=False).pods == 0


def test_panic_never_scales_down_and_ends_after_a_stable_window() -> None:
    autoscaler = Autoscaler(BASE)
    assert autoscaler.decide(Sample(30, 100), ready=1, now=0).pods == 10
    assert autoscaler.decide(Sample(10, 10), ready=10, now=30).pods == 10
    assert autoscaler.decide(Sample(10, 10), ready=10, now=60).panicking
    after = autoscaler.decide(Sample(10, 10), ready=10, now=60.1)
    assert not after.panicking
    assert after.pods == 5


def test_a_fresh_autoscaler_with_pods_starts_in_panic() -> None:
    autoscaler = Autoscaler.create(BASE, ready=7, now=0)
    assert autoscaler.decide(Sample(1, 1), ready=7, now=1)[:1] == (7,)


def test_scale_down_delay_holds_the_highest_want() -> None:
    autoscaler = Autoscaler(replace(BASE, scale_down_delay=10.0, panic_threshold=100.0))
    assert autoscaler.decide(Sample(80, 80), ready=8, now=0).pods == 8
    assert autoscaler.decide(Sample(50, 50), ready=8, now=5).pods == 8
    assert autoscaler.decide(Sample(50, 50), ready=8, now=10).pods == 5


def test_activation_scale_applies_only_with_traffic() -> None:
    settings = replace(BASE, activation_scale=3)
    assert Autoscaler(settings).decide(Sample(1, 1), ready=0, now=0).pods == 3
    assert Autoscaler(settings).decide(Sample(0, 0), ready=0, now=0).pods == 0


@pytest.mark.parametrize(("burst", "expected"), [(0.0, 0), (-1.0, -1), (100.0, -137)])
def test_excess_burst_capacity(burst: float, expected: int) -> None:
    settings = replace(BASE, target_burst_capacity=burst)
    assert Autoscaler(settings).decide(Sample(50, 50), ready=1, now=0).excess_burst_capacity == expected


def test_bounds() -> None:
    settings = replace(BASE, min_scale=2, max_scale=4, initial_scale=3)
    assert within_bounds(0, settings, reachable=True, initialized=False) == 3
    assert within_bounds(0, settings, reachable=True, initialized=True) == 2
    assert within_bounds(0, settings, reachable=False, initialized=True) == 0
    assert within_bounds(9, settings, reachable=True, initialized=True) == 4


def test_activator_count() -> None:
    assert activators(10, replace(BASE, total=100.0, target_burst_capacity=211.0), 100) == 13
    assert activators(10, replace(BASE, target_burst_capacity=0.0), 100) == 2


@pytest.mark.parametrize(
    ("annotations", "concurrency", "total", "target"),
    [
        ({}, 0, 100, 70),
        ({}, 10, 10, 7),
        ({"autoscaling.knative.dev/target": "50"}, 10, 10, 7),
        ({"autoscaling.knative.dev/target": "5"}, 10, 5, 3.5),
        ({"autoscaling.knative.dev/metric": "rps"}, 0, 200, 140),
        ({"autoscaling.knative.dev/targetUtilizationPercentage": "100"}, 1, 1, 1),
    ],
)
def test_targets(annotations: dict[str, str], concurrency: int, total: float, target: float) -> None:
    settings = read(annotations, concurrency, CLUSTER)
    assert settings.total == pytest.approx(total)
    assert settings.target == pytest.approx(target)


@pytest.mark.parametrize(
    "annotations",
    [
        {"min-scale": "5", "max-scale": "2"},
        {"window": "5s"},
        {"window": "soon"},
        {"target": "0"},
        {"initial-scale": "0"},
        {"activation-scale": "1"},
        {"panic-threshold-percentage": "100"},
        {"target-burst-capacity": "-2"},
    ],
)
def test_bad_annotations_are_refused(annotations: dict[str, str]) -> None:
    with pytest.raises(SettingError):
        read({f"autoscaling.knative.dev/{key}": value for key, value in annotations.items()}, 0, CLUSTER)


@pytest.mark.parametrize(("text", "seconds"), [("1m30s", 90), ("500ms", 0.5), ("1.5h", 5400), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_window_averages_over_the_time_passed() -> None:
    window = Window(60)
    window.add(100.2, 10)
    assert window.average(100.9) == 10
    window.add(101.0, 20)
    assert window.average(101.5) == 15
    assert window.average(103.5) == pytest.approx(7.5)


def test_window_forgets() -> None:
    window = Window(6)
    for second in range(20):
        window.add(second, second)
    assert window.average(19) == pytest.approx(sum(range(14, 20)) / 6)
    assert window.is_empty(26)
    assert window.average(26) == 0


def test_weighted_window_prefers_the_newest() -> None:
    window = Window(10)
    for second in range(10):
        window.add(second, 0 if second < 9 else 100)
    assert window.average(9, weighted=True) > window.average(9)
