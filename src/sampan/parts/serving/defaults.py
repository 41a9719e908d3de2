"""What Knative's defaulting webhook fills in."""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object, copy, dig
from sampan.parts.serving import keys
from sampan.parts.serving.configmaps import RevisionDefaults


def default_service(service: Object, old: Object | None, user: str, settings: RevisionDefaults) -> None:
    """A Service, in place."""
    _annotate(service, old, user)
    spec = service.setdefault("spec", {})
    _default_template(service, old, settings)
    if not spec.get("traffic"):
        spec["traffic"] = [{"percent": 100, "latestRevision": True}]
    _default_traffic(spec["traffic"])


def default_configuration(configuration: Object, old: Object | None, user: str, settings: RevisionDefaults) -> None:
    """A Configuration, in place."""
    if not configuration["metadata"].get("ownerReferences"):
        _annotate(configuration, old, user)
    _default_template(configuration, old, settings)


def default_route(route: Object, old: Object | None, user: str) -> None:
    """A Route, in place."""
    if not route["metadata"].get("ownerReferences"):
        _annotate(route, old, user)
    _default_traffic(route.setdefault("spec", {}).setdefault("traffic", []))


def default_revision_spec(spec: Object, settings: RevisionDefaults, *, create: bool) -> None:
    """A revision's spec, in place."""
    if not spec.get("timeoutSeconds"):
        spec["timeoutSeconds"] = settings.timeout
    if not spec.get("responseStartTimeoutSeconds") and 0 < settings.response_start_timeout < spec["timeoutSeconds"]:
        spec["responseStartTimeoutSeconds"] = settings.response_start_timeout
    if not spec.get("idleTimeoutSeconds") and 0 < settings.idle_timeout < spec["timeoutSeconds"]:
        spec["idleTimeoutSeconds"] = settings.idle_timeout
    if spec.get("containerConcurrency") is None:
        spec["containerConcurrency"] = settings.container_concurrency
    if create and spec.get("enableServiceLinks") is None:
        spec["enableServiceLinks"] = False
    containers = spec.get("containers") or []
    _name(containers, "user-container")
    _name(spec.get("initContainers") or [], "init-container")
    writable = {
        volume["name"]
        for volume in spec.get("volumes") or ()
        if {"emptyDir", "persistentVolumeClaim", "ephemeral"} & volume.keys()
    }
    for container in containers:
        _default_container(container, settings, writable, serving=len(containers) == 1 or bool(container.get("ports")))


def _name(containers: list[Object], base: str) -> None:
    unnamed = [one for one in containers if not one.get("name")]
    for position, container in enumerate(containers):
        if not container.get("name"):
            container["name"] = base if len(unnamed) == 1 and len(containers) == 1 else f"{base}-{position}"


def _default_container(container: Object, settings: RevisionDefaults, writable: set[str], *, serving: bool) -> None:
    resources = container.setdefault("resources", {})
    for kind, amounts in settings.resources.items():
        for name, amount in amounts.items():
            resources.setdefault(kind, {}).setdefault(name, amount)
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") not in writable:
            mount["readOnly"] = True
    if serving:
        _default_probe(container.setdefault("readinessProbe", {}))
    elif container.get("readinessProbe"):
        _default_probe(container["readinessProbe"])


def _default_probe(probe: Object) -> None:
    if not {"httpGet", "tcpSocket", "exec", "grpc"} & probe.keys():
        probe["tcpSocket"] = {"port": 0}
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")
    if not probe.get("successThreshold"):
        probe["successThreshold"] = 1
    if probe.get("periodSeconds"):
        probe.setdefault("failureThreshold", 3)
        probe.setdefault("timeoutSeconds", 1)


def _default_template(obj: Object, old: Object | None, settings: RevisionDefaults) -> None:
    """The template. One with an explicit name that stays must stay byte for byte; so a manifest that is applied once more, without
    what was filled in before, becomes what it was (whether it says something else is for validation to find).
    """
    spec = obj.setdefault("spec", {})
    if not _keeps_named_template(obj, old):
        default_revision_spec(_template_spec(spec), settings, create=old is None)
        return
    assert old is not None
    filled, before = copy(spec["template"]), copy(old["spec"]["template"])
    for one in (filled, before):
        default_revision_spec(one.setdefault("spec", {}), settings, create=True)
    if filled == before:
        spec["template"] = copy(old["spec"]["template"])


def _template_spec(spec: Object) -> Object:
    template = spec.setdefault("template", {})
    found: Object = template.setdefault("spec", {})
    return found


def _default_traffic(traffic: list[Object]) -> None:
    for target in traffic:
        if target.get("latestRevision") is None:
            target["latestRevision"] = not target.get("revisionName")


def _keeps_named_template(obj: Object, old: Object | None) -> bool:
    """An explicitly named template whose name did not change stays byte for byte."""
    if old is None:
        return False
    name = dig(obj, "spec", "template", "metadata", "name")
    return bool(name) and name == dig(old, "spec", "template", "metadata", "name")


def _annotate(obj: Object, old: Object | None, user: str) -> None:
    """creator and lastModifier; an update that leaves the spec alone keeps both."""
    annotations: dict[str, Any] = obj["metadata"].setdefault("annotations", {})
    if old is None:
        annotations[keys.CREATOR] = annotations[keys.LAST_MODIFIER] = user
        return
    before = old["metadata"].get("annotations") or {}
    if copy(old.get("spec")) != obj.get("spec"):
        annotations[keys.LAST_MODIFIER] = user
    elif keys.LAST_MODIFIER in before:
        annotations[keys.LAST_MODIFIER] = before[keys.LAST_MODIFIER]
