"""The node's error family: what can go wrong between a pod's spec and its processes.

Each error says which upstream waiting reason it becomes, so the agent maps errors to container states in one place.
"""

from __future__ import annotations

from typing import ClassVar

from sampan.kernel.errors import SampanError


class NodeError(SampanError):
    """Something the node could not do; ``reason`` is the container's waiting reason upstream gives it."""

    reason: ClassVar[str] = "CreateContainerError"


class ContainerConfigError(NodeError):
    """The container's configuration cannot be resolved (a missing ConfigMap, a bad reference)."""

    reason = "CreateContainerConfigError"


class StartError(NodeError):
    """The process could not be started: no such command, not executable, a mount that fails."""

    reason = "RunContainerError"


class SandboxError(NodeError):
    """The pod's sandbox (namespaces, address, cgroup) could not be made."""

    reason = "FailedCreatePodSandBox"


class ImageError(NodeError):
    """An image could not be had; the message says how to get it."""

    reason = "ErrImagePull"


class ImageNeverPullError(ImageError):
    """The image is absent and the pull policy is Never."""

    reason = "ErrImageNeverPull"


class ImageNameError(ImageError):
    """The image reference cannot be parsed."""

    reason = "InvalidImageName"


class BuildError(ImageError):
    """An image could not be built from a directory."""


class VolumeError(NodeError):
    """A volume could not be set up; the pod waits and the mount is retried."""

    reason = "FailedMount"


class RuntimeLostError(NodeError):
    """The keeper of the node's processes is gone; what it ran has been ended."""
