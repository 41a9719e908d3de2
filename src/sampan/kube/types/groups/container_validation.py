"""What the containers of a pod must satisfy: names, images, ports, environment, mounts, probes, resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names, quantity
from sampan.kube.types.problems import Problems

PROTOCOLS = ("TCP", "UDP", "SCTP")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
STANDARD_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage", "storage"})
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_FIELD_PATHS = frozenset(
    {
        "metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations", "spec.nodeName",
        "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
    }
)  # fmt: skip


def validate_containers(spec: Object, volumes: Mapping[str, Object], path: str, problems: Problems) -> None:
    """Init, ordinary and ephemeral containers of a pod spec."""
    containers = spec.get("containers") or ()
    if not containers:
        problems.required(f"{path}.containers")
    seen: set[str] = set()
    host_ports: set[tuple[Any, ...]] = set()
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            here, name = f"{path}.{field}[{index}]", container.get("name") or ""
            if not name:
                problems.required(f"{here}.name")
            else:
                problems.invalid_all(f"{here}.name", name, names.dns_label(name))
                if name in seen:
                    problems.duplicate(f"{here}.name", name)
                seen.add(name)
            _validate_container(container, volumes, here, problems)
            _validate_ports(
                container.get("ports") or (), host_ports if field == "containers" else set(), here, problems
            )
            sidecar = container.get("restartPolicy") == "Always"
            if field == "initContainers":
                policy = container.get("restartPolicy")
                if policy is not None and policy != "Always":
                    problems.unsupported(f"{here}.restartPolicy", policy, ("Always",))
                if not sidecar:
                    for probe in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe"):
                        if container.get(probe) is not None:
                            problems.forbidden(
                                f"{here}.{probe}", "may not be set for init containers without restartPolicy=Always"
                            )
            elif container.get("restartPolicy") is not None:
                problems.forbidden(f"{here}.restartPolicy", "may not be set for non-init containers")


def _validate_container(container: Object, volumes: Mapping[str, Object], path: str, problems: Problems) -> None:
    image = container.get("image") or ""
    if not image:
        problems.required(f"{path}.image")
    elif image != image.strip():
        problems.invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    problems.one_of(f"{path}.imagePullPolicy", container.get("imagePullPolicy"), PULL_POLICIES)
    policy = container.get("terminationMessagePolicy")
    problems.one_of(f"{path}.terminationMessagePolicy", policy, ("File", "FallbackToLogsOnError"))
    _validate_environment(container, path, problems)
    _validate_mounts(container, volumes, path, problems)
    validate_resources(container.get("resources") or {}, f"{path}.resources", problems)
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(field)
        if probe is not None:
            _validate_probe(probe, f"{path}.{field}", problems, once=field != "readinessProbe")
    for moment in ("postStart", "preStop"):
        handler = (container.get("lifecycle") or {}).get(moment)
        if handler is not None:
            _validate_handler(
                handler, f"{path}.lifecycle.{moment}", problems, ("exec", "httpGet", "tcpSocket", "sleep")
            )
    context = container.get("securityContext") or {}
    for field in ("runAsUser", "runAsGroup"):
        value = context.get(field)
        if value is not None and not 0 <= value <= 2**31 - 1:
            problems.invalid(f"{path}.securityContext.{field}", value, "must be between 0 and 2147483647, inclusive")
    if context.get("privileged") and context.get("allowPrivilegeEscalation") is False:
        why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        problems.invalid(f"{path}.securityContext", context, why)


def _validate_ports(ports: Sequence[Object], host_ports: set[tuple[Any, ...]], path: str, problems: Problems) -> None:
    seen: set[str] = set()
    for index, port in enumerate(ports):
        here = f"{path}.ports[{index}]"
        if name := port.get("name"):
            complaints = names.port_name(name)
            problems.invalid_all(f"{here}.name", name, complaints)
            if not complaints and name in seen:
                problems.duplicate(f"{here}.name", name)
            seen.add(name)
        number = port.get("containerPort")
        if not number:
            problems.required(f"{here}.containerPort")
        else:
            problems.invalid_all(f"{here}.containerPort", number, names.port_number(number))
        host = port.get("hostPort")
        if host:
            problems.invalid_all(f"{here}.hostPort", host, names.port_number(host))
            key = (port.get("protocol"), port.get("hostIP") or "", host)
            if key in host_ports:
                problems.duplicate(f"{here}.hostPort", f"{key[0]}/{key[1]}/{host}")
            host_ports.add(key)
        problems.one_of(f"{here}.protocol", port.get("protocol"), PROTOCOLS)


def _validate_environment(container: Object, path: str, problems: Problems) -> None:
    for index, variable in enumerate(container.get("env") or ()):
        here, name = f"{path}.env[{index}]", variable.get("name") or ""
        if not name:
            problems.required(f"{here}.name")
        else:
            problems.invalid_all(f"{here}.name", name, names.environment_name(name))
        source = variable.get("valueFrom")
        if source is None:
            continue
        given = [
            kind for kind in ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef") if source.get(kind)
        ]
        if variable.get("value"):
            problems.invalid(f"{here}.valueFrom", "", "may not be specified when `value` is not empty")
        elif len(given) != 1:
            why = (
                "may not have more than one field specified at a time"
                if given
                else "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
            )
            problems.invalid(f"{here}.valueFrom", "", why)
        for kind in ("configMapKeyRef", "secretKeyRef"):
            reference = source.get(kind)
            if reference is not None:
                for field in ("name", "key"):
                    if not reference.get(field):
                        problems.required(f"{here}.valueFrom.{kind}.{field}")
        if source.get("fieldRef"):
            _validate_field_path(source["fieldRef"].get("fieldPath") or "", f"{here}.valueFrom.fieldRef", problems)
    for index, source in enumerate(container.get("envFrom") or ()):
        here = f"{path}.envFrom[{index}]"
        given = [kind for kind in ("configMapRef", "secretRef") if source.get(kind) is not None]
        if not given:
            problems.invalid(here, "", "must specify one of: `configMapRef` or `secretRef`")
        elif len(given) > 1:
            problems.invalid(here, "", "may not have more than one field specified at a time")
        for kind in given:
            if not source[kind].get("name"):
                problems.required(f"{here}.{kind}.name")


def _validate_field_path(field: str, path: str, problems: Problems) -> None:
    if not field:
        problems.required(f"{path}.fieldPath")
        return
    base, bracket, rest = field.partition("[")
    if bracket:
        if base not in ("metadata.labels", "metadata.annotations") or not (
            rest.startswith("'") and rest.endswith("']")
        ):
            problems.invalid(
                f"{path}.fieldPath", field, "error converting fieldPath: field label does not support subscript"
            )
    elif field not in _FIELD_PATHS:
        why = f"error converting fieldPath: field label not supported: {field}"
        problems.invalid(f"{path}.fieldPath", field, why)
    elif field in ("metadata.labels", "metadata.annotations"):
        problems.unsupported(
            f"{path}.fieldPath", field, sorted(_FIELD_PATHS - {"metadata.labels", "metadata.annotations"})
        )


def _validate_mounts(container: Object, volumes: Mapping[str, Object], path: str, problems: Problems) -> None:
    places: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        here, name, place = f"{path}.volumeMounts[{index}]", mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            problems.required(f"{here}.name")
        elif name not in volumes:
            problems.not_found(f"{here}.name", name)
        if not place:
            problems.required(f"{here}.mountPath")
        elif place in places:
            problems.invalid(f"{here}.mountPath", place, "must be unique")
        places.add(place)
        for field in ("subPath", "subPathExpr"):
            value = mount.get(field) or ""
            if value.startswith("/"):
                problems.invalid(f"{here}.{field}", value, "must be a relative path")
            elif ".." in value.split("/"):
                problems.invalid(f"{here}.{field}", value, "must not contain '..'")
        if mount.get("subPath") and mount.get("subPathExpr"):
            problems.invalid(
                f"{here}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"
            )
        propagation = mount.get("mountPropagation")
        if propagation:
            problems.one_of(f"{here}.mountPropagation", propagation, ("Bidirectional", "HostToContainer", "None"))


def validate_resources(resources: Mapping[str, Any], path: str, problems: Problems) -> None:
    """Limits and requests of a container (or of a claim, where there are no limits)."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for field, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            here = f"{path}.{field}[{name}]"
            if "/" in name:
                problems.invalid_all(here, name, names.qualified_name(name))
            elif name not in STANDARD_RESOURCES and not name.startswith("hugepages-"):
                problems.invalid(here, name, "must be a standard resource type or fully qualified")
            if quantity.parse(amount) < 0:
                problems.invalid(here, amount, "must be greater than or equal to 0")
    for name, amount in requests.items():
        limit = limits.get(name)
        if limit is not None and quantity.compare(amount, limit) > 0:
            why = f"must be less than or equal to {name} limit of {limit}"
            problems.invalid(f"{path}.requests", amount, why)
        elif name in limits and "/" in name and quantity.compare(amount, limits[name]):
            problems.invalid(f"{path}.requests", amount, f"must be equal to {name} limit of {limit}")


def _validate_probe(probe: Object, path: str, problems: Problems, once: bool) -> None:
    _validate_handler(probe, path, problems, _HANDLERS)
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        problems.at_least(f"{path}.{field}", probe.get(field))
    if once and probe.get("successThreshold") not in (None, 1):
        problems.invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")
    grace = probe.get("terminationGracePeriodSeconds")
    if grace is not None and grace <= 0:
        problems.invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than 0")


def _validate_handler(handler: Object, path: str, problems: Problems, kinds: Sequence[str]) -> None:
    given = [kind for kind in kinds if handler.get(kind) is not None]
    for extra in given[1:]:
        problems.forbidden(f"{path}.{extra}", "may not specify more than 1 handler type")
    if not given:
        problems.required(path, "must specify a handler type")
        return
    kind, action = given[0], handler[given[0]]
    here = f"{path}.{kind}"
    if kind == "exec" and not action.get("command"):
        problems.required(f"{here}.command")
    if kind in ("httpGet", "tcpSocket"):
        validate_port_reference(action.get("port"), f"{here}.port", problems)
    if kind == "grpc" and names.port_number(action.get("port") or 0):
        problems.invalid_all(f"{here}.port", action.get("port") or 0, names.port_number(action.get("port") or 0))
    if kind == "httpGet":
        problems.one_of(f"{here}.scheme", action.get("scheme"), ("HTTP", "HTTPS"))
        for index, header in enumerate(action.get("httpHeaders") or ()):
            name = header.get("name") or ""
            problems.invalid_all(f"{here}.httpHeaders[{index}].name", name, names.http_header(name))


def validate_port_reference(port: Any, path: str, problems: Problems) -> None:
    """A port by number or by name."""
    if isinstance(port, str):
        problems.invalid_all(path, port, names.port_name(port))
    else:
        problems.invalid_all(path, port or 0, names.port_number(port or 0))
