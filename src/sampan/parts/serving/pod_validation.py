"""What a revision may say of its pods: the part of a pod's spec that Knative takes, and what each feature flag adds to it.

A field that is not in a table here is refused, so that a manifest that passes here passes on a cluster.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from sampan.kube.objects import dig
from sampan.parts.serving.configmaps import Config, RevisionDefaults
from sampan.parts.serving.defaults import SECURE_PODS
from sampan.parts.serving.findings import Findings

RESERVED_PORTS = frozenset({8008, 8012, 8013, 8022, 9090, 9091})
RESERVED_ENV = frozenset({"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"})
RESERVED_PATHS = frozenset({"/", "/dev", "/dev/log"})
MOST_ID = 2**31 - 1
"""The highest user and group number."""
INT32 = 2**31 - 1
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NO_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    f"with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_IMAGE = re.compile(
    r"([a-zA-Z0-9]([-a-zA-Z0-9._]*[a-zA-Z0-9])?(:[0-9]+)?/)?[a-z0-9_./-]+(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?"
)
_POD = frozenset(
    {
        "containers",
        "serviceAccountName",
        "volumes",
        "imagePullSecrets",
        "enableServiceLinks",
        "automountServiceAccountToken",
        "containerConcurrency",
        "timeoutSeconds",
        "responseStartTimeoutSeconds",
        "idleTimeoutSeconds",
        "initContainers",
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
    "secret": ("", ""),
    "configMap": ("", ""),
    "projected": ("", ""),
    "emptyDir": ("kubernetes.podspec-volumes-emptydir", "EmptyDir"),
    "persistentVolumeClaim": ("kubernetes.podspec-persistent-volume-claim", "Persistent volume claim"),
    "hostPath": ("kubernetes.podspec-volumes-hostpath", "HostPath"),
    "csi": ("kubernetes.podspec-volumes-csi", "CSI"),
    "image": ("kubernetes.podspec-volumes-image", "Image"),
    "ephemeral": ("kubernetes.podspec-volumes-ephemeral", "Ephemeral"),
}
"""By source: the feature that allows it, and its name in words."""
_WRITABLE = ("emptyDir", "persistentVolumeClaim", "ephemeral")
_PROJECTIONS = ("secret", "configMap", "serviceAccountToken", "downwardAPI")
_CONTAINER = frozenset(
    {
        "name",
        "args",
        "command",
        "env",
        "workingDir",
        "envFrom",
        "image",
        "imagePullPolicy",
        "livenessProbe",
        "ports",
        "readinessProbe",
        "resources",
        "securityContext",
        "startupProbe",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "volumeMounts",
    }
)
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("httpGet", "tcpSocket", "exec", "grpc")
_PROBE = frozenset(
    {
        *_HANDLERS,
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
        "terminationGracePeriodSeconds",
    }
)
_SECURITY = frozenset(
    {
        "capabilities",
        "readOnlyRootFilesystem",
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "allowPrivilegeEscalation",
        "seccompProfile",
    }
)
_POD_SECURITY = frozenset(
    {"runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "seccompProfile"}
)
_MOUNT = frozenset({"name", "readOnly", "mountPath", "subPath", "mountPropagation"})

Spec = Mapping[str, Any]


def revision_spec(spec: Spec, path: str, config: Config, found: Findings) -> None:
    """A revision's spec, or a template's."""
    secure = _secure(config)
    flagged = {field for field, flag in _FLAGGED.items() if _allows(config, flag)}
    found.only(spec, _POD | flagged | ({"securityContext"} if secure else set()), path)
    if spec.get("automountServiceAccountToken"):
        found.forbidden(f"{path}.automountServiceAccountToken")
    account = spec.get("serviceAccountName") or ""
    if account and not (re.fullmatch(_SUBDOMAIN, account) and len(account) <= 253):
        found.invalid(account, f"{path}.serviceAccountName", _NO_SUBDOMAIN)
    # who has the profile's settings by default may say another seccomp profile for all containers at once
    fields = _POD_SECURITY if "securityContext" in flagged or not secure else frozenset({"seccompProfile"})
    _pod_security(spec.get("securityContext") or {}, fields, f"{path}.securityContext", found)
    _timeouts(spec, path, config.defaults(), found)
    containers, first = spec.get("containers") or [], spec.get("initContainers") or []
    volumes = _volumes(spec, path, {*_mounted(containers), *_mounted(first)}, config, found)
    _init_containers(first, containers, path, volumes, config, found)
    _containers(containers, path, volumes, config, found)


def _allows(config: Config, flag: str) -> bool:
    return config.feature(flag) != "disabled"


def _secure(config: Config) -> bool:
    """Containers have the settings of the ``restricted`` profile by default."""
    return config.feature(SECURE_PODS) in ("enabled", "allowrootbounded")


def _timeouts(spec: Spec, path: str, settings: RevisionDefaults, found: Findings) -> None:
    concurrency = spec.get("containerConcurrency") or 0
    if not 0 <= concurrency <= settings.container_concurrency_limit:
        found.bounds(concurrency, 0, settings.container_concurrency_limit, f"{path}.containerConcurrency")
    elif not concurrency and not settings.concurrency_may_be_zero:
        found.bounds(concurrency, 1, settings.container_concurrency_limit, f"{path}.containerConcurrency")
    timeout = spec.get("timeoutSeconds") or 0
    if not 0 <= timeout <= settings.max_timeout:
        found.bounds(timeout, 0, settings.max_timeout, f"{path}.timeoutSeconds")
    for field in ("responseStartTimeoutSeconds", "idleTimeoutSeconds"):
        value = spec.get(field)
        if value is not None and not 0 <= value <= (timeout or settings.max_timeout):
            found.bounds(value, 0, timeout, f"{path}.{field}")


def _pod_security(context: Spec, fields: frozenset[str], path: str, found: Findings) -> None:
    found.only(context, fields, path)
    _ids(context, ("runAsUser", "runAsGroup", "fsGroup"), path, found)
    for position, group in enumerate(context.get("supplementalGroups") or ()):
        if not 0 <= group <= MOST_ID:
            found.bounds(group, 0, MOST_ID, f"{path}.supplementalGroups[{position}]")


def _ids(context: Spec, fields: tuple[str, ...], path: str, found: Findings) -> None:
    for field in fields:
        number = context.get(field)
        if number is not None and not 0 <= number <= MOST_ID:
            found.bounds(number, 0, MOST_ID, f"{path}.{field}")


# -- volumes


def _mounted(containers: list[Spec]) -> set[str]:
    return {mount.get("name", "") for one in containers for mount in one.get("volumeMounts") or ()}


def _volumes(spec: Spec, path: str, mounted: set[str], config: Config, found: Findings) -> dict[str, Spec]:
    """Check the volumes; by name."""
    volumes: dict[str, Spec] = {}
    for position, volume in enumerate(spec.get("volumes") or ()):
        here, name = f"{path}.volumes[{position}]", volume.get("name") or ""
        if not name:
            found.missing(f"{here}.name")
        elif not _DNS_LABEL.fullmatch(name):
            found.invalid(name, f"{here}.name")
        if name in volumes:
            found.add(f'duplicate volume name "{name}"', f"{here}.name")
        if name not in mounted:
            found.add(f'volume with name "{name}" not mounted', f"{here}.name")
        _volume(volume, name, here, config, found)
        volumes[name] = volume
    return volumes


def _volume(volume: Spec, name: str, here: str, config: Config, found: Findings) -> None:
    sources = [one for one in volume if one != "name" and volume[one] is not None]
    for source in sources:
        if source not in _VOLUMES:
            found.forbidden(f"{here}.{source}")
            continue
        flag, words = _VOLUMES[source]
        if flag and not _allows(config, flag):
            claimed = source == "persistentVolumeClaim"
            what = f"persistent volume claim {volume[source].get('claimName')}" if claimed else f"{words} volume {name}"
            found.add(f"{words}{'' if claimed else ' volume'} support is disabled, but found {what}")
    claim = volume.get("persistentVolumeClaim")
    if claim and not claim.get("readOnly") and not _allows(config, "kubernetes.podspec-persistent-volume-write"):
        text = f"but found persistent volume claim {claim.get('claimName')} that is not read-only"
        found.add(f"Persistent volume write support is disabled, {text}")
    known = [one for one in sources if one in _VOLUMES]
    if not sources:
        offered = (one for one, (flag, _) in _VOLUMES.items() if not flag or _allows(config, flag))
        found.add("expected exactly one, got neither", *(f"{here}.{one}" for one in offered))
    elif len(known) > 1:
        found.add("expected exactly one, got both", *(f"{here}.{one}" for one in known))
    for source in ("secret", "configMap"):
        _items((volume.get(source) or {}).get("items"), f"{here}.items", found)
    medium = dig(volume, "emptyDir", "medium") or ""
    if medium not in ("", "Memory"):
        found.invalid(medium, f"{here}.emptyDir.medium")
    for position, one in enumerate(dig(volume, "projected", "sources", default=[])):
        _projection(one, f"{here}.projected[{position}]", found)


def _projection(one: Spec, here: str, found: Findings) -> None:
    chosen = [name for name in _PROJECTIONS if one.get(name) is not None]
    found.only(one, frozenset(_PROJECTIONS), here)
    if len(chosen) != 1:
        what = "both" if chosen else "neither"
        found.add(f"expected exactly one, got {what}", *(f"{here}.{name}" for name in chosen or _PROJECTIONS))
    for source in ("secret", "configMap"):
        if one.get(source) is not None:
            if not one[source].get("name"):
                found.missing(f"{here}.{source}.name")
            _items(one[source].get("items"), f"{here}.{source}.items", found)
    token = one.get("serviceAccountToken")
    if token is not None and not token.get("path"):
        found.missing(f"{here}.serviceAccountToken.path")


def _items(items: list[Spec] | None, path: str, found: Findings) -> None:
    for position, item in enumerate(items or ()):
        for field in ("key", "path"):
            if not item.get(field):
                found.missing(f"{path}[{position}].{field}")


# -- containers


def _init_containers(
    first: list[Spec], others: list[Spec], path: str, volumes: Mapping[str, Spec], config: Config, found: Findings
) -> None:
    if not first:
        return
    if not _allows(config, "kubernetes.podspec-init-containers"):
        found.forbidden(f"{path}.initContainers")
        found.add(f"pod spec support for init-containers is off, but found {len(first)} init containers")
        return
    names = {one.get("name") for one in others}
    for position, container in enumerate(first):
        here = f"{path}.initContainers[{position}]"
        if container.get("name") in names:
            found.add(f'duplicate container name "{container["name"]}"', f"{here}.name")
        names.add(container.get("name"))
        for field in (*_PROBES, "lifecycle"):
            if container.get(field) is not None:
                found.add("field not allowed in an init container", f"{here}.{field}")
        for port in container.get("ports") or ():
            _port(port, f"{here}.ports", found)
        _container(container, here, volumes, config, found, reserved=RESERVED_ENV - {"PORT"})


def _containers(
    containers: list[Spec], path: str, volumes: Mapping[str, Spec], config: Config, found: Findings
) -> None:
    if not containers:
        found.missing(f"{path}.containers")
    ports = sum(len(one.get("ports") or ()) for one in containers)
    if len(containers) > 1 and not ports:
        found.missing(f"{path}.containers[*].ports")
    if ports > 1:
        found.add("more than one container port is set", f"{path}.containers[*].ports")
    if len(containers) > 1 and not _allows(config, "multi-container"):
        found.add(f"multi-container is off, but found {len(containers)} containers")
    names: set[str] = set()
    for position, container in enumerate(containers):
        here = f"{path}.containers[{position}]"
        serving = len(containers) == 1 or bool(container.get("ports"))
        name = container.get("name") or ""
        if name in names and name:
            found.add(f'duplicate container name "{name}"', f"{here}.name")
        names.add(name)
        if serving:
            port_name = dig(container, "ports", 0, "name") or "http"
            _probes(container, here, found, port_name=port_name)
            for port in (container.get("ports") or ())[:1]:
                _user_port(port, f"{here}.ports", found)
        elif _allows(config, "multi-container-probing"):
            _probes(container, here, found, port_name=None)
        else:
            for kind in _PROBES:
                found.only(container.get(kind), frozenset(), f"{here}.{kind}")
        reserved = RESERVED_ENV if serving else RESERVED_ENV - {"PORT"}
        _container(container, here, volumes, config, found, reserved=reserved)


def _container(
    container: Spec,
    here: str,
    volumes: Mapping[str, Spec],
    config: Config,
    found: Findings,
    *,
    reserved: frozenset[str],
) -> None:
    found.only(container, _CONTAINER | {"lifecycle"}, here)
    if container.get("lifecycle") is not None:
        found.forbidden(f"{here}.lifecycle")
    if container.get("name") == "queue-proxy":
        found.add('"queue-proxy" is a reserved container name', f"{here}.name")
    image = container.get("image") or ""
    if not image:
        found.missing(f"{here}.image")
    elif not _IMAGE.fullmatch(image):
        details = f'image: "{image}", error: could not parse reference: {image}'
        found.add("Failed to parse image reference", f"{here}.image", details=details)
    _environment(container, here, config, found, reserved)
    found.only(container.get("resources"), frozenset({"limits", "requests"}), f"{here}.resources")
    _security(container.get("securityContext") or {}, f"{here}.securityContext", config, found)
    policy = container.get("terminationMessagePolicy") or ""
    if policy not in ("", "File", "FallbackToLogsOnError"):
        found.invalid(policy, f"{here}.terminationMessagePolicy")
    _mounts(container.get("volumeMounts") or [], f"{here}.volumeMounts", volumes, config, found)


def _environment(container: Spec, here: str, config: Config, found: Findings, reserved: frozenset[str]) -> None:
    sources = {"configMapKeyRef", "secretKeyRef"}
    if _allows(config, "kubernetes.podspec-fieldref"):
        sources |= {"fieldRef", "resourceFieldRef"}
    for position, variable in enumerate(container.get("env") or ()):
        place = f"{here}.env[{position}]"
        name = variable.get("name") or ""
        if not name:
            found.missing(f"{place}.name")
        elif name in reserved:
            found.add(f'"{name}" is a reserved environment variable', f"{place}.name")
        found.only(variable.get("valueFrom"), frozenset(sources), f"{place}.valueFrom")
    for position, source in enumerate(container.get("envFrom") or ()):
        place = f"{here}.envFrom[{position}]"
        chosen = [name for name in ("configMapRef", "secretRef") if source.get(name) is not None]
        if len(chosen) != 1:
            what = "both" if chosen else "neither"
            found.add(f"expected exactly one, got {what}", f"{place}.configMapRef", f"{place}.secretRef")


def _security(context: Spec, path: str, config: Config, found: Findings) -> None:
    found.only(context, _SECURITY, path)
    _ids(context, ("runAsUser", "runAsGroup"), path, found)
    added = dig(context, "capabilities", "add") or []
    needed = _secure(config) and added == ["NET_BIND_SERVICE"]
    allowed = needed or _allows(config, "kubernetes.containerspec-addcapabilities")
    if added and not allowed:
        found.forbidden(f"{path}.capabilities.add")


def _mounts(mounts: list[Spec], path: str, volumes: Mapping[str, Spec], config: Config, found: Findings) -> None:
    taken: set[str] = set()
    for position, mount in enumerate(mounts):
        here = f"{path}[{position}]"
        found.only(mount, _MOUNT, here)
        volume = volumes.get(mount.get("name", ""))
        if volume is None:
            found.add("volumeMount has no matching volume", f"{here}.name")
        target = posixpath.normpath(mount["mountPath"]) if mount.get("mountPath") else ""
        if not target:
            found.missing(f"{here}.mountPath")
        elif target in RESERVED_PATHS:
            found.add(f'mountPath "{target}" is a reserved path', f"{here}.mountPath")
        elif not target.startswith("/"):
            found.invalid(mount["mountPath"], f"{here}.mountPath")
        elif target in taken:
            found.invalid(f'"{mount["mountPath"]}" must be unique', f"{here}.mountPath")
        taken.add(target)
        if volume is not None and not mount.get("readOnly"):
            if not any(source in volume for source in _WRITABLE):
                found.add("volume mount should be readOnly for this type of volume", f"{here}.readOnly")
            elif dig(volume, "persistentVolumeClaim", "readOnly"):
                found.add("volume is readOnly but volume mount is not", f"{here}.readOnly")
        spread = mount.get("mountPropagation")
        if spread is not None:
            if not _allows(config, "kubernetes.podspec-volumes-mount-propagation"):
                text = f"but found volume mount {mount.get('name')} with mount propagation"
                found.add(f"Volume Mount Propagation support is disabled, {text}")
            if spread not in ("None", "HostToContainer"):
                found.add("mount propagation should be set to None or HostToContainer", f"{here}.mountPropagation")


def _user_port(port: Spec, path: str, found: Findings) -> None:
    _port(port, path, found)
    if port.get("protocol") not in (None, "", "TCP"):
        found.invalid(port["protocol"], f"{path}.protocol")
    if port.get("name") not in (None, "", "http1", "h2c"):
        text = f"Port name {port['name']} is not allowed"
        found.add(text, path, details="Name must be empty, or one of: 'h2c', 'http1'")


def _port(port: Spec, path: str, found: Findings) -> None:
    for field in ("hostPort", "hostIP"):
        if port.get(field):
            found.forbidden(f"{path}.{field}")
    number = port.get("containerPort") or 0
    if number in RESERVED_PORTS:
        text = f"{number} is a reserved port"
        found.invalid(text, f"{path}.containerPort", f"{text}, please use a different value")
    elif not 0 <= number <= 65535:
        found.bounds(number, 0, 65535, f"{path}.containerPort")


# -- probes


def _probes(container: Spec, here: str, found: Findings, *, port_name: str | None) -> None:
    """``port_name``: of the serving container's port, None for another container."""
    for kind in _PROBES:
        probe = container.get(kind)
        if probe is None:
            continue
        _probe(probe, f"{here}.{kind}", found, port_name)
        if kind == "readinessProbe":
            _readiness(probe, f"{here}.{kind}", found)


def _probe(probe: Spec, path: str, found: Findings, port_name: str | None) -> None:
    found.only(probe, _PROBE, path)
    handlers = [name for name in _HANDLERS if probe.get(name) is not None]
    if not handlers:
        found.add("expected exactly one, got neither", *(f"{path}.{name}" for name in _HANDLERS))
    elif len(handlers) > 1:
        found.add("expected exactly one, got both", *(f"{path}.{name}" for name in handlers))
    for name in ("httpGet", "tcpSocket"):
        port = (probe.get(name) or {}).get("port")
        if name not in handlers:
            continue
        if port_name is None:
            if not port:
                found.invalid(port or 0, f"{path}.{name}.port", "Probe port must be specified")
        elif isinstance(port, str) and port and not port.isdecimal() and port != port_name:
            found.invalid(port, f"{path}.{name}.port", "Probe port must match container port")


def _readiness(probe: Spec, path: str, found: Findings) -> None:
    period = probe.get("periodSeconds") or 0
    for field in ("periodSeconds", "initialDelaySeconds"):
        if (probe.get(field) or 0) < 0:
            found.bounds(probe[field], 0, INT32, f"{path}.{field}")
    if (probe.get("successThreshold") or 0) < 1:
        found.bounds(probe.get("successThreshold") or 0, 1, INT32, f"{path}.successThreshold")
    for field in ("failureThreshold", "timeoutSeconds"):
        value = probe.get(field) or 0
        if not period and value:
            found.add(f"{field} is disallowed when periodSeconds is zero", f"{path}.{field}")
        elif period and value < 1:
            found.bounds(value, 1, INT32, f"{path}.{field}")
