"""What Knative's validating webhook refuses, in its words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.status import ApiError, bad_request
from sampan.parts.serving import keys
from sampan.parts.serving.autoscaling import settings as autoscaling
from sampan.parts.serving.autoscaling.settings import ClusterSettings, SettingError
from sampan.parts.serving.configmaps import PARSERS, Config, RevisionDefaults

WEBHOOK = "validation.webhook.serving.knative.dev"
CONFIG_WEBHOOK = "config.webhook.serving.knative.dev"
RESERVED_PORTS = frozenset({8008, 8012, 8013, 8022, 9090, 9091})
RESERVED_ENV = frozenset({"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"})
RESERVED_PATHS = frozenset({"/", "/dev", "/dev/log"})
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_ALWAYS_ALLOWED = frozenset(
    {
        "containers",
        "serviceAccountName",
        "serviceAccount",
        "volumes",
        "imagePullSecrets",
        "enableServiceLinks",
        "automountServiceAccountToken",
        "containerConcurrency",
        "timeoutSeconds",
        "responseStartTimeoutSeconds",
        "idleTimeoutSeconds",
    }
)
_FLAGGED = {
    "affinity": "kubernetes.podspec-affinity",
    "dnsConfig": "kubernetes.podspec-dnsconfig",
    "dnsPolicy": "kubernetes.podspec-dnspolicy",
    "hostAliases": "kubernetes.podspec-hostaliases",
    "hostIPC": "kubernetes.podspec-hostipc",
    "hostNetwork": "kubernetes.podspec-hostnetwork",
    "hostPID": "kubernetes.podspec-hostpid",
    "initContainers": "kubernetes.podspec-init-containers",
    "nodeSelector": "kubernetes.podspec-nodeselector",
    "priorityClassName": "kubernetes.podspec-priorityclassname",
    "runtimeClassName": "kubernetes.podspec-runtimeclassname",
    "schedulerName": "kubernetes.podspec-schedulername",
    "securityContext": "kubernetes.podspec-securitycontext",
    "shareProcessNamespace": "kubernetes.podspec-shareprocessnamespace",
    "tolerations": "kubernetes.podspec-tolerations",
    "topologySpreadConstraints": "kubernetes.podspec-topologyspreadconstraints",
}
_VOLUMES = {
    "secret": "",
    "configMap": "",
    "projected": "",
    "emptyDir": "kubernetes.podspec-volumes-emptydir",
    "persistentVolumeClaim": "kubernetes.podspec-persistent-volume-claim",
    "hostPath": "kubernetes.podspec-volumes-hostpath",
    "csi": "kubernetes.podspec-volumes-csi",
    "image": "kubernetes.podspec-volumes-image",
    "ephemeral": "kubernetes.podspec-volumes-ephemeral",
}


class Findings:
    """Problems collected with their field paths."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, why: str, *paths: str) -> None:
        self._found.append(f"{why}: {', '.join(paths)}" if paths else why)

    def missing(self, *paths: str) -> None:
        self.add("missing field(s)", *paths)

    def forbidden(self, *paths: str) -> None:
        self.add("must not set the field(s)", *paths)

    def invalid(self, value: Any, path: str, details: str = "") -> None:
        self.add(f"invalid value: {value}", path)
        if details:
            self._found[-1] += f"\n{details}"

    def bounds(self, value: float, low: float, high: float, path: str) -> None:
        self.add(f"expected {low} <= {value} <= {high}", path)

    def check(self) -> None:
        """Raises the webhook's denial when anything was found.

        Raises:
            ApiError: 400, as the API server words a webhook's denial.
        """
        if self._found:
            text = "\n".join(sorted(self._found))
            raise _denied(f"validation failed: {text}")


def _denied(message: str, webhook: str = WEBHOOK) -> ApiError:
    return bad_request(f'admission webhook "{webhook}" denied the request: {message}')


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
        _revision_spec(obj.get("spec") or {}, "spec", config, found)
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
        raise _denied(f"validation failed: {error}", CONFIG_WEBHOOK) from error


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
    _revision_spec(template.get("spec") or {}, "spec.template.spec", config, found)
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


def _revision_spec(spec: Mapping[str, Any], path: str, config: Config, found: Findings) -> None:
    for field in spec:
        if field in _ALWAYS_ALLOWED:
            continue
        flag = _FLAGGED.get(field)
        if flag is None or config.feature(flag) == "disabled":
            found.forbidden(f"{path}.{field}")
    if spec.get("automountServiceAccountToken"):
        found.forbidden(f"{path}.automountServiceAccountToken")
    settings = config.defaults()
    _timeouts(spec, path, settings, found)
    mounted = _containers(spec, path, found)
    seen: set[str] = set()
    for position, volume in enumerate(spec.get("volumes") or ()):
        here = f"{path}.volumes[{position}]"
        name = volume.get("name") or ""
        if not _LABEL.fullmatch(name) and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            found.invalid(name, f"{here}.name")
        if name in seen:
            found.add(f'duplicate volume name "{name}"', f"{here}.name")
        seen.add(name)
        sources = volume.keys() - {"name"}
        for source in sources:
            flag = _VOLUMES.get(source)
            if flag is None or (flag and config.feature(flag) == "disabled"):
                found.forbidden(f"{here}.{source}")
        if name and name not in mounted:
            found.add(f'volume with name "{name}" not mounted', f"{here}.name")
    for name in mounted - seen:
        found.add("volumeMount has no matching volume", f"{path}.containers[0].volumeMounts[0].name ({name})")


def _timeouts(spec: Mapping[str, Any], path: str, settings: RevisionDefaults, found: Findings) -> None:
    concurrency = spec.get("containerConcurrency") or 0
    if not 0 <= concurrency <= settings.container_concurrency_limit:
        found.bounds(concurrency, 0, settings.container_concurrency_limit, f"{path}.containerConcurrency")
    timeout = spec.get("timeoutSeconds") or 0
    if not 0 <= timeout <= settings.max_timeout:
        found.bounds(timeout, 0, settings.max_timeout, f"{path}.timeoutSeconds")
    for field in ("responseStartTimeoutSeconds", "idleTimeoutSeconds"):
        value = spec.get(field)
        if value is not None and not 0 <= value <= (timeout or settings.max_timeout):
            found.bounds(value, 0, timeout, f"{path}.{field}")


def _containers(spec: Mapping[str, Any], path: str, found: Findings) -> set[str]:
    """Check the containers; the names of mounted volumes."""
    containers = spec.get("containers") or []
    if not containers:
        found.missing(f"{path}.containers")
    with_ports = [one for one in containers if one.get("ports")]
    if len(containers) > 1 and not with_ports:
        found.missing(f"{path}.containers.ports")
    if len(with_ports) > 1:
        found.add("more than one container port is set", f"{path}.containers[*].ports")
    names: set[str] = set()
    mounted: set[str] = set()
    for position, container in enumerate(containers):
        here = f"{path}.containers[{position}]"
        serving = len(containers) == 1 or bool(container.get("ports"))
        name = container.get("name") or ""
        if name == "queue-proxy":
            found.add('"queue-proxy" is a reserved container name', f"{here}.name")
        if name in names and name:
            found.add(f'duplicate container name "{name}"', f"{here}.name")
        names.add(name)
        _container(container, here, found, serving=serving)
        mounted |= {mount.get("name", "") for mount in container.get("volumeMounts") or ()}
    for container in spec.get("initContainers") or ():
        mounted |= {mount.get("name", "") for mount in container.get("volumeMounts") or ()}
    return mounted


def _container(container: Mapping[str, Any], here: str, found: Findings, *, serving: bool) -> None:
    if not container.get("image"):
        found.missing(f"{here}.image")
    for field in ("lifecycle", "stdin", "stdinOnce", "tty", "volumeDevices"):
        if container.get(field):
            found.forbidden(f"{here}.{field}")
    if serving:
        for position, variable in enumerate(container.get("env") or ()):
            if variable.get("name") in RESERVED_ENV:
                found.add(f'"{variable["name"]}" is a reserved environment variable', f"{here}.env[{position}].name")
    _ports(container.get("ports") or [], here, found)
    paths: set[str] = set()
    for position, mount in enumerate(container.get("volumeMounts") or ()):
        target = (mount.get("mountPath") or "").rstrip("/") or "/"
        where = f"{here}.volumeMounts[{position}].mountPath"
        if not mount.get("mountPath"):
            found.missing(where)
        elif target in RESERVED_PATHS:
            found.add(f'mountPath "{target}" is a reserved path', where)
        elif not target.startswith("/"):
            found.invalid(mount["mountPath"], where)
        elif target in paths:
            found.invalid(f'"{target}" must be unique', where)
        paths.add(target)
    _probe(container.get("readinessProbe") or {}, f"{here}.readinessProbe", found)


def _ports(ports: Iterable[Mapping[str, Any]], here: str, found: Findings) -> None:
    listed = list(ports)
    if len(listed) > 1:
        found.add("more than one container port is set", f"{here}.ports")
    for port in listed[:1]:
        for field in ("hostPort", "hostIP"):
            if port.get(field):
                found.forbidden(f"{here}.ports[0].{field}")
        number = port.get("containerPort") or 0
        if number in RESERVED_PORTS:
            found.invalid(f"{number} is a reserved port", f"{here}.ports[0].containerPort")
        elif not 0 <= number <= 65535:
            found.bounds(number, 0, 65535, f"{here}.ports[0].containerPort")
        if port.get("protocol") not in (None, "", "TCP"):
            found.invalid(port["protocol"], f"{here}.ports[0].protocol")
        if port.get("name") not in (None, "", "http1", "h2c"):
            found.invalid(
                f"Port name {port['name']} is not allowed",
                f"{here}.ports[0].name",
                'Name must be empty, or one of: "h2c", "http1"',
            )


def _probe(probe: Mapping[str, Any], path: str, found: Findings) -> None:
    if not probe:
        return
    handlers = [name for name in ("httpGet", "tcpSocket", "exec", "grpc") if name in probe]
    if len(handlers) > 1:
        found.add("expected exactly one, got both", *(f"{path}.{name}" for name in handlers))
    if probe.get("successThreshold") is not None and probe["successThreshold"] < 1:
        found.bounds(probe["successThreshold"], 1, 2**31 - 1, f"{path}.successThreshold")
    if not probe.get("periodSeconds"):
        for field in ("failureThreshold", "timeoutSeconds"):
            if probe.get(field):
                found.forbidden(f"{path}.{field}")


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
