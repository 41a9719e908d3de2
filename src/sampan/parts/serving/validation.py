"""What Knative's validating webhook refuses, in its words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.parts.serving import keys
from sampan.parts.serving.autoscaling import settings as autoscaling
from sampan.parts.serving.autoscaling.settings import ClusterSettings, SettingError
from sampan.parts.serving.configmaps import PARSERS, Config
from sampan.parts.serving.findings import Findings, denied
from sampan.parts.serving.pod_validation import revision_spec

CONFIG_WEBHOOK = "config.webhook.serving.knative.dev"
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def service(obj: Object, old: Object | None, config: Config) -> None:
    """A Service."""
    found = Findings()
    _metadata(obj, old, found)
    _template(obj, old, config, found)
    _traffic(obj["spec"].get("traffic") or [], found, in_service=True)
    found.check()


def configuration(obj: Object, old: Object | None, config: Config) -> None:
    """A Configuration."""
    found = Findings()
    _metadata(obj, old, found)
    _template(obj, old, config, found)
    found.check()


def route(obj: Object, old: Object | None, config: Config) -> None:
    """A Route."""
    found = Findings()
    _metadata(obj, old, found)
    _traffic(obj["spec"].get("traffic") or [], found, in_service=False)
    found.check()


def revision(obj: Object, old: Object | None, config: Config) -> None:
    """A Revision: its spec never changes."""
    found = Findings()
    if old is not None and obj.get("spec") != old.get("spec"):
        found.add("Immutable fields changed (-old +new)", "spec")
    elif old is None:
        revision_spec(obj.get("spec") or {}, "spec", config, found)
        _autoscaling(obj, "metadata", config, found)
    found.check()


def domain_mapping(obj: Object, old: Object | None, config: Config) -> None:
    """A DomainMapping."""
    found = Findings()
    name = obj["metadata"].get("name") or ""
    if obj["metadata"].get("generateName"):
        found.forbidden("metadata.generateName")
    elif "." not in name:
        found.invalid(
            f"not a DNS 1123 subdomain: {name}",
            "metadata.name",
            "should be a domain with at least two segments separated by dots",
        )
    elif name.endswith(".svc.cluster.local") or name == "svc.cluster.local":
        found.invalid(f"domain name {name!r} may not be under cluster domain 'cluster.local'", "metadata.name")
    reference = dig(obj, "spec", "ref", default={})
    for field in ("kind", "name", "apiVersion"):
        if not reference.get(field):
            found.missing(f"spec.ref.{field}")
    if reference.get("namespace") not in (None, "", obj["metadata"].get("namespace")):
        found.invalid(
            reference["namespace"],
            "spec.ref.namespace",
            f'Ref namespace must be empty or equal to the domain mapping namespace "{obj["metadata"].get("namespace")}"',
        )
    found.check()


def config_map(obj: Object) -> None:
    """A ConfigMap of ``knative-serving``."""
    parse = PARSERS.get(obj["metadata"].get("name") or "")
    data = {key: value for key, value in (obj.get("data") or {}).items() if key != "_example"}
    if parse is None:
        return
    try:
        parse(data)
    except (ValueError, SettingError) as error:
        raise denied(f"validation failed: {error}", CONFIG_WEBHOOK) from error


# -- shared


def _metadata(obj: Object, old: Object | None, found: Findings) -> None:
    annotations = obj["metadata"].get("annotations") or {}
    misplaced = [key for key in annotations if key.startswith(autoscaling.PREFIX)]
    for key in misplaced:
        found.invalid(
            f"invalid key name {key!r}",
            f"metadata.annotations.{key}",
            "autoscaling annotations must be put under spec.template.metadata.annotations to work",
        )
    if old is None:
        return
    before = old["metadata"].get("annotations") or {}
    if annotations.get(keys.CREATOR) != before.get(keys.CREATOR):
        found.add("annotation value is immutable", f"metadata.annotations.{keys.CREATOR}")


def _template(obj: Object, old: Object | None, config: Config, found: Findings) -> None:
    template = dig(obj, "spec", "template", default={})
    name = dig(template, "metadata", "name")
    parent = obj["metadata"].get("name") or ""
    path = "spec.template.metadata.name"
    if name:
        if obj["metadata"].get("generateName"):
            found.forbidden(path)
        elif not name.startswith(f"{parent}-"):
            found.invalid(
                f'"{name}" must have prefix "{parent}-"' if not name.startswith(parent) else name,
                path,
                f'The name must have prefix "{parent}-"',
            )
        elif not _LABEL.fullmatch(name):
            found.invalid(f"not a DNS 1035 label: {name}", path)
        elif (
            old is not None
            and dig(old, "spec", "template", "metadata", "name") == name
            and dig(old, "spec", "template") != template
        ):
            found.add("Saw the following changes without a name change (-old +new)", path)
    revision_spec(template.get("spec") or {}, "spec.template.spec", config, found)
    _autoscaling(template, "spec.template.metadata", config, found)


def _autoscaling(template: Mapping[str, Any], path: str, config: Config, found: Findings) -> None:
    annotations = dig(template, "metadata", "annotations", default={})
    chosen = annotations.get(autoscaling.PREFIX + "class", "")
    known = (autoscaling.KPA, autoscaling.HPA, autoscaling.PPA)
    if chosen.endswith(".knative.dev") and chosen not in known:
        found.invalid(
            chosen,
            f"{path}.annotations.{autoscaling.PREFIX}class",
            'Unknown or unsupported class, allowed are "kpa.autoscaling.knative.dev" and "hpa.autoscaling.knative.dev"',
        )
        return
    try:
        cluster = config.autoscaler()
    except SettingError:
        cluster = ClusterSettings()
    try:
        concurrency = int(dig(template, "spec", "containerConcurrency", default=0))
        autoscaling.read(annotations, concurrency, cluster)
    except SettingError as error:
        found.add(error.why, f"{path}.annotations.{error.key}")


def _traffic(traffic: list[Mapping[str, Any]], found: Findings, *, in_service: bool) -> None:
    if not traffic and not in_service:
        found.missing("spec.traffic")
        return
    total = 0
    tags: dict[str, int] = {}
    for position, target in enumerate(traffic):
        here = f"spec.traffic[{position}]"
        percent = target.get("percent")
        if percent is not None:
            if not 0 <= percent <= 100:
                found.bounds(percent, 0, 100, f"{here}.percent")
            total += percent
        if target.get("url"):
            found.forbidden(f"{here}.url")
        tag = target.get("tag") or ""
        if tag:
            if tag in tags:
                found.add(f'Multiple definitions for "{tag}"', f"spec.traffic[{tags[tag]}].tag", f"{here}.tag")
            elif not _LABEL.fullmatch(tag):
                found.invalid(f"not a DNS 1035 label: {tag}", f"{here}.tag")
            tags[tag] = position
        named, configured = bool(target.get("revisionName")), bool(target.get("configurationName"))
        if in_service and configured:
            found.forbidden(f"{here}.configurationName")
        elif not in_service and named == configured:
            what = "expected exactly one, got both" if named else "expected exactly one, got neither"
            found.add(what, f"{here}.configurationName", f"{here}.revisionName")
        latest = target.get("latestRevision")
        if latest is not None and latest == named:
            found.invalid(
                str(latest).lower(),
                f"{here}.latestRevision",
                "may not set revisionName when latestRevision is true" if latest else "",
            )
    if traffic and total != 100:
        found.add(f"Traffic targets sum to {total}, want 100", "spec.traffic")
