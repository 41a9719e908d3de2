"""What Knative's defaulting webhook fills in."""

from __future__ import annotations

from itertools import count
from typing import Any

from sampan.kube.objects import Object, copy, dig
from sampan.parts.serving import keys
from sampan.parts.serving.configmaps import RevisionDefaults
from sampan.parts.serving.names import child

LOW_PORTS = 1024


SECURE_PODS = "secure-pod-defaults"
"""The feature by which containers get the settings of the ``restricted`` profile."""


def default_service(
    service: Object, old: Object | None, user: str, settings: RevisionDefaults, secure: str = "disabled"
) -> None:
    """A Service, in place. ``secure``: the state of `SECURE_PODS`."""
    _annotate(service, old, user)
    spec = service.setdefault("spec", {})
    _default_template(service, old, settings, secure)
    if not spec.get("traffic"):
        spec["traffic"] = [{"percent": 100, "latestRevision": True}]
    _default_traffic(spec["traffic"])


def default_configuration(
    configuration: Object, old: Object | None, user: str, settings: RevisionDefaults, secure: str = "disabled"
) -> None:
    """A Configuration, in place."""
    if not configuration["metadata"].get("ownerReferences"):
        _annotate(configuration, old, user)
    _default_template(configuration, old, settings, secure)


def default_route(route: Object, old: Object | None, user: str) -> None:
    """A Route, in place."""
    if not route["metadata"].get("ownerReferences"):
        _annotate(route, old, user)
    _default_traffic(route.setdefault("spec", {}).setdefault("traffic", []))


def default_revision_spec(
    spec: Object, settings: RevisionDefaults, *, create: bool, secure: str = "disabled", parent: Object | None = None
) -> None:
    """A revision's spec, in place; ``parent`` is the metadata of the object that it is in."""
    if not spec.get("timeoutSeconds"):
        spec["timeoutSeconds"] = settings.timeout
    if spec.get("responseStartTimeoutSeconds") is None and 0 < settings.response_start_timeout < spec["timeoutSeconds"]:
        spec["responseStartTimeoutSeconds"] = settings.response_start_timeout
    if spec.get("idleTimeoutSeconds") is None and 0 < settings.idle_timeout < spec["timeoutSeconds"]:
        spec["idleTimeoutSeconds"] = settings.idle_timeout
    if spec.get("containerConcurrency") is None:
        spec["containerConcurrency"] = settings.container_concurrency
    if create and spec.get("enableServiceLinks") is None and settings.service_links is not None:
        spec["enableServiceLinks"] = settings.service_links
    containers, first = spec.get("containers") or [], spec.get("initContainers") or []
    taken = {one.get("name") for one in (*containers, *first)}
    _name(containers, _filled(settings.container_name, parent or {}), taken)
    _name(first, _filled(settings.init_container_name, parent or {}), taken)
    writable = {
        volume.get("name")
        for volume in spec.get("volumes") or ()
        if {"emptyDir", "persistentVolumeClaim", "ephemeral"} & volume.keys()
    }
    for container in containers:
        _default_container(container, settings, writable, serving=len(containers) == 1 or bool(container.get("ports")))
    if secure in ("enabled", "allowrootbounded"):
        for container in (*containers, *first):
            _secure(container, spec.get("securityContext") or {}, as_user=secure == "enabled")


def _filled(template: str, parent: Object) -> str:
    for word, value in (("Name", parent.get("name")), ("Namespace", parent.get("namespace"))):
        template = template.replace("{{." + word + "}}", value or "")
    return template


def _name(containers: list[Object], base: str, taken: set[str | None]) -> None:
    """Names for those without: numbered where there are several, never one that the user gave."""
    numbered = (child(base, f"-{number}") for number in count())
    for container in containers:
        if container.get("name"):
            continue
        alone = len(containers) == 1 and base not in taken
        container["name"] = base if alone else next(name for name in numbered if name not in taken)


def _secure(container: Object, pod: Object, *, as_user: bool) -> None:
    """What the ``restricted`` profile asks of a container and neither it nor its pod says."""
    context = container.setdefault("securityContext", {})
    context.setdefault("allowPrivilegeEscalation", False)
    if not (pod.get("seccompProfile") or {}).get("type") and not (context.get("seccompProfile") or {}).get("type"):
        context["seccompProfile"] = {**(context.get("seccompProfile") or {}), "type": "RuntimeDefault"}
    if context.get("capabilities") is None:
        context["capabilities"] = {"drop": ["ALL"]}
        if any((port.get("containerPort") or LOW_PORTS) < LOW_PORTS for port in container.get("ports") or ()):
            context["capabilities"]["add"] = ["NET_BIND_SERVICE"]
    if as_user and pod.get("runAsNonRoot") is None:
        context.setdefault("runAsNonRoot", True)


def _default_container(
    container: Object, settings: RevisionDefaults, writable: set[str | None], *, serving: bool
) -> None:
    resources = container.setdefault("resources", {})
    for kind, amounts in settings.resources.items():
        for name, amount in amounts.items():
            resources.setdefault(kind, {}).setdefault(name, amount)
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") not in writable:
            mount["readOnly"] = True
    if serving:
        probe = container.setdefault("readinessProbe", {})
        if not {"httpGet", "tcpSocket", "exec", "grpc"} & probe.keys():
            probe["tcpSocket"] = {"port": 0}
    if container.get("readinessProbe"):
        _default_probe(container["readinessProbe"])
    for kind in ("readinessProbe", "livenessProbe", "startupProbe"):
        if (asked := (container.get(kind) or {}).get("grpc")) is not None:
            asked.setdefault("service", "")


def _default_probe(probe: Object) -> None:
    if not probe.get("successThreshold"):
        probe["successThreshold"] = 1
    if probe.get("periodSeconds"):
        probe["failureThreshold"] = probe.get("failureThreshold") or 3
        probe["timeoutSeconds"] = probe.get("timeoutSeconds") or 1


def _default_template(obj: Object, old: Object | None, settings: RevisionDefaults, secure: str) -> None:
    """The template. One with an explicit name that stays must stay byte for byte; so a manifest that is applied once more, without
    what was filled in before, becomes what it was (whether it says something else is for validation to find).
    """
    spec = obj.setdefault("spec", {})
    if not _keeps_named_template(obj, old):
        template, parent = _template_spec(spec), obj["metadata"]
        default_revision_spec(template, settings, create=old is None, secure=secure, parent=parent)
        return
    assert old is not None
    filled, before = copy(spec["template"]), copy(old["spec"]["template"])
    for one in (filled, before):
        template = one.setdefault("spec", {})
        default_revision_spec(template, settings, create=True, secure=secure, parent=obj["metadata"])
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
