"""The level of the Kubernetes API that is served."""

from __future__ import annotations

import platform

from sampan.kube.objects import Object

KUBERNETES_VERSION = "v1.32.9"
"""Advertised to clients, which compare it with their own."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def version_info() -> Object:
    """The document of ``/version``."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": KUBERNETES_VERSION,
        "gitCommit": "0000000000000000000000000000000000000000",
        "gitTreeState": "clean",
        "buildDate": "2025-01-01T00:00:00Z",
        "goVersion": f"python{platform.python_version()}",
        "compiler": "gc",
        "platform": f"{platform.system().lower()}/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
    }
