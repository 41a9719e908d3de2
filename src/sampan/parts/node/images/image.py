"""What an image is once it is on the node: a configuration, directories, and how its programs run."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

HOST_BASE = "dev.sampan.base"
"""Label: ``host`` when the image brings an application only and the host's programs lie underneath."""
PYTHON = "dev.sampan.python"
"""Label: the dependency environment's key."""
REQUIREMENTS = "dev.sampan.requirements"
"""Label: the requirement lines that key stands for, so that another machine can make the environment."""


class ImageConfig(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The ``config`` of an OCI image configuration."""

    entrypoint: list[str] = []
    cmd: list[str] = []
    env: list[str] = []
    working_dir: str = ""
    user: str = ""
    exposed_ports: dict[str, dict[str, str]] = {}
    labels: dict[str, str] = {}
    stop_signal: str = ""
    volumes: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Image:
    """An image ready to run."""

    name: str
    """The reference it was found under."""
    id: str
    """``sha256:...`` of its configuration: the container status's imageID where it has no digest."""
    digest: str
    """``sha256:...`` of its manifest."""
    config: ImageConfig
    layers: tuple[str, ...] = ()
    """Extracted layers, topmost first."""
    host: bool = True
    python: str = ""
    """The interpreter its programs use, if it is a Python image."""
    extra: tuple[str, ...] = ()
    """Host directories its programs need, shown read-only."""
    size: int = 0
    builtin: bool = False
    tags: tuple[str, ...] = field(default=())

    @property
    def env(self) -> dict[str, str]:
        """The configured environment."""
        return dict(entry.partition("=")[::2] for entry in self.config.env)
