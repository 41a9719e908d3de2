"""The Pod Security Standards as pure functions: what about a pod's spec violates a level, in upstream's words.

``baseline`` keeps known ways to take over the node shut; ``restricted`` adds hardening that a pod must ask for explicitly and
replaces the capability and seccomp checks by stricter ones. Checks report in upstream's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

LEVELS = ("privileged", "baseline", "restricted")

Spec = Mapping[str, Any]
Annotations = Mapping[str, str]


class Violation(NamedTuple):
    """One check that failed: what it is about, and where."""

    reason: str
    detail: str


Check = Callable[[Spec, Annotations], "Violation | None"]

_BASELINE_CAPABILITIES = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
_SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
    }
)
_RESTRICTED_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ]
)
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def violations(level: str, spec: Spec, annotations: Annotations) -> list[Violation]:
    """Everything about a pod that its level forbids."""
    checks = {"privileged": (), "baseline": _BASELINE, "restricted": _RESTRICTED}[level]
    return [found for check in checks if (found := check(spec, annotations)) is not None]


def _containers(spec: Spec) -> Iterator[Mapping[str, Any]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind) or ()


def _context(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    return holder.get("securityContext") or {}


def _windows(spec: Spec) -> bool:
    return (spec.get("os") or {}).get("name") == "windows"


def _quoted(items: list[str]) -> str:
    return ", ".join(f'"{item}"' for item in items)


def _named(names: list[str]) -> str:
    """``container "a"`` or ``containers "a", "b"``."""
    return f"container{'s' if len(names) > 1 else ''} {_quoted(names)}"


def _who(pod: bool, names: list[str], join: str = "and") -> str:
    parts = (["pod"] if pod else []) + ([_named(names)] if names else [])
    return f" {join} ".join(parts)


# -- baseline


def _apparmor(spec: Spec, annotations: Annotations) -> Violation | None:
    bad: list[str] = []
    for holder, label in [(spec, "pod"), *((each, _named([each["name"]])) for each in _containers(spec))]:
        kind = (_context(holder).get("appArmorProfile") or {}).get("type")
        if kind not in (None, "RuntimeDefault", "Localhost"):
            bad.append(f'{label} must not set AppArmor profile type to "{kind}"')
    for key, value in sorted(annotations.items()):
        good = value in ("", "runtime/default") or value.startswith("localhost/")
        if key.startswith(_APPARMOR_ANNOTATION) and not good:
            bad.append(f'annotation must not set AppArmor profile type to "{value}"')
    if not bad:
        return None
    return Violation(f"forbidden AppArmor profile{'s' if len(bad) > 1 else ''}", "; ".join(bad))


def _capabilities(spec: Spec, annotations: Annotations) -> Violation | None:
    names, bad = [], set()
    for container in _containers(spec):
        added = set((_context(container).get("capabilities") or {}).get("add") or ()) - _BASELINE_CAPABILITIES
        if added:
            names.append(container["name"])
            bad |= added
    if not names:
        return None
    listed = _quoted(sorted(bad))
    return Violation(
        "non-default capabilities", f"{_named(names)} must not include {listed} in securityContext.capabilities.add"
    )


def _host_namespaces(spec: Spec, annotations: Annotations) -> Violation | None:
    used = [f"{field}=true" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    return Violation("host namespaces", ", ".join(used)) if used else None


def _host_paths(spec: Spec, annotations: Annotations) -> Violation | None:
    names = [volume["name"] for volume in spec.get("volumes") or () if "hostPath" in volume]
    return Violation("hostPath volumes", f"volume{'s' if len(names) > 1 else ''} {_quoted(names)}") if names else None


def _host_ports(spec: Spec, annotations: Annotations) -> Violation | None:
    names, ports = [], set()
    for container in _containers(spec):
        used = {port["hostPort"] for port in container.get("ports") or () if port.get("hostPort")}
        if used:
            names.append(container["name"])
            ports |= used
    if not names:
        return None
    verb = "uses" if len(names) == 1 else "use"
    listed = ", ".join(str(port) for port in sorted(ports))
    return Violation("hostPort", f"{_named(names)} {verb} hostPort{'s' if len(ports) > 1 else ''} {listed}")


def _privileged(spec: Spec, annotations: Annotations) -> Violation | None:
    names = [each["name"] for each in _containers(spec) if _context(each).get("privileged")]
    return Violation("privileged", f"{_named(names)} must not set securityContext.privileged=true") if names else None


def _proc_mount(spec: Spec, annotations: Annotations) -> Violation | None:
    names, kinds = [], set()
    for container in _containers(spec):
        kind = _context(container).get("procMount")
        if kind not in (None, "Default"):
            names.append(container["name"])
            kinds.add(kind)
    if not names:
        return None
    return Violation("procMount", f"{_named(names)} must not set securityContext.procMount to {_quoted(sorted(kinds))}")


def _selinux(spec: Spec, annotations: Annotations) -> Violation | None:
    types, users, roles = set(), False, False
    holders: list[str] = []
    on_pod = False
    for holder in (spec, *_containers(spec)):
        options = _context(holder).get("seLinuxOptions") or {}
        bad = options.get("type", "") not in _SELINUX_TYPES
        if bad:
            types.add(options["type"])
        users, roles = users or bool(options.get("user")), roles or bool(options.get("role"))
        if bad or options.get("user") or options.get("role"):
            if holder is spec:
                on_pod = True
            else:
                holders.append(holder["name"])
    if not (on_pod or holders):
        return None
    what = [f"type{'s' if len(types) > 1 else ''} {_quoted(sorted(types))}"] if types else []
    what += ["user may not be set"] if users else []
    what += ["role may not be set"] if roles else []
    who = _who(on_pod, holders)
    verb = "sets" if on_pod + len(holders) == 1 else "set"
    return Violation("seLinuxOptions", f"{who} {verb} forbidden securityContext.seLinuxOptions: {'; '.join(what)}")


def _seccomp(spec: Spec, annotations: Annotations) -> Violation | None:
    def bad(holder: Mapping[str, Any]) -> bool:
        kind = (_context(holder).get("seccompProfile") or {}).get("type")
        return kind not in (None, "RuntimeDefault", "Localhost")

    names = [each["name"] for each in _containers(spec) if bad(each)]
    if not (names or bad(spec)):
        return None
    return Violation(
        "seccompProfile", f'{_who(bad(spec), names)} must not set securityContext.seccompProfile.type to "Unconfined"'
    )


def _sysctls(spec: Spec, annotations: Annotations) -> Violation | None:
    bad = [each["name"] for each in _context(spec).get("sysctls") or () if each["name"] not in _SYSCTLS]
    return Violation("forbidden sysctls", ", ".join(bad)) if bad else None


def _host_process(spec: Spec, annotations: Annotations) -> Violation | None:
    def bad(holder: Mapping[str, Any]) -> bool:
        return bool((_context(holder).get("windowsOptions") or {}).get("hostProcess"))

    names = [each["name"] for each in _containers(spec) if bad(each)]
    if not (names or bad(spec)):
        return None
    return Violation(
        "hostProcess", f"{_who(bad(spec), names)} must not set securityContext.windowsOptions.hostProcess=true"
    )


# -- restricted


def _escalation(spec: Spec, annotations: Annotations) -> Violation | None:
    names = [each["name"] for each in _containers(spec) if _context(each).get("allowPrivilegeEscalation") is not False]
    if not names or _windows(spec):
        return None
    return Violation(
        "allowPrivilegeEscalation != false", f"{_named(names)} must set securityContext.allowPrivilegeEscalation=false"
    )


def _capabilities_restricted(spec: Spec, annotations: Annotations) -> Violation | None:
    if _windows(spec):
        return None
    keeping, adding, bad = [], [], set()
    for container in _containers(spec):
        capabilities = _context(container).get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or ()):
            keeping.append(container["name"])
        added = set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}
        if added:
            adding.append(container["name"])
            bad |= added
    details = [f'{_named(keeping)} must set securityContext.capabilities.drop=["ALL"]'] if keeping else []
    if adding:
        listed = _quoted(sorted(bad))
        details.append(f"{_named(adding)} must not include {listed} in securityContext.capabilities.add")
    return Violation("unrestricted capabilities", "; ".join(details)) if details else None


def _volumes(spec: Spec, annotations: Annotations) -> Violation | None:
    names, kinds = [], set()
    for volume in spec.get("volumes") or ():
        bad = {kind for kind in volume if kind != "name"} - _RESTRICTED_VOLUMES
        if bad:
            names.append(volume["name"])
            kinds |= bad
    if not names:
        return None
    volumes = f"volume{'s' if len(names) > 1 else ''} {_quoted(names)}"
    verb = "use" if len(names) > 1 else "uses"
    plural = "s" if len(kinds) > 1 else ""
    return Violation(
        "restricted volume types", f"{volumes} {verb} restricted volume type{plural} {_quoted(sorted(kinds))}"
    )


def _non_root(spec: Spec, annotations: Annotations) -> Violation | None:
    pod = _context(spec).get("runAsNonRoot")
    denying, silent = [], []
    for container in _containers(spec):
        own = _context(container).get("runAsNonRoot")
        if own is False:
            denying.append(container["name"])
        elif own is None and not pod:
            silent.append(container["name"])
    details = []
    if pod is False:
        details.append("pod must not set securityContext.runAsNonRoot=false")
    if denying:
        details.append(f"{_named(denying)} must not set securityContext.runAsNonRoot=false")
    if silent and pod is not False and not denying:
        details.append(f"pod or {_named(silent)} must set securityContext.runAsNonRoot=true")
    elif silent and denying:
        details.append(f"{_named(silent)} must set securityContext.runAsNonRoot=true")
    return Violation("runAsNonRoot != true", "; ".join(details)) if details else None


def _as_root(spec: Spec, annotations: Annotations) -> Violation | None:
    names = [each["name"] for each in _containers(spec) if _context(each).get("runAsUser") == 0]
    pod = _context(spec).get("runAsUser") == 0
    return Violation("runAsUser=0", f"{_who(pod, names)} must not set runAsUser=0") if names or pod else None


def _seccomp_restricted(spec: Spec, annotations: Annotations) -> Violation | None:
    if _windows(spec):
        return None

    def kind(holder: Mapping[str, Any]) -> str | None:
        profile: str | None = (_context(holder).get("seccompProfile") or {}).get("type")
        return profile

    good = ("RuntimeDefault", "Localhost")
    pod = kind(spec)
    bad = [each["name"] for each in _containers(spec) if kind(each) not in (None, *good)]
    silent = [each["name"] for each in _containers(spec) if kind(each) is None]
    details = []
    if pod not in (None, *good) or bad:
        who = _who(pod not in (None, *good), bad)
        details.append(f'{who} must not set securityContext.seccompProfile.type to "Unconfined"')
    if silent and pod is None:
        wanted = '"RuntimeDefault" or "Localhost"'
        who = _named(silent) if bad else f"pod or {_named(silent)}"
        details.append(f"{who} must set securityContext.seccompProfile.type to {wanted}")
    return Violation("seccompProfile", "; ".join(details)) if details else None


_BASELINE: tuple[Check, ...] = (
    _apparmor,
    _capabilities,
    _host_namespaces,
    _host_paths,
    _host_ports,
    _privileged,
    _proc_mount,
    _seccomp,
    _selinux,
    _sysctls,
    _host_process,
)
_RESTRICTED: tuple[Check, ...] = (
    *(check for check in _BASELINE if check not in (_capabilities, _seccomp)),
    _escalation,
    _capabilities_restricted,
    _volumes,
    _non_root,
    _as_root,
    _seccomp_restricted,
)
