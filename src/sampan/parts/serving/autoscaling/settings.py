"""What an autoscaler is told: the ``config-autoscaler`` ConfigMap, overridden by a revision's annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sampan.kernel.errors import SampanError

PREFIX = "autoscaling.knative.dev/"
KPA = "kpa.autoscaling.knative.dev"
HPA = "hpa.autoscaling.knative.dev"
PPA = "ppa.autoscaling.knative.dev"
"""Scheduled bounds combined with an HPA."""

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(h|ms|m|s|us|ns)")


class SettingError(SampanError):
    """A key or annotation has a value it cannot have; ``key`` names it."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{why}: {key}")
        self.key = key
        self.why = why


def duration(text: str) -> float:
    """A Go duration in seconds.

    Raises:
        ValueError: it is none.
    """
    if text == "0":
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    body = text.lstrip("+-")
    parts = _DURATION.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"invalid duration {text!r}")
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """``config-autoscaler`` with upstream's defaults. Durations are seconds."""

    pod_autoscaler_class: str = KPA
    concurrency_target_fraction: float = 0.7
    concurrency_target_default: float = 100.0
    rps_target_default: float = 200.0
    target_burst_capacity: float = 211.0
    stable_window: float = 60.0
    panic_window_percentage: float = 10.0
    panic_threshold_percentage: float = 200.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    enable_scale_to_zero: bool = True
    scale_to_zero_grace_period: float = 30.0
    scale_to_zero_pod_retention_period: float = 0.0
    scale_down_delay: float = 0.0
    initial_scale: int = 1
    allow_zero_initial_scale: bool = False
    min_scale: int = 0
    max_scale: int = 0
    max_scale_limit: int = 0
    activator_capacity: float = 100.0

    @staticmethod
    def parse(data: Mapping[str, str]) -> ClusterSettings:
        """From the ConfigMap's data.

        Raises:
            SettingError: a value cannot be read or is out of bounds.
        """
        base = ClusterSettings()

        def number(key: str, default: float) -> float:
            return _float(key, data[key]) if key in data else default

        def whole(key: str, default: int) -> int:
            return _int(key, data[key]) if key in data else default

        def seconds(key: str, default: float) -> float:
            return _seconds(key, data[key]) if key in data else default

        def flag(key: str, default: bool) -> bool:
            return data[key].strip().lower() in ("true", "1", "t") if key in data else default

        percentage = number("container-concurrency-target-percentage", base.concurrency_target_fraction * 100)
        settings = ClusterSettings(
            pod_autoscaler_class=data.get("pod-autoscaler-class", base.pod_autoscaler_class),
            # values up to 1 are read as fractions, as upstream does
            concurrency_target_fraction=percentage / 100 if percentage > 1 else percentage,
            concurrency_target_default=number("container-concurrency-target-default", base.concurrency_target_default),
            rps_target_default=number("requests-per-second-target-default", base.rps_target_default),
            target_burst_capacity=number("target-burst-capacity", base.target_burst_capacity),
            stable_window=seconds("stable-window", base.stable_window),
            panic_window_percentage=number("panic-window-percentage", base.panic_window_percentage),
            panic_threshold_percentage=number("panic-threshold-percentage", base.panic_threshold_percentage),
            max_scale_up_rate=number("max-scale-up-rate", base.max_scale_up_rate),
            max_scale_down_rate=number("max-scale-down-rate", base.max_scale_down_rate),
            enable_scale_to_zero=flag("enable-scale-to-zero", base.enable_scale_to_zero),
            scale_to_zero_grace_period=seconds("scale-to-zero-grace-period", base.scale_to_zero_grace_period),
            scale_to_zero_pod_retention_period=seconds(
                "scale-to-zero-pod-retention-period", base.scale_to_zero_pod_retention_period
            ),
            scale_down_delay=seconds("scale-down-delay", base.scale_down_delay),
            initial_scale=whole("initial-scale", base.initial_scale),
            allow_zero_initial_scale=flag("allow-zero-initial-scale", base.allow_zero_initial_scale),
            min_scale=whole("min-scale", base.min_scale),
            max_scale=whole("max-scale", base.max_scale),
            max_scale_limit=whole("max-scale-limit", base.max_scale_limit),
            activator_capacity=number("activator-capacity", base.activator_capacity),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("scale-to-zero-grace-period", self.scale_to_zero_grace_period >= 6, "must be at least 6s"),
            ("stable-window", 6 <= self.stable_window <= 3600, "must be in [6s, 1h]"),
            ("stable-window", self.stable_window % 1 == 0, "must be specified with at most second precision"),
            ("panic-window-percentage", 1 <= self.panic_window_percentage <= 100, "must be in [1, 100]"),
            ("panic-threshold-percentage", 110 <= self.panic_threshold_percentage <= 1000, "must be in [110, 1000]"),
            ("max-scale-up-rate", self.max_scale_up_rate > 1, "must be greater than 1.0"),
            ("max-scale-down-rate", self.max_scale_down_rate > 1, "must be greater than 1.0"),
            ("target-burst-capacity", self.target_burst_capacity >= 0 or self.target_burst_capacity == -1, "must be -1 or not negative"),
            ("container-concurrency-target-default", self.concurrency_target_default >= 0.01, "must be at least 0.01"),
            ("requests-per-second-target-default", self.rps_target_default >= 0.01, "must be at least 0.01"),
            ("activator-capacity", self.activator_capacity >= 1, "must be at least 1"),
            ("initial-scale", self.initial_scale >= (0 if self.allow_zero_initial_scale else 1), "must be at least 1"),
            ("scale-down-delay", self.scale_down_delay >= 0 and self.scale_down_delay % 1 == 0, "must be whole seconds, not negative"),
            ("scale-to-zero-pod-retention-period", self.scale_to_zero_pod_retention_period >= 0, "cannot be negative"),
        )  # fmt: skip
        for key, holds, why in rules:
            if not holds:
                raise SettingError(key, why)


def _float(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(key, f"invalid value: {text}") from None


def _int(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(key, f"invalid value: {text}") from None


def _seconds(key: str, text: str) -> float:
    try:
        return duration(text)
    except ValueError:
        raise SettingError(key, f"invalid value: {text}") from None


_ALIASES = {
    "minScale": "min-scale",
    "maxScale": "max-scale",
    "initialScale": "initial-scale",
    "scaleDownDelay": "scale-down-delay",
    "targetUtilizationPercentage": "target-utilization-percentage",
    "targetBurstCapacity": "target-burst-capacity",
    "panicWindowPercentage": "panic-window-percentage",
    "panicThresholdPercentage": "panic-threshold-percentage",
    "scaleToZeroPodRetentionPeriod": "scale-to-zero-pod-retention-period",
}


@dataclass(frozen=True, slots=True)
class RevisionSettings:
    """One revision's autoscaling, everything decided. Durations are seconds."""

    autoscaler_class: str
    metric: str
    total: float
    """What one pod can take in all (concurrency, or requests a second)."""
    target: float
    """What one pod should take: the total at the wanted utilisation."""
    target_burst_capacity: float
    window: float
    panic_window: float
    panic_threshold: float
    """Times the capacity of the ready pods."""
    max_scale_up_rate: float
    max_scale_down_rate: float
    scale_down_delay: float
    min_scale: int
    max_scale: int
    """0: unlimited."""
    initial_scale: int
    activation_scale: int
    scale_to_zero: bool
    grace_period: float
    retention: float
    weighted: bool
    """Weigh samples exponentially instead of evenly."""


def read(annotations: Mapping[str, str], container_concurrency: int, cluster: ClusterSettings) -> RevisionSettings:
    """A revision's settings from its annotations over the cluster's.

    Raises:
        SettingError: an annotation has a value it cannot have.
    """
    found: dict[str, str] = {}
    for key, value in annotations.items():
        if key.startswith(PREFIX):
            name = key.removeprefix(PREFIX)
            found[_ALIASES.get(name, name)] = value

    def bounded(name: str, default: float, low: float, high: float) -> float:
        if name not in found:
            return default
        value = _float(PREFIX + name, found[name])
        if not low <= value <= high:
            raise SettingError(PREFIX + name, f"expected {low:g} <= {value:g} <= {high:g}")
        return value

    def scale(name: str, default: int, low: int = 0) -> int:
        if name not in found:
            return default
        value = _int(PREFIX + name, found[name])
        if value < low or value > 2**31 - 1:
            raise SettingError(PREFIX + name, f"expected {low} <= {value} <= {2**31 - 1}")
        return value

    def seconds(name: str, default: float, low: float, high: float) -> float:
        if name not in found:
            return default
        value = _seconds(PREFIX + name, found[name])
        if not low <= value <= high:
            raise SettingError(PREFIX + name, f"expected {low:g}s <= {value:g}s <= {high:g}s")
        return value

    autoscaler_class = found.get("class", cluster.pod_autoscaler_class)
    metric = found.get("metric", "cpu" if autoscaler_class in (HPA, PPA) else "concurrency")
    minimum, maximum = scale("min-scale", cluster.min_scale), scale("max-scale", cluster.max_scale)
    if maximum and minimum > maximum:
        raise SettingError(PREFIX + "max-scale", f"max-scale={maximum} is less than min-scale={minimum}")
    if cluster.max_scale_limit and (maximum > cluster.max_scale_limit or ("max-scale" in found and maximum == 0)):
        raise SettingError(PREFIX + "max-scale", f"expected 1 <= {maximum} <= {cluster.max_scale_limit}")
    initial = scale("initial-scale", cluster.initial_scale)
    if initial == 0 and not cluster.allow_zero_initial_scale:
        raise SettingError(
            PREFIX + "initial-scale", f"0 not allowed by cluster: invalid value: {found.get('initial-scale', '0')}"
        )
    activation = scale("activation-scale", 1, 2)
    if "activation-scale" in found and (activation < minimum or (maximum and activation > maximum)):
        raise SettingError(
            PREFIX + "activation-scale", f"activation-scale={activation} must lie between min-scale and max-scale"
        )
    total, fraction = _target(found, metric, container_concurrency, cluster)
    window = seconds("window", cluster.stable_window, 6, 3600)
    panic_percentage = bounded("panic-window-percentage", cluster.panic_window_percentage, 1, 100)
    burst = cluster.target_burst_capacity
    if "target-burst-capacity" in found:
        burst = _float(PREFIX + "target-burst-capacity", found["target-burst-capacity"])
        if burst < 0 and burst != -1:
            raise SettingError(PREFIX + "target-burst-capacity", f"invalid value: {found['target-burst-capacity']}")
    return RevisionSettings(
        autoscaler_class=autoscaler_class,
        metric=metric,
        total=total,
        target=max(0.01, total * fraction),
        target_burst_capacity=burst,
        window=window,
        panic_window=max(1.0, float(round(window * panic_percentage / 100))),
        panic_threshold=bounded("panic-threshold-percentage", cluster.panic_threshold_percentage, 110, 1000) / 100,
        max_scale_up_rate=cluster.max_scale_up_rate,
        max_scale_down_rate=cluster.max_scale_down_rate,
        scale_down_delay=seconds("scale-down-delay", cluster.scale_down_delay, 0, 3600),
        min_scale=minimum,
        max_scale=maximum,
        initial_scale=initial,
        activation_scale=activation,
        scale_to_zero=cluster.enable_scale_to_zero,
        grace_period=cluster.scale_to_zero_grace_period,
        retention=seconds("scale-to-zero-pod-retention-period", cluster.scale_to_zero_pod_retention_period, 0, 3600),
        weighted=found.get("metric-aggregation-algorithm") in ("weighted-exponential", "weightedExponential"),
    )


def _target(
    found: Mapping[str, str], metric: str, container_concurrency: int, cluster: ClusterSettings
) -> tuple[float, float]:
    """(total, utilisation fraction) of one pod."""
    fraction = cluster.concurrency_target_fraction
    if metric == "rps":
        total, fraction = cluster.rps_target_default, 0.7
    elif container_concurrency > 0:
        total = float(container_concurrency)
    else:
        total = cluster.concurrency_target_default
    if "target" in found:
        annotated = _float(PREFIX + "target", found["target"])
        if annotated < 0.01:
            raise SettingError(PREFIX + "target", f"target {annotated:g} should be at least 0.01")
        total = min(annotated, total) if metric == "concurrency" and container_concurrency > 0 else annotated
    if "target-utilization-percentage" in found:
        percentage = _float(PREFIX + "target-utilization-percentage", found["target-utilization-percentage"])
        if not 1 <= percentage <= 100:
            raise SettingError(PREFIX + "target-utilization-percentage", f"expected 1 <= {percentage:g} <= 100")
        fraction = percentage / 100
    return total, fraction
