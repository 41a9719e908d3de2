"""What a pod's spec must satisfy, for pods and for the pod templates of workloads.

Runs after defaulting, so fields with defaults are there. Paths, reasons and texts are upstream's; what needs a feature that
nothing here implements (dynamic resources, Windows) is not looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sampan.kube.objects import Object
from sampan.kube.types import names, quantity, selectors
from sampan.kube.types.groups.container_validation import validate_containers
from sampan.kube.types.groups.pod_defaults import VOLUME_SOURCES
from sampan.kube.types.metadata import validate_annotations, validate_labels
from sampan.kube.types.problems import Problems

RESTART_POLICIES = ("Always", "OnFailure", "Never")
DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TOLERATION_OPERATORS = ("Equal", "Exists")
NODE_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")


def validate_template(template: Object, path: str, problems: Problems, claims: Iterable[Object] = ()) -> None:
    """A workload's pod template; each of ``claims`` (volume claim templates) will be a volume of its name."""
    metadata = template.get("metadata") or {}
    validate_labels(metadata.get("labels") or {}, f"{path}.labels", problems)
    validate_annotations(metadata.get("annotations") or {}, f"{path}.annotations", problems)
    validate_pod_spec(template.get("spec") or {}, f"{path}.spec", problems, claims)


def validate_pod_spec(spec: Object, path: str, problems: Problems, claims: Iterable[Object] = ()) -> None:
    """Everything below ``spec`` of a pod."""
    volumes = dict(_validate_volumes(spec.get("volumes") or (), f"{path}.volumes", problems))
    for claim in claims:
        name = (claim.get("metadata") or {}).get("name") or ""
        volumes[name] = {"name": name, "persistentVolumeClaim": {"claimName": name}}
    validate_containers(spec, volumes, path, problems)
    problems.one_of(f"{path}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
    problems.one_of(f"{path}.dnsPolicy", spec.get("dnsPolicy"), DNS_POLICIES)
    problems.at_least(f"{path}.terminationGracePeriodSeconds", spec.get("terminationGracePeriodSeconds"), -(2**63))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        problems.invalid(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
    for field, rule in (
        ("serviceAccountName", names.dns_subdomain),
        ("nodeName", names.dns_subdomain),
        ("priorityClassName", names.dns_subdomain),
        ("runtimeClassName", names.dns_subdomain),
        ("hostname", names.dns_label),
        ("subdomain", names.dns_label),
        ("schedulerName", names.qualified_name),
    ):
        if value := spec.get(field):
            problems.invalid_all(f"{path}.{field}", value, rule(value))
    validate_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector", problems)
    validate_tolerations(spec.get("tolerations") or (), f"{path}.tolerations", problems)
    _validate_affinity(spec.get("affinity") or {}, f"{path}.affinity", problems)
    _validate_spread(spec.get("topologySpreadConstraints") or (), f"{path}.topologySpreadConstraints", problems)
    _validate_host_aliases(spec.get("hostAliases") or (), f"{path}.hostAliases", problems)
    _validate_dns(spec, path, problems)
    _validate_security(spec, path, problems)
    for index, secret in enumerate(spec.get("imagePullSecrets") or ()):
        if not secret.get("name"):
            problems.required(f"{path}.imagePullSecrets[{index}].name")
    _unique(
        spec.get("readinessGates") or (),
        "conditionType",
        f"{path}.readinessGates",
        problems,
        names.qualified_name,
        False,
    )
    _unique(spec.get("schedulingGates") or (), "name", f"{path}.schedulingGates", problems, names.qualified_name, True)


def _unique(
    items: Sequence[Mapping[str, Any]],
    field: str,
    path: str,
    problems: Problems,
    rule: Callable[[str], list[str]],
    distinct: bool,
) -> None:
    seen: set[str] = set()
    for index, item in enumerate(items):
        value = item.get(field) or ""
        problems.invalid_all(f"{path}[{index}].{field}", value, rule(value))
        if distinct and value in seen:
            problems.duplicate(f"{path}[{index}]", value)
        seen.add(value)


def _validate_volumes(volumes: Sequence[Object], path: str, problems: Problems) -> Mapping[str, Object]:
    """The volumes by name."""
    known: dict[str, Object] = {}
    for index, volume in enumerate(volumes):
        here, name = f"{path}[{index}]", volume.get("name") or ""
        if not name:
            problems.required(f"{here}.name")
        else:
            problems.invalid_all(f"{here}.name", name, names.dns_label(name))
            if name in known:
                problems.duplicate(f"{here}.name", name)
        known[name] = volume
        sources = [source for source in VOLUME_SOURCES if volume.get(source) is not None]
        for extra in sources[1:]:
            problems.forbidden(f"{here}.{extra}", "may not specify more than 1 volume type")
        if not sources:
            problems.required(here, "must specify a volume type")
        else:
            _validate_volume_source(sources[0], volume[sources[0]], f"{here}.{sources[0]}", problems)
    return known


def _validate_volume_source(kind: str, source: Object, path: str, problems: Problems) -> None:
    required = {
        "secret": "secretName",
        "configMap": "name",
        "hostPath": "path",
        "persistentVolumeClaim": "claimName",
        "csi": "driver",
    }.get(kind)
    if required and not source.get(required):
        problems.required(f"{path}.{required}")
    if kind == "nfs":
        for field in ("server", "path"):
            if not source.get(field):
                problems.required(f"{path}.{field}")
    if kind == "hostPath":
        types = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
        if source.get("type", "") not in types:
            problems.unsupported(f"{path}.type", source["type"], types)
        if ".." in (source.get("path") or "").split("/"):
            problems.invalid(f"{path}.path", source["path"], "must not contain '..'")
    if kind == "emptyDir":
        limit = source.get("sizeLimit")
        if limit is not None and quantity.parse(limit) < 0:
            problems.forbidden(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity")
    if kind == "ephemeral" and source.get("volumeClaimTemplate") is None:
        problems.required(f"{path}.volumeClaimTemplate")
    if kind == "image" and not source.get("reference"):
        problems.required(f"{path}.reference")
    mode = source.get("defaultMode")
    if mode is not None and not 0 <= mode <= 0o777:
        problems.invalid(f"{path}.defaultMode", mode, "must be a number between 0 and 0777 (octal), both inclusive")
    _validate_items(source.get("items") or (), kind, f"{path}.items", problems)
    for index, part in enumerate(source.get("sources") or () if kind == "projected" else ()):
        here = f"{path}.sources[{index}]"
        for name, value in part.items():
            if name in ("secret", "configMap") and not value.get("name"):
                problems.required(f"{here}.{name}.name")
            if name == "serviceAccountToken":
                seconds = value.get("expirationSeconds")
                if seconds is not None and seconds < 600:
                    problems.invalid(
                        f"{here}.{name}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"
                    )
                if not value.get("path"):
                    problems.required(f"{here}.{name}.path")
            _validate_items(value.get("items") or (), name, f"{here}.{name}.items", problems)


def _validate_items(items: Sequence[Object], kind: str, path: str, problems: Problems) -> None:
    for index, item in enumerate(items):
        here = f"{path}[{index}]"
        if kind in ("secret", "configMap") and not item.get("key"):
            problems.required(f"{here}.key")
        target = item.get("path") or ""
        if not target:
            problems.required(f"{here}.path")
        elif target.startswith("/"):
            problems.invalid(f"{here}.path", target, "must be a relative path")
        elif ".." in target.split("/"):
            problems.invalid(f"{here}.path", target, "must not contain '..'")
        mode = item.get("mode")
        if mode is not None and not 0 <= mode <= 0o777:
            problems.invalid(f"{here}.mode", mode, "must be a number between 0 and 0777 (octal), both inclusive")


def validate_tolerations(tolerations: Sequence[Object], path: str, problems: Problems) -> None:
    """A pod's tolerations."""
    for index, toleration in enumerate(tolerations):
        here, key, operator = f"{path}[{index}]", toleration.get("key") or "", toleration.get("operator") or ""
        if key:
            problems.invalid_all(f"{here}.key", key, names.qualified_name(key))
        elif operator != "Exists":
            problems.invalid(
                f"{here}.operator",
                operator,
                'operator must be Exists when `key` is empty, which means "match all values and all keys"',
            )
        if operator and operator not in TOLERATION_OPERATORS:
            problems.unsupported(f"{here}.operator", operator, TOLERATION_OPERATORS)
        value = toleration.get("value") or ""
        if operator == "Exists":
            if value:
                problems.invalid(f"{here}.operator", operator, "value must be empty when `operator` is 'Exists'")
        else:
            problems.invalid_all(f"{here}.operator", value, names.label_value(value))
        effect = toleration.get("effect")
        if effect:
            problems.one_of(f"{here}.effect", effect, EFFECTS)
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            problems.invalid(
                f"{here}.effect", effect or "", "effect must be 'NoExecute' when `tolerationSeconds` is set"
            )


def _validate_affinity(affinity: Mapping[str, Any], path: str, problems: Problems) -> None:
    node = affinity.get("nodeAffinity") or {}
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    here = f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    if required is not None:
        terms = required.get("nodeSelectorTerms") or ()
        if not terms:
            problems.required(f"{here}.nodeSelectorTerms", "must have at least one node selector term")
        for index, term in enumerate(terms):
            validate_node_term(term, f"{here}.nodeSelectorTerms[{index}]", problems)
    for index, weighted in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        here = f"{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
        _validate_weight(weighted, here, problems)
        validate_node_term(weighted.get("preference") or {}, f"{here}.preference", problems)
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        for index, term in enumerate(rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
            here = f"{path}.{kind}.requiredDuringSchedulingIgnoredDuringExecution[{index}]"
            _validate_pod_term(term, here, problems)
        for index, weighted in enumerate(rules.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
            here = f"{path}.{kind}.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
            _validate_weight(weighted, here, problems)
            _validate_pod_term(weighted.get("podAffinityTerm") or {}, f"{here}.podAffinityTerm", problems)


def _validate_weight(weighted: Mapping[str, Any], path: str, problems: Problems) -> None:
    weight = weighted.get("weight") or 0
    if not 1 <= weight <= 100:
        problems.invalid(f"{path}.weight", weight, "must be in the range 1-100")


def validate_node_term(term: Mapping[str, Any], path: str, problems: Problems) -> None:
    """One node selector term."""
    for group in ("matchExpressions", "matchFields"):
        for index, expression in enumerate(term.get(group) or ()):
            here, operator = f"{path}.{group}[{index}]", expression.get("operator") or ""
            count = len(expression.get("values") or ())
            if operator in ("In", "NotIn") and not count:
                problems.required(f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Exists", "DoesNotExist") and count:
                problems.forbidden(
                    f"{here}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                )
            elif operator in ("Gt", "Lt") and count != 1:
                problems.required(f"{here}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
            elif operator not in NODE_OPERATORS:
                problems.invalid(f"{here}.operator", operator, "not a valid selector operator")
            if group == "matchExpressions":
                key = expression.get("key") or ""
                problems.invalid_all(f"{here}.key", key, names.qualified_name(key))


def _validate_pod_term(term: Mapping[str, Any], path: str, problems: Problems) -> None:
    selectors.validate_object(term.get("labelSelector"), f"{path}.labelSelector", problems)
    selectors.validate_object(term.get("namespaceSelector"), f"{path}.namespaceSelector", problems)
    for index, namespace in enumerate(term.get("namespaces") or ()):
        problems.invalid_all(f"{path}.namespaces[{index}]", namespace, names.dns_label(namespace))
    key = term.get("topologyKey") or ""
    if not key:
        problems.required(f"{path}.topologyKey", "can not be empty")
    else:
        problems.invalid_all(f"{path}.topologyKey", key, names.qualified_name(key))


def _validate_spread(constraints: Sequence[Object], path: str, problems: Problems) -> None:
    seen: set[tuple[Any, Any]] = set()
    for index, constraint in enumerate(constraints):
        here = f"{path}[{index}]"
        skew = constraint.get("maxSkew") or 0
        if skew <= 0:
            problems.invalid(f"{here}.maxSkew", skew, "must be greater than zero")
        key = constraint.get("topologyKey") or ""
        if not key:
            problems.required(f"{here}.topologyKey", "can not be empty")
        else:
            problems.invalid_all(f"{here}.topologyKey", key, names.qualified_name(key))
        what = constraint.get("whenUnsatisfiable")
        if what not in ("DoNotSchedule", "ScheduleAnyway"):
            problems.unsupported(f"{here}.whenUnsatisfiable", what or "", ("DoNotSchedule", "ScheduleAnyway"))
        if (key, what) in seen:
            problems.duplicate(f"{here}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {what}}}")
        seen.add((key, what))
        fewest = constraint.get("minDomains")
        if fewest is not None and fewest <= 0:
            problems.invalid(f"{here}.minDomains", fewest, "must be greater than zero")
        selectors.validate_object(constraint.get("labelSelector"), f"{here}.labelSelector", problems)


def _validate_host_aliases(aliases: Sequence[Object], path: str, problems: Problems) -> None:
    for index, alias in enumerate(aliases):
        validate_address(alias.get("ip") or "", f"{path}[{index}].ip", problems)
        for place, host in enumerate(alias.get("hostnames") or ()):
            problems.invalid_all(f"{path}[{index}].hostnames[{place}]", host, names.dns_subdomain(host))


def validate_address(address: str, path: str, problems: Problems) -> None:
    """An IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        problems.invalid(path, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")


def _validate_dns(spec: Mapping[str, Any], path: str, problems: Problems) -> None:
    config = spec.get("dnsConfig") or {}
    servers = config.get("nameservers") or ()
    if spec.get("dnsPolicy") == "None" and not servers:
        problems.required(
            f"{path}.dnsConfig.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None"
        )
    if len(servers) > 3:
        problems.invalid(f"{path}.dnsConfig.nameservers", list(servers), "must not have more than 3 nameservers")
    for index, server in enumerate(servers):
        validate_address(server, f"{path}.dnsConfig.nameservers[{index}]", problems)
    for index, option in enumerate(config.get("options") or ()):
        if not option.get("name"):
            problems.required(f"{path}.dnsConfig.options[{index}]", "must not be empty")


def _validate_security(spec: Mapping[str, Any], path: str, problems: Problems) -> None:
    context = spec.get("securityContext") or {}
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        value = context.get(field)
        if value is not None and not 0 <= value <= 2**31 - 1:
            problems.invalid(f"{path}.securityContext.{field}", value, "must be between 0 and 2147483647, inclusive")
    seen: set[str] = set()
    for index, setting in enumerate(context.get("sysctls") or ()):
        name = setting.get("name") or ""
        if not name:
            problems.required(f"{path}.securityContext.sysctls[{index}].name")
        elif name in seen:
            problems.duplicate(f"{path}.securityContext.sysctls[{index}].name", name)
        seen.add(name)


def validate_pod_update(new: Object, old: Object, problems: Problems) -> None:
    """A pod's spec may hardly change: images, deadline (shorter), tolerations (more), scheduling gates (fewer)."""
    fresh, stored = new.get("spec") or {}, old.get("spec") or {}
    if _same_count(fresh, stored, problems):
        return
    deadline, before = fresh.get("activeDeadlineSeconds"), stored.get("activeDeadlineSeconds")
    if before is not None and (deadline is None or deadline > before):
        why = (
            "must be less than or equal to previous value"
            if deadline is not None
            else "must not update from a positive integer to nil value"
        )
        problems.invalid("spec.activeDeadlineSeconds", deadline, why)
    if [t for t in stored.get("tolerations") or () if not _tolerated(t, fresh.get("tolerations") or ())]:
        problems.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
    gates = {gate.get("name") for gate in stored.get("schedulingGates") or ()}
    added = sorted(str(g.get("name")) for g in fresh.get("schedulingGates") or () if g.get("name") not in gates)
    if added:
        problems.forbidden(
            "spec.schedulingGates",
            "only deletion is allowed, but found new scheduling gates " + ", ".join(map(repr, added)),
        )
    if _frozen(fresh, stored, gated=bool(gates)) != _frozen(stored, stored, gated=bool(gates)):
        problems.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )


def _same_count(fresh: Mapping[str, Any], stored: Mapping[str, Any], problems: Problems) -> bool:
    differing = False
    for field in ("containers", "initContainers"):
        if len(fresh.get(field) or ()) != len(stored.get(field) or ()):
            problems.forbidden(f"spec.{field}", "pod updates may not add or remove containers")
            differing = True
    return differing


def _tolerated(toleration: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> bool:
    bare = {key: value for key, value in toleration.items() if key != "tolerationSeconds"}
    return any({k: v for k, v in other.items() if k != "tolerationSeconds"} == bare for other in among)


def _frozen(spec: Mapping[str, Any], stored: Mapping[str, Any], gated: bool) -> Object:
    """The part of a spec that an update may not change."""
    rest = {
        key: value
        for key, value in spec.items()
        if key not in ("activeDeadlineSeconds", "tolerations", "schedulingGates")
    }
    for field in ("containers", "initContainers"):
        rest[field] = [{k: v for k, v in c.items() if k != "image"} for c in spec.get(field) or ()]
    if (stored.get("terminationGracePeriodSeconds") or 0) < 0 and spec.get("terminationGracePeriodSeconds") == 1:
        rest["terminationGracePeriodSeconds"] = stored.get("terminationGracePeriodSeconds")
    # A pod that is still held back may narrow where it will go.
    if gated:
        rest.pop("nodeSelector", None)
        rest.pop("affinity", None)
    # Both names of the service account follow each other.
    rest.pop("serviceAccount", None)
    return rest
