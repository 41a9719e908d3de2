"""From a container of a pod to the runtime's spec of it: command, environment, mounts, user, limits. Mostly pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from sampan.kube.objects import Object, dig
from sampan.kube.types import quantity
from sampan.parts.node.agent.environment import expand
from sampan.parts.node.agent.state import ContainerState, remembered, roles
from sampan.parts.node.agent.volumes import PodVolumes, mounts
from sampan.parts.node.errors import ContainerConfigError, NodeError
from sampan.parts.node.images.image import Image
from sampan.parts.node.runtime.interface import ContainerSpec, Limits, Mount, Root

DEFAULT_PIDS = 4096
"""Processes a container may have, so that a fork bomb stays its own problem."""


def command(container: Object, image: Image, env: Mapping[str, str]) -> list[str]:
    """The command line: ``command`` replaces entrypoint and cmd, ``args`` replaces cmd. Raises ContainerConfigError."""
    entry = [expand(word, env) for word in container.get("command") or ()]
    arguments = [expand(word, env) for word in container.get("args") or ()]
    if entry:
        return [*entry, *arguments]
    line = [*image.config.entrypoint, *(arguments or image.config.cmd)]
    if not line:
        raise ContainerConfigError(f'no command specified: image "{image.name}" has neither entrypoint nor command')
    return line


def limits(container: Object) -> Limits:
    """The container's resource limits."""
    found = dig(container, "resources", "limits", default={})
    asked = {**found, **dig(container, "resources", "requests", default={})}

    def number(values: Mapping[str, Any], name: str) -> Decimal:
        return quantity.parse(values[name]) if name in values else Decimal(0)

    return Limits(
        memory=int(number(found, "memory")),
        cpu=float(number(found, "cpu")),
        cpu_request=float(number(asked, "cpu")),
        pids=DEFAULT_PIDS,
    )


def user(pod: Object, container: Object, image: Image) -> tuple[int, int, tuple[int, ...], str]:
    """uid, gid, supplementary groups and an image's user name to look up.

    Raises:
        ContainerConfigError: runAsNonRoot is asked for and cannot be kept.
    """
    shared: Object = dig(pod, "spec", "securityContext", default={})
    own: Object = container.get("securityContext") or {}

    def setting(name: str) -> Any:
        return own[name] if own.get(name) is not None else shared.get(name)

    groups = tuple(int(group) for group in shared.get("supplementalGroups") or ())
    if (fs_group := shared.get("fsGroup")) is not None:
        groups = (*groups, int(fs_group))
    uid, gid, name = setting("runAsUser"), setting("runAsGroup"), ""
    if uid is None:
        name = image.config.user
        if name.isdecimal():
            uid, name = int(name), ""
    if setting("runAsNonRoot"):
        pod_name = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}({pod['metadata']['uid']})"
        if uid == 0 and setting("runAsUser") is not None:
            raise ContainerConfigError(
                f'container\'s runAsUser breaks non-root policy (pod: "{pod_name}", container: {container["name"]})'
            )
        if not uid and name in ("", "root"):
            raise ContainerConfigError(
                f'container has runAsNonRoot and image will run as root (pod: "{pod_name}", container: {container["name"]})'
            )
        if name:
            raise ContainerConfigError(
                f"container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root "
                f'(pod: "{pod_name}", container: {container["name"]})'
            )
    return int(uid or 0), int(gid or 0), groups, name


def seccomp(pod: Object, container: Object) -> bool:
    """The container is to run under the runtime's default seccomp filter. Raises NodeError: it names a profile of its own."""
    security: Object = container.get("securityContext") or {}
    profile: Object = security.get("seccompProfile") or dig(
        pod, "spec", "securityContext", "seccompProfile", default={}
    )
    if security.get("privileged"):
        return False
    if profile.get("type") == "Localhost":
        name = profile.get("localhostProfile")
        raise NodeError(f'cannot load seccomp profile "{name}": this node has the profile RuntimeDefault only')
    return profile.get("type") == "RuntimeDefault"


def apparmor(pod: Object) -> str:
    """The strictest AppArmor profile type a pod asks for: Localhost, RuntimeDefault, or "" where it asks for none."""
    wanted = {dig(pod, "spec", "securityContext", "appArmorProfile", "type")}
    wanted |= {dig(spec, "securityContext", "appArmorProfile", "type") for spec, _role in roles(pod)}
    return next((kind for kind in ("Localhost", "RuntimeDefault") if kind in wanted), "")


def container_spec(
    pod: Object,
    container: Object,
    state: ContainerState,
    image: Image,
    env: dict[str, str],
    volumes: PodVolumes,
    *,
    identity: str,
    log: Path,
    files: Mapping[str, str],
    termination_log: Path,
    isolated: bool,
    log_size: int,
    log_files: int,
) -> ContainerSpec:
    """The runtime's spec of a container.

    ``files`` are the node files behind /etc/hosts and the like. Without isolation (T3) programs of the image's layers are named
    by their place on the node.

    Raises:
        ContainerConfigError, VolumeError, OSError: it cannot be resolved.
    """
    metadata = pod["metadata"]
    uid, gid, groups, name = user(pod, container, image)
    security: Object = container.get("securityContext") or {}
    args = _with_interpreter(command(container, image, env), image)
    cwd = container.get("workingDir") or image.config.working_dir or "/"
    if not isolated:
        args, cwd, env = _unrooted(args, cwd, env, image)
    bound = [
        *mounts(container, volumes, env),
        *(Mount(source, target) for target, source in files.items()),
        Mount(str(termination_log), container.get("terminationMessagePath") or "/dev/termination-log"),
    ]
    targets = {mount.target for mount in mounts(container, volumes, env)}
    capabilities: Object = security.get("capabilities") or {}
    return ContainerSpec(
        id=identity,
        sandbox=metadata["uid"],
        name=container["name"],
        attempt=state.restarts,
        args=tuple(args),
        env=env,
        cwd=cwd,
        root=Root(image.layers, image.host, bool(security.get("readOnlyRootFilesystem")), image.extra),
        mounts=tuple(mount for index, mount in enumerate(bound) if index < len(targets) or mount.target not in targets),
        limits=limits(container),
        uid=uid,
        gid=gid,
        groups=groups,
        user=name,
        privileged=bool(security.get("privileged")),
        no_new_privileges=security.get("allowPrivilegeEscalation") is False,
        seccomp=seccomp(pod, container),
        capabilities_add=tuple(capabilities.get("add") or ()),
        capabilities_drop=tuple(capabilities.get("drop") or ()),
        python=image.python,
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        log_path=str(log),
        log_size=log_size,
        log_files=log_files,
        termination_log=str(termination_log),
        labels={
            "container": container["name"],
            "role": state.role,
            "hash": state.hash,
            "image": container["image"],
            "image_id": state.image_id,
            "resources": remembered(container.get("resources")),
        },
    )


def _with_interpreter(args: list[str], image: Image) -> list[str]:
    """``python`` by its own path where the system has only a ``python3``, so that it is known as what a zygote serves."""
    if args[0] == "python" and image.python and not Path(image.python).with_name("python").exists():
        return [image.python, *args[1:]]
    return args


def _unrooted(args: list[str], cwd: str, env: dict[str, str], image: Image) -> tuple[list[str], str, dict[str, str]]:
    """Without a root of its own, a program of the image runs from where its layer lies on the node."""
    args, env = list(args), dict(env)
    if image.builtin:
        env["SAMPAN_LAYER"] = image.layers[0]  # for a stand-in to find its files
    for layer in image.layers:
        inside = layer + args[0]
        if args[0].startswith("/") and Path(inside).exists():
            args[0] = inside
            break
    paths = env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").split(":")
    env["PATH"] = ":".join(
        [*(layer + path for layer in image.layers for path in paths if path.startswith("/")), *paths]
    )
    for layer in image.layers:
        if Path(layer + cwd).is_dir() and cwd != "/":
            cwd = layer + cwd
            env["PYTHONPATH"] = ":".join(filter(None, [cwd, env.get("PYTHONPATH", "")]))
            break
    return args, cwd if Path(cwd).is_dir() else "/", env


def hosts_file(pod: Object, address: str, hostname: str) -> str:
    """The pod's /etc/hosts."""
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ]
    subdomain = pod["spec"].get("subdomain")
    if subdomain:
        domain = f"{hostname}.{subdomain}.{pod['metadata']['namespace']}.svc.cluster.local"
        lines.append(f"{address}\t{domain}\t{hostname}")
    else:
        lines.append(f"{address}\t{hostname}")
    aliases = pod["spec"].get("hostAliases") or ()
    if aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += ["\t".join([alias["ip"], *alias.get("hostnames", ())]) for alias in aliases]
    return "\n".join(lines) + "\n"


def resolver(pod: Object, dns: str, domain: str, host: str) -> tuple[list[str], list[str], list[str]]:
    """A pod's name servers, search domains and options for its dnsPolicy; ``host`` is the node's own resolv.conf."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    servers, searches, options = _parse_resolver(host)
    if policy == "None":
        servers, searches, options = [], [], []
    elif dns and (policy == "ClusterFirstWithHostNet" or (policy == "ClusterFirst" and not spec.get("hostNetwork"))):
        namespace = pod["metadata"]["namespace"]
        servers = [dns]
        searches = [f"{namespace}.svc.{domain}", f"svc.{domain}", domain, *searches]
        options = ["ndots:5"]
    extra: Object = spec.get("dnsConfig") or {}
    servers = list(dict.fromkeys([*servers, *(extra.get("nameservers") or ())]))[:3]
    searches = list(dict.fromkeys([*searches, *(extra.get("searches") or ())]))[:32]
    for option in extra.get("options") or ():
        options = [known for known in options if known.partition(":")[0] != option["name"]]
        options.append(f"{option['name']}:{option['value']}" if option.get("value") else option["name"])
    return servers, searches, options


def resolver_file(pod: Object, dns: str, domain: str, host: str) -> str:
    """The pod's /etc/resolv.conf for its dnsPolicy; ``host`` is the node's own."""
    servers, searches, options = resolver(pod, dns, domain, host)
    lines = []
    if searches:
        lines.append(f"search {' '.join(searches)}")
    lines += [f"nameserver {server}" for server in servers]
    if options:
        lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def _parse_resolver(text: str) -> tuple[list[str], list[str], list[str]]:
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for words in (line.split() for line in text.splitlines()):
        if len(words) > 1 and words[0] == "nameserver":
            servers.append(words[1])
        elif len(words) > 1 and words[0] == "search":
            searches = words[1:]
        elif len(words) > 1 and words[0] == "options":
            options += words[1:]
    return servers, searches, options


def awaited_port(spec: Object, image: Image) -> int:
    """The port a built-in server listens on once it is up; 0 where the pod asks for something else than that server, or has
    probes of its own.
    """
    own = any(spec.get(name) for name in ("command", "args", "readinessProbe", "startupProbe"))
    if own or not image.builtin:
        return 0
    tcp = (name.partition("/")[0] for name in image.config.exposed_ports if name.endswith("/tcp"))
    return int(next(tcp, 0))
