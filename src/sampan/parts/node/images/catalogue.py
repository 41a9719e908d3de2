"""The built-in images: well-known names mapped to stand-ins that this machine can run with nothing pulled.

An entry matches on the repository (any registry mirror of it counts) and gives a configuration like the original's: command,
ports, working directory, stop signal. Programs are small scripts in a layer written for this installation; shells and tools
are the host's. A name the catalogue does not know is not guessed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

import sampan
from sampan.parts.node.images.environment import base_interpreter
from sampan.parts.node.images.image import Image, ImageConfig
from sampan.parts.node.images.reference import Reference
from sampan.parts.node.images.store import python_directories

_MODULE = "sampan.parts.node.images.standins"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

WELCOME = """<!DOCTYPE html>
<html>
<head>
<title>Welcome to nginx!</title>
<style>
html { color-scheme: light dark; }
body { width: 35em; margin: 0 auto; font-family: sans-serif; }
</style>
</head>
<body>
<h1>Welcome to nginx!</h1>
<p>This page is served by Sampan's stand-in for nginx. Mount your own files at /usr/share/nginx/html to replace it.</p>
</body>
</html>
"""


@dataclass(frozen=True)
class StandIn:
    """One built-in image."""

    title: str
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    programs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Path in the image → stand-in module and leading arguments."""
    files: dict[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()
    cwd: str = ""
    user: str = ""
    stop_signal: str = ""
    shell_box: bool = False
    """Missing network tools are added."""
    python: bool = False
    env: dict[str, str] = field(default_factory=dict)


def _web(flavour: str) -> StandIn:
    if flavour == "nginx":
        return StandIn(
            "static web server in the place of nginx",
            ("/docker-entrypoint.sh",),
            ("nginx", "-g", "daemon off;"),
            {"/usr/sbin/nginx": ("webserver", "nginx"), "/docker-entrypoint.sh": ("webserver", "entrypoint")},
            {
                "/usr/share/nginx/html/index.html": WELCOME,
                "/etc/nginx/nginx.conf": "# this stand-in reads conf.d/*.conf\n",
                "/etc/nginx/conf.d/default.conf": (
                    "server {\n    listen 80;\n    root /usr/share/nginx/html;\n    index index.html index.htm;\n}\n"
                ),
            },
            ports=(80,),
            stop_signal="SIGQUIT",
        )
    return StandIn(
        "static web server in the place of httpd",
        (),
        ("httpd-foreground",),
        {"/usr/local/bin/httpd-foreground": ("webserver", "httpd"), "/usr/local/bin/httpd": ("webserver", "httpd")},
        {"/usr/local/apache2/htdocs/index.html": "<html><body><h1>It works!</h1></body></html>\n"},
        ports=(80,),
        cwd="/usr/local/apache2",
        stop_signal="SIGWINCH",
    )


def _shell(command: str) -> StandIn:
    return StandIn("shell box with the host's programs", (), (command,), shell_box=True)


def _program(title: str, path: str, *module: str, port: int = 0, user: str = "", **env: str) -> StandIn:
    return StandIn(title, (path,), (), {path: module}, ports=(port,) if port else (), user=user, env=env)


_PAUSE = StandIn("waits", ("/pause",))
_AGNHOST = StandIn(
    "the test suite's utility", ("/agnhost",), ("pause",), {"/agnhost": ("agnhost",)}, shell_box=True, ports=(8080,)
)
_LANGUAGES = ("go", "python", "nodejs", "java", "csharp", "rust", "ruby", "php", "shell", "kotlin", "java-spring")


def _entries() -> dict[str, StandIn]:
    entries: dict[str, StandIn] = {
        "library/nginx": _web("nginx"),
        "nginx/nginx": _web("nginx"),
        "nginxinc/nginx-unprivileged": _web("nginx"),
        "e2e-test-images/nginx": _web("nginx"),
        "nginx-slim": _web("nginx"),
        "google_containers/nginx-slim": _web("nginx"),
        "library/httpd": _web("httpd"),
        "e2e-test-images/httpd": _web("httpd"),
        "e2e-test-images/agnhost": _AGNHOST,
        "e2e-test-images/echoserver": _program("echoes requests", "/echoserver", "hello", "whoami", "--port", "8080", port=8080),
        "echoserver": _program("echoes requests", "/echoserver", "hello", "whoami", "--port", "8080", port=8080),
        "google_containers/echoserver": _program("echoes requests", "/echoserver", "hello", "whoami", "--port", "8080", port=8080),
        "hashicorp/http-echo": _program("one text for every request", "/http-echo", "hello", "http-echo", port=5678),
        "ealen/echo-server": _program("echoes requests as JSON", "/echo-server", "hello", "echo-server", port=80),
        "traefik/whoami": _program("tells about requests", "/whoami", "hello", "whoami", port=80),
        "containous/whoami": _program("tells about requests", "/whoami", "hello", "whoami", port=80),
        "google-samples/hello-app": _program("says hello", "/hello-app", "hello", "hello-app", port=8080),
        "google-samples/node-hello": _program("says hello", "/hello-app", "hello", "hello-app", port=8080),
        "knative-samples/autoscale-go": _program("busy on request", "/ko-app/autoscale-go", "hello", "autoscale", port=8080),
        "knative/autoscale-go": _program("busy on request", "/ko-app/autoscale-go", "hello", "autoscale", port=8080),
        "hpa-example": _program("busy on request", "/hpa-example", "hello", "busy", port=80),
        "google_containers/hpa-example": _program("busy on request", "/hpa-example", "hello", "busy", port=80),
        "pause": _PAUSE,
        "google_containers/pause": _PAUSE,
        "rancher/mirrored-pause": _PAUSE,
        "library/python": StandIn("the host's Python", (), ("python3",), python=True),
        "library/hello-world": StandIn(
            "prints a greeting",
            ("/hello",),
            files={"/hello": "#!/bin/sh\necho\necho 'Hello from Sampan!'\necho 'This message shows that your installation works.'\n"},
        ),
    }  # fmt: skip
    for language in _LANGUAGES:
        hello = _program("says hello", "/server", "hello", "helloworld", language, port=8080)
        entries[f"knative-samples/helloworld-{language}"] = hello
        entries[f"knative/helloworld-{language}"] = hello
    for name, stand_in in _eventing().items():
        entries[name] = stand_in
    for name, command in {
        "library/busybox": "sh",
        "library/alpine": "/bin/sh",
        "library/bash": "bash",
        "library/ubuntu": "/bin/bash",
        "library/debian": "bash",
        "library/centos": "/bin/bash",
        "library/fedora": "/bin/bash",
        "library/rockylinux": "/bin/bash",
        "library/almalinux": "/bin/bash",
        "library/amazonlinux": "/bin/bash",
        "library/perl": "perl",
        "library/buildpack-deps": "bash",
        "e2e-test-images/busybox": "sh",
        "e2e-test-images/jessie-dnsutils": "/bin/sh",
        "e2e-test-images/node-perf/pytorch-wide-deep": "/bin/sh",
        "nicolaka/netshoot": "bash",
        "curlimages/curl": "sh",
        "radial/busyboxplus": "sh",
        "alpine/curl": "sh",
        "chainguard/bash": "bash",
        "google_containers/busybox": "sh",
        "busybox": "sh",
    }.items():
        entries[name] = _shell(command)
    entries["curlimages/curl"] = StandIn("curl of the host", ("curl",), ("--help",), shell_box=True)
    return entries


def _eventing() -> dict[str, StandIn]:
    """The programs of Knative Eventing's samples, under the names they were published by."""
    entries = {}
    for name, title, port in (
        ("event_display", "prints the events it gets", 8080),
        ("heartbeats", "sends an event again and again", 0),
        ("appender", "answers an event with its message made longer", 8080),
    ):
        program = _program(title, f"/ko-app/{name}", "events", name, port=port)
        for repository in ("knative-releases/knative.dev/eventing", "knative-releases/knative.dev/eventing-contrib"):
            entries[f"{repository}/cmd/{name}"] = program
        entries[f"knative-nightly/knative.dev/eventing/cmd/{name}"] = program
        entries[f"knative-nightly/knative.dev/eventing-contrib/cmd/{name}"] = program
    player = _program("shows events and sends them", "/player", "events", "player", port=8080)
    return {**entries, "ruben/cloudevents-player": player, "n3wscott/sockeye": player}


ENTRIES = _entries()
_REGISTRIES = (
    "docker.io",
    "registry.k8s.io",
    "k8s.gcr.io",
    "gcr.io",
    "ghcr.io",
    "quay.io",
    "mirror.gcr.io",
    "public.ecr.aws",
)


class Catalogue:
    """The stand-ins, with their layers under one directory."""

    def __init__(self, directory: Path, pause: Callable[[], bytes]) -> None:
        self._directory = directory
        self._pause = pause
        self._made: dict[str, Image] = {}

    def entry(self, reference: Reference) -> tuple[str, StandIn] | None:
        """The stand-in for a reference."""
        path = reference.path
        candidates = [path, path.removeprefix("docker/library/"), path.removeprefix("library/")]
        if reference.domain not in _REGISTRIES:
            # a mirror keeps the original's path, with or without docker.io's library/
            candidates += (
                [f"library/{path.rpartition('/')[2]}"] if path.rpartition("/")[2] in ("nginx", "busybox") else []
            )
        for candidate in (*candidates, f"library/{path}"):
            if candidate in ENTRIES:
                return candidate, ENTRIES[candidate]
        return None

    def image(self, reference: Reference) -> Image | None:
        """The built-in image for a reference, its layer written on first use. Raises OSError."""
        found = self.entry(reference)
        if found is None:
            return None
        name, stand_in = found
        if name not in self._made:
            self._made[name] = self._make(name, stand_in)
        return replace(self._made[name], name=str(reference))

    def _make(self, name: str, stand_in: StandIn) -> Image:
        files = dict(stand_in.files)
        source = str(Path(sampan.__file__).resolve().parent.parent)
        for path, (module, *arguments) in stand_in.programs.items():
            files[path] = (
                f"#!{sys.executable}\nimport sys\n\nsys.path.append({source!r})\n"
                f"from {_MODULE}.{module} import main\n\nsys.argv[1:1] = {arguments!r}\nmain()\n"
            )
        if stand_in.shell_box:
            for tool in ("wget", "nslookup", "nc"):
                if shutil.which(tool) is None:
                    files[f"/usr/local/bin/{tool}"] = (
                        f"#!{sys.executable}\nimport sys\n\nsys.path.append({source!r})\n"
                        f"from {_MODULE}.nettools import main\n\nsys.argv[1:1] = [{tool!r}]\nmain()\n"
                    )
        binary = {"/pause": self._pause()} if stand_in is _PAUSE else {}
        told = msgspec.json.encode([name, files, {path: len(data) for path, data in binary.items()}])
        key = hashlib.sha256(told).hexdigest()
        layer = self._directory / key[:20]
        mark, boot = layer.with_suffix(".complete"), _boot()
        # what was written before the machine went down may not have reached the disk: it is quickly written again
        if not mark.exists() or mark.read_text() != boot:
            for path, text in files.items():
                place = layer / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
                place.chmod(0o755 if text.startswith("#!") else 0o644)
            for path, data in binary.items():
                place = layer / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
                place.chmod(0o755)
            if stand_in.python:
                bin_directory = layer / "usr/local/bin"
                bin_directory.mkdir(parents=True, exist_ok=True)
                for link in ("python", "python3"):
                    if not (bin_directory / link).is_symlink():
                        (bin_directory / link).symlink_to(base_interpreter())
            layer.mkdir(parents=True, exist_ok=True)
            mark.write_text(boot)
        config = ImageConfig(
            entrypoint=list(stand_in.entrypoint),
            cmd=list(stand_in.cmd),
            env=[f"PATH={DEFAULT_PATH}", *(f"{key}={value}" for key, value in stand_in.env.items())],
            working_dir=stand_in.cwd,
            user=stand_in.user,
            exposed_ports={f"{port}/tcp": {} for port in stand_in.ports},
            stop_signal=stand_in.stop_signal,
        )
        python = base_interpreter() if stand_in.python else sys.executable if stand_in.programs else ""
        extra: tuple[str, ...] = ()
        if stand_in.programs or stand_in.shell_box:
            extra = tuple(dict.fromkeys((*python_directories(sys.executable), source)))
        elif stand_in.python:
            extra = python_directories(base_interpreter())
        return Image(
            name=name,
            id=f"sha256:{key}",
            digest=f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
            config=config,
            layers=(str(layer),),
            python=python,
            extra=tuple(path for path in extra if not _within_host(path)),
            size=sum(len(text) for text in files.values()) + sum(len(data) for data in binary.values()),
            builtin=True,
        )


def _boot() -> str:
    """What tells one run of the machine from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _within_host(path: str) -> bool:
    """The path lies in what every container sees of the host anyway."""
    return os.path.commonpath([path, "/usr"]) == "/usr"
