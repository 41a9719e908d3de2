"""What Knative Eventing's validating webhook refuses, in its words: ``validation failed: <what>: <field path>``."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from sampan.kube.objects import Object, dig
from sampan.kube.status import bad_request
from sampan.parts.eventing import delivery, filters, schedule
from sampan.parts.eventing.configmaps import Config
from sampan.parts.eventing.errors import ConnectionSettingsError, EventingError
from sampan.parts.eventing.kafka.records import KEY_TYPES
from sampan.parts.eventing.resources import BROKER_CLASS, KAFKA_KEY_TYPE
from sampan.parts.eventing.streams import proxy_address

WEBHOOK = "validation.webhook.eventing.knative.dev"
_EXTENSION = re.compile(r"[a-z0-9]+")


class Findings:
    """Problems collected with their field paths."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def missing(self, *paths: str) -> None:
        self._found.append(f"missing field(s): {', '.join(sorted(paths))}")

    def invalid(self, value: object, path: str, details: str = "") -> None:
        self._found.append(f"invalid value: {value}: {path}" + (f"\n{details}" if details else ""))

    def immutable(self, path: str) -> None:
        self._found.append(f"Immutable fields changed (-old +new): {path}")

    def one_of(self, got: str, *paths: str) -> None:
        self._found.append(f"expected exactly one, got {got}: {', '.join(sorted(paths))}")

    def refuse(self) -> None:
        """Refuse the object where there are problems.

        Raises:
            ApiError: 400 with all of them.
        """
        if self._found:
            text = "\n".join(self._found)
            raise bad_request(f'admission webhook "{WEBHOOK}" denied the request: validation failed: {text}')

    # -- what several kinds have

    def list_of(self, given: object, path: str) -> None:
        """A list that must hold texts, and at least one."""
        if not given:
            self.missing(path)
        for number, one in enumerate(given if isinstance(given, list) else ()):
            if not one:
                self.invalid(one, f"{path}[{number}]")

    def destination(self, given: Mapping[str, Any] | None, path: str) -> None:
        """A Destination that must be there."""
        reference, uri = (given or {}).get("ref"), (given or {}).get("uri")
        if not reference and not uri:
            self.one_of("neither", f"{path}.ref", f"{path}.uri")
            return
        if reference:
            self.reference(reference, f"{path}.ref")
            if uri and "://" in uri:
                self._found.append(
                    f"Absolute URI is not allowed when Ref or [apiVersion, kind, name] is present: {path}.uri"
                )
        elif "://" not in str(uri):
            self.invalid(
                uri, f"{path}.uri", "Relative URI is not allowed when Ref and [apiVersion, kind, name] is absent"
            )

    def reference(self, given: Mapping[str, Any], path: str) -> None:
        """A reference with what it must have."""
        wanted = ("kind", "name") if given.get("group") or given.get("address") else ("apiVersion", "kind", "name")
        lacking = [f"{path}.{name}" for name in wanted if not given.get(name)]
        if lacking:
            self.missing(*lacking)

    def delivery(self, given: Mapping[str, Any] | None, path: str, config: Config) -> None:
        """A delivery specification."""
        if not given:
            return
        for name in ("backoffDelay", "timeout", "retryAfterMax"):
            if name not in given:
                continue
            try:
                if delivery.seconds(given[name]) <= 0 and name == "timeout":
                    self.invalid(given[name], f"{path}.{name}")
            except delivery.DurationError as error:
                self.invalid(given[name], f"{path}.{name}", str(error))
        if "retryAfterMax" in given and not config.feature("delivery-retryafter"):
            self._found.append(f"must not set the field(s): {path}.retryAfterMax")
        if (given.get("retry") or 0) < 0:
            self.invalid(given["retry"], f"{path}.retry")
        if sink := given.get("deadLetterSink"):
            self.destination(sink, f"{path}.deadLetterSink")

    def overrides(self, spec: Mapping[str, Any]) -> None:
        """``ceOverrides``."""
        for name in dig(spec, "ceOverrides", "extensions", default={}):
            if not _EXTENSION.fullmatch(name):
                self.invalid(name, "spec.ceOverrides.extensions", "keys MUST be lower case and alphanumeric")


Validate = Callable[[Object, Object | None, Findings, Config], None]


def broker(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Broker."""
    spec = obj.get("spec") or {}
    found.delivery(spec.get("delivery"), "spec.delivery", config)
    if reference := spec.get("config"):
        found.reference(reference, "spec.config")
    if old is None:
        return
    if spec.get("config") != (old.get("spec") or {}).get("config"):
        found.immutable("spec.config")
    now, before = (dig(one, "metadata", "annotations", BROKER_CLASS, default="") for one in (obj, old))
    if now != before and before:
        found.immutable(f"metadata.annotations.{BROKER_CLASS}")


def trigger(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Trigger."""
    spec = obj.get("spec") or {}
    if not spec.get("broker") and not spec.get("brokerRef"):
        found.missing("spec.broker")
    for name in dig(spec, "filter", "attributes", default={}):
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            found.invalid(
                name,
                "spec.filter.attributes",
                "Attribute name must start with a letter and can only contain lowercase alphanumeric",
            )
    _filters(spec, found)
    found.destination(spec.get("subscriber"), "spec.subscriber")
    found.delivery(spec.get("delivery"), "spec.delivery", config)
    if old is not None and spec.get("broker") != (old.get("spec") or {}).get("broker"):
        found.immutable("spec.broker")


def _filters(spec: Mapping[str, Any], found: Findings) -> None:
    for number, one in enumerate(spec.get("filters") or ()):
        try:
            filters.compile_filter(one)
        except (EventingError, AttributeError, TypeError) as error:  # nested dialects have no schema
            found.invalid(one, f"spec.filters[{number}]", str(error))


def channel(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Channel or InMemoryChannel."""
    spec = obj.get("spec") or {}
    if obj["kind"] == "Channel":
        template = spec.get("channelTemplate") or {}
        lacking = [f"spec.channelTemplate.{name}" for name in ("apiVersion", "kind") if not template.get(name)]
        if lacking:
            found.missing(*lacking)
        if old is not None and template != (old.get("spec") or {}).get("channelTemplate"):
            found.immutable("spec.channelTemplate")
    found.delivery(spec.get("delivery"), "spec.delivery", config)


def subscription(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Subscription."""
    spec = obj.get("spec") or {}
    if not spec.get("channel"):
        found.missing("spec.channel")
    else:
        found.reference(spec["channel"], "spec.channel")
    if not spec.get("subscriber") and not spec.get("reply"):
        found.missing("spec.reply", "spec.subscriber")
    for name in ("subscriber", "reply"):
        if spec.get(name):
            found.destination(spec[name], f"spec.{name}")
    found.delivery(spec.get("delivery"), "spec.delivery", config)
    if old is not None and spec.get("channel") != (old.get("spec") or {}).get("channel"):
        found.immutable("spec.channel")


def sequence(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Sequence."""
    spec = obj.get("spec") or {}
    if not spec.get("steps"):
        found.missing("spec.steps")
    for number, step in enumerate(spec.get("steps") or ()):
        found.destination(step, f"spec.steps[{number}]")
        found.delivery(step.get("delivery"), f"spec.steps[{number}].delivery", config)
    if spec.get("reply"):
        found.destination(spec["reply"], "spec.reply")


def parallel(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A Parallel."""
    spec = obj.get("spec") or {}
    if not spec.get("branches"):
        found.missing("spec.branches")
    for number, branch in enumerate(spec.get("branches") or ()):
        path = f"spec.branches[{number}]"
        found.destination(branch.get("subscriber"), f"{path}.subscriber")
        for name in ("filter", "reply"):
            if branch.get(name):
                found.destination(branch[name], f"{path}.{name}")
        found.delivery(branch.get("delivery"), f"{path}.delivery", config)
    if spec.get("reply"):
        found.destination(spec["reply"], "spec.reply")


def ping_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A PingSource."""
    spec = obj.get("spec") or {}
    line = spec.get("schedule") or ""
    if not line:
        found.missing("spec.schedule")
    else:
        try:
            schedule.parse(line)
        except schedule.ScheduleError as error:
            found.invalid(line, "spec.schedule", str(error))
    if zone := spec.get("timezone"):
        try:
            ZoneInfo(zone)
        except (KeyError, OSError, ValueError):
            found.invalid(zone, "spec.timezone", f"unknown time zone {zone}")
    if spec.get("data") and spec.get("dataBase64"):
        found.one_of("both", "spec.data", "spec.dataBase64")
    size = len(spec.get("data") or "")
    if encoded := spec.get("dataBase64"):
        try:
            size = len(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            found.invalid("<data>", "spec.dataBase64", "not base64")
    limit = config.ping_limit()
    if 0 <= limit < size:
        found.invalid(f"the dataSize of {size} bytes exceeds limit of {limit}.", "spec.data")
    _source(spec, found)


def api_server_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """An ApiServerSource."""
    spec = obj.get("spec") or {}
    if not spec.get("resources"):
        found.missing("spec.resources")
    for number, one in enumerate(spec.get("resources") or ()):
        lacking = [f"spec.resources[{number}].{name}" for name in ("apiVersion", "kind") if not one.get(name)]
        if lacking:
            found.missing(*lacking)
    _filters(spec, found)
    _source(spec, found)


def container_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A ContainerSource."""
    spec = obj.get("spec") or {}
    containers = dig(spec, "template", "spec", "containers", default=[])
    if not containers:
        found.missing("spec.template.spec.containers")
    for number, one in enumerate(containers):
        lacking = [f"spec.template.spec.containers[{number}].{name}" for name in ("name", "image") if not one.get(name)]
        if lacking:
            found.missing(*lacking)
    _source(spec, found)


def sink_binding(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A SinkBinding."""
    spec = obj.get("spec") or {}
    subject = spec.get("subject") or {}
    lacking = [f"spec.subject.{name}" for name in ("apiVersion", "kind") if not subject.get(name)]
    if lacking:
        found.missing(*lacking)
    if bool(subject.get("name")) == bool(subject.get("selector")):
        found.one_of("both" if subject.get("name") else "neither", "spec.subject.name", "spec.subject.selector")
    _source(spec, found)


def github_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A GitHubSource."""
    spec = obj.get("spec") or {}
    lacking = [f"spec.{name}" for name in ("ownerAndRepository", "eventTypes") if not spec.get(name)]
    if lacking:
        found.missing(*lacking)
    _source(spec, found)


def kafka_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A KafkaSource."""
    spec = obj.get("spec") or {}
    found.list_of(spec.get("bootstrapServers"), "spec.bootstrapServers")
    found.list_of(spec.get("topics"), "spec.topics")
    if int(spec.get("consumers", 1)) < 0:
        found.invalid(spec["consumers"], "spec.consumers")
    kind = dig(obj, "metadata", "labels", KAFKA_KEY_TYPE, default="string")
    if kind not in KEY_TYPES:
        found.invalid(kind, f"metadata.labels.{KAFKA_KEY_TYPE}", f"must be one of {', '.join(KEY_TYPES)}")
    found.delivery(spec.get("delivery"), "spec.delivery", config)
    _source(spec, found)
    if old is not None:
        before = old.get("spec") or {}
        for name in ("bootstrapServers", "topics", "consumerGroup", "initialOffset", "ordering", "net"):
            if spec.get(name) != before.get(name):
                found.immutable(f"spec.{name}")


def rocketmq_source(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A RocketMQSource."""
    spec = obj.get("spec") or {}
    if not spec.get("topic"):
        found.missing("spec.topic")
    if not spec.get("sink"):
        found.missing("spec.sink")
    _proxy(spec, found)


def job_sink(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A JobSink."""
    if not dig(obj, "spec", "job", "spec", "template", "spec", "containers"):
        found.missing("spec.job.spec.template.spec.containers")


def rocketmq_sink(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """A RocketMQSink."""
    spec = obj.get("spec") or {}
    if not spec.get("topic"):
        found.missing("spec.topic")
    _proxy(spec, found)


def event_type(obj: Object, old: Object | None, found: Findings, config: Config) -> None:
    """An EventType."""
    if not dig(obj, "spec", "type"):
        found.missing("spec.type")


def _proxy(spec: Mapping[str, Any], found: Findings) -> None:
    try:
        proxy_address(spec.get("namesrvAddr") or "")
    except ConnectionSettingsError as error:
        found.invalid(spec["namesrvAddr"], "spec.namesrvAddr", str(error))


def _source(spec: Mapping[str, Any], found: Findings) -> None:
    found.destination(spec.get("sink"), "spec.sink")
    found.overrides(spec)
