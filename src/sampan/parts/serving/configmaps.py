"""The ConfigMaps in ``knative-serving`` that shape Serving, read with upstream's defaults."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sampan.kube.control.interface import Informer
from sampan.kube.objects import Key, Object
from sampan.kube.types.selectors import matches
from sampan.parts.serving import keys
from sampan.parts.serving.autoscaling.settings import ClusterSettings, SettingError, duration
from sampan.parts.serving.resources import SYSTEM_NAMESPACE

LOCAL_DOMAIN = "svc.cluster.local"

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "config-autoscaler": {},
    "config-defaults": {},
    "config-deployment": {},
    "config-domain": {},
    "config-features": {},
    "config-gc": {},
    "config-network": {
        "ingress-class": "sampan.ingress.networking.knative.dev",
        "certificate-class": "sampan.certificate.networking.knative.dev",
    },
    "config-observability": {},
    "config-logging": {},
    "config-tracing": {},
}
"""The ConfigMaps made at first start."""


@dataclass(frozen=True, slots=True)
class RevisionDefaults:
    """``config-defaults``."""

    timeout: int = 300
    response_start_timeout: int = 300
    idle_timeout: int = 0
    max_timeout: int = 600
    container_concurrency: int = 0
    container_concurrency_limit: int = 1000
    concurrency_may_be_zero: bool = True
    service_links: bool | None = False
    """None: left to Kubernetes."""
    container_name: str = "user-container"
    init_container_name: str = "init-container"
    """Templates, with ``{{.Name}}`` and ``{{.Namespace}}`` of the object."""
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    def parse(data: Mapping[str, str]) -> RevisionDefaults:
        """Raises ValueError: a value that cannot be."""
        made = RevisionDefaults._read(data)
        for name, value, most_name, most in (
            ("revision-timeout-seconds", made.timeout, "max-revision-timeout-seconds", made.max_timeout),
            (
                "revision-response-start-timeout-seconds",
                made.response_start_timeout,
                "revision-timeout-seconds",
                made.timeout,
            ),
            ("revision-idle-timeout-seconds", made.idle_timeout, "revision-timeout-seconds", made.timeout),
        ):
            if value > most:
                raise ValueError(f"{name} ({value}) cannot be greater than {most_name} ({most})")
        if made.container_concurrency_limit < 1:
            limit = made.container_concurrency_limit
            raise ValueError(f"expected 1 <= {limit} <= {2**31 - 1}: container-concurrency-max-limit")
        if not 0 <= made.container_concurrency <= made.container_concurrency_limit:
            bounds = f"0 <= {made.container_concurrency} <= {made.container_concurrency_limit}"
            raise ValueError(f"expected {bounds}: container-concurrency")
        return made

    @staticmethod
    def _read(data: Mapping[str, str]) -> RevisionDefaults:
        base = RevisionDefaults()
        timeout = int(data.get("revision-timeout-seconds", base.timeout))
        links = data.get("enable-service-links", "false").lower()
        resources: dict[str, dict[str, str]] = {}
        for kind in ("request", "limit"):
            for name, key in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral-storage", "ephemeral-storage")):
                value = data.get(f"revision-{key}-{kind}")
                if value:
                    resources.setdefault(f"{kind}s", {})[name] = value
        return RevisionDefaults(
            timeout=timeout,
            response_start_timeout=int(data.get("revision-response-start-timeout-seconds", timeout)),
            idle_timeout=int(data.get("revision-idle-timeout-seconds", base.idle_timeout)),
            max_timeout=int(data.get("max-revision-timeout-seconds", base.max_timeout)),
            container_concurrency=int(data.get("container-concurrency", base.container_concurrency)),
            container_concurrency_limit=int(
                data.get("container-concurrency-max-limit", base.container_concurrency_limit)
            ),
            concurrency_may_be_zero=data.get("allow-container-concurrency-zero", "true").lower() != "false",
            service_links={"true": True, "false": False}.get(links),
            container_name=data.get("container-name-template", base.container_name),
            init_container_name=data.get("init-container-name-template", base.init_container_name),
            resources=resources,
        )


@dataclass(frozen=True, slots=True)
class GarbageSettings:
    """``config-gc``; None turns a limit off. Durations are seconds."""

    since_create: float | None = 48 * 3600
    since_active: float | None = 15 * 3600
    minimum: int = 20
    maximum: int | None = 1000

    @staticmethod
    def parse(data: Mapping[str, str]) -> GarbageSettings:
        def seconds(key: str, default: float | None) -> float | None:
            text = data.get(key)
            return default if text is None else None if text == "disabled" else duration(text)

        base = GarbageSettings()
        most = data.get("max-non-active-revisions")
        return GarbageSettings(
            seconds("retain-since-create-time", base.since_create),
            seconds("retain-since-last-active-time", base.since_active),
            int(data.get("min-non-active-revisions", base.minimum)),
            base.maximum if most is None else None if most == "disabled" else int(most),
        )


class Config:
    """All of them, from the objects of an informer. A value nobody can read leaves the last good one in force."""

    def __init__(self, find: Any, default_domain: str) -> None:
        """``find(key)`` gives a ConfigMap or None; ``default_domain`` stands in for an empty ``config-domain``."""
        self._find = find
        self._default_domain = default_domain
        self._parsed: dict[str, tuple[Mapping[str, str], Any]] = {}

    def data(self, name: str) -> Mapping[str, str]:
        """A ConfigMap's data without its example."""
        found: Object | None = self._find(Key(SYSTEM_NAMESPACE, name))
        data: Mapping[str, str] = (found or {}).get("data") or {}
        return {key: value for key, value in data.items() if key != "_example"}

    def autoscaler(self) -> ClusterSettings:
        return self._read("config-autoscaler", ClusterSettings.parse)

    def defaults(self) -> RevisionDefaults:
        return self._read("config-defaults", RevisionDefaults.parse)

    def garbage(self) -> GarbageSettings:
        return self._read("config-gc", GarbageSettings.parse)

    def feature(self, name: str) -> str:
        """``enabled``, ``allowed`` or ``disabled``."""
        default = "enabled" if name in ("multi-container", "kubernetes.podspec-volumes-emptydir") else "disabled"
        return self.data("config-features").get(name, default).strip().lower()

    def domain(self, labels: Mapping[str, str]) -> str:
        """The domain of a route with these labels: the most specific selector wins."""
        candidates = []
        for domain, text in self.data("config-domain").items():
            selector = _selector(text)
            if matches({"matchLabels": selector}, labels):
                candidates.append((-len(selector), domain))
        return min(candidates)[1] if candidates else self._default_domain

    def rollout_duration(self) -> float:
        return self._read("config-network", _rollout_duration)

    def scheme(self) -> str:
        return self.data("config-network").get("default-external-scheme", "http")

    def external_tls(self, annotations: Mapping[str, str]) -> bool:
        """Names visible outside get certificates, unless the object's annotations say no."""
        data = self.data("config-network")
        wanted = data.get("external-domain-tls") or data.get("auto-tls") or "Disabled"
        refused = any(annotations.get(name, "").lower() == "true" for name in keys.DISABLE_TLS)
        return wanted.lower() == "enabled" and not refused

    def local_tls(self) -> bool:
        """Cluster-local names get certificates."""
        return self.data("config-network").get("cluster-local-domain-tls", "").lower() == "enabled"

    def redirects(self, annotations: Mapping[str, str]) -> bool:
        """Plain HTTP is redirected where there is a certificate."""
        own = next((annotations[name] for name in keys.HTTP_PROTOCOL if annotations.get(name)), "")
        return (own or self.data("config-network").get("http-protocol", "Enabled")).lower() == "redirected"

    def certificate_class(self, annotations: Mapping[str, str]) -> str:
        """Who issues certificates."""
        ours = self.data("config-network").get("certificate-class") or keys.OUR_CERTIFICATE_CLASS
        return annotations.get(keys.CERTIFICATE_CLASS) or ours

    def tag_name(self, tag: str, name: str) -> str:
        """A tag and a route name as one DNS label, by ``tag-template``."""
        template = self.data("config-network").get("tag-template", "{{.Tag}}-{{.Name}}")
        return template.replace("{{.Tag}}", tag).replace("{{.Name}}", name)

    def host(self, name: str, namespace: str, domain: str) -> str:
        """A route's host name, by ``domain-template``."""
        if domain == LOCAL_DOMAIN:
            return f"{name}.{namespace}.{domain}"
        template = self.data("config-network").get("domain-template", "{{.Name}}.{{.Namespace}}.{{.Domain}}")
        made = template
        for field_name, value in (("Name", name), ("Namespace", namespace), ("Domain", domain)):
            made = made.replace("{{." + field_name + "}}", value)
        return made

    def unresolved_registries(self) -> frozenset[str]:
        """Registries whose tags mean what they mean at the moment."""
        listed = self.data("config-deployment").get(
            "registries-skipping-tag-resolving", "kind.local,ko.local,dev.local"
        )
        return frozenset(one.strip() for one in listed.split(","))

    def progress_deadline(self) -> float:
        return self._read("config-deployment", _progress_deadline)

    def _read(self, name: str, parse: Callable[[Mapping[str, str]], T]) -> T:
        data = self.data(name)
        known = self._parsed.get(name)
        if known is not None and known[0] == data:
            result: T = known[1]
            return result
        try:
            parsed = parse(data)
        except (ValueError, SettingError) as error:
            log.warning("ConfigMap %s cannot be read, the last good one stays in force: %s", name, error)
            parsed = parse({}) if known is None else known[1]
        self._parsed[name] = (data, parsed)
        return parsed


PARSERS: Mapping[str, Callable[[Mapping[str, str]], object]] = {
    "config-autoscaler": ClusterSettings.parse,
    "config-defaults": RevisionDefaults.parse,
    "config-gc": GarbageSettings.parse,
    "config-network": lambda data: _network(data),
    "config-deployment": lambda data: _progress_deadline(data),
}
"""What reads each ConfigMap; raises ValueError or SettingError for values that mean nothing."""


def _rollout_duration(data: Mapping[str, str]) -> float:
    return duration(data.get("rollout-duration", "0") or "0")


_CHOICES: Mapping[str, frozenset[str]] = {
    "http-protocol": frozenset({"enabled", "disabled", "redirected"}),
    "system-internal-tls": frozenset({"enabled", "disabled"}),
    "cluster-local-domain-tls": frozenset({"enabled", "disabled"}),
}
"""What ``config-network`` may say, in any case."""


def _network(data: Mapping[str, str]) -> float:
    for name, choices in _CHOICES.items():
        value = data.get(name) or ""
        if value and value.lower() not in choices:
            raise ValueError(f'{name} with value: "{value}" in config-network ConfigMap is not supported')
    return _rollout_duration(data)


def _progress_deadline(data: Mapping[str, str]) -> float:
    return duration(data.get("progress-deadline", "600s"))


def everything(informer: Callable[[], Informer]) -> Callable[[Object], list[Key]]:
    """For a controller's sources: a changed ConfigMap of Serving concerns every object there is."""

    def keys(config_map: Object) -> list[Key]:
        metadata = config_map["metadata"]
        if metadata.get("namespace") != SYSTEM_NAMESPACE or metadata["name"] not in DEFAULTS:
            return []
        return [Key.of(one) for one in informer().objects()]

    return keys


def _selector(text: str) -> dict[str, str]:
    """The label selector in a ``config-domain`` value: ``selector:`` and indented ``key: value`` lines, or nothing."""
    labels: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if line.strip() == "selector:":
            inside = True
        elif inside and ":" in line:
            key, _, value = line.strip().partition(":")
            labels[key.strip()] = value.strip().strip("\"'")
    return labels
