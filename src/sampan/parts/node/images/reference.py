"""Image references: ``nginx`` is ``docker.io/library/nginx:latest``, as every container tool reads it."""

from __future__ import annotations

import re
from typing import NamedTuple

from sampan.parts.node.errors import ImageNameError

_DOMAIN = re.compile(r"^(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?=:))(?::[0-9]+)?$")
_PATH = re.compile(r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


class Reference(NamedTuple):
    """One parsed reference."""

    domain: str
    path: str
    tag: str
    digest: str

    @staticmethod
    def parse(text: str) -> Reference:
        """Parse as container tools do.

        Raises:
            ImageNameError: not a reference; the message is the kubelet's.
        """
        rest, _, digest = text.partition("@")
        domain, slash, path = rest.partition("/")
        if not slash or not _DOMAIN.match(domain):
            domain, path = "docker.io", rest
        path, colon, tag = path.rpartition(":")
        if not colon:
            path, tag = tag, ""
        if domain == "docker.io" and "/" not in path:
            path = f"library/{path}"
        if not _PATH.match(path) or (colon and not _TAG.match(tag)) or ("@" in text and not _DIGEST.match(digest)):
            raise ImageNameError(
                f'Failed to apply default image tag "{text}": couldn\'t parse image name "{text}": invalid reference format'
            )
        if not tag and not digest:
            tag = "latest"
        return Reference(domain, path, tag, digest)

    @property
    def repository(self) -> str:
        """Without tag and digest, in full."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The repository as people write it: ``nginx``, ``bitnami/redis``, ``ghcr.io/x/y``."""
        if self.domain != "docker.io":
            return self.repository
        return self.path.removeprefix("library/")

    def __str__(self) -> str:
        text = self.repository
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text


def default_pull_policy(image: str) -> str:
    """Always for ``latest`` (or no tag), IfNotPresent otherwise."""
    reference = Reference.parse(image)
    return "Always" if reference.tag == "latest" and not reference.digest else "IfNotPresent"
