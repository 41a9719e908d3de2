"""What a joined node's process tells its parts: `Joined`, found in the context where the platform runs elsewhere."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext

__all__ = ["JOINED", "Joined"]


@dataclass(frozen=True)
class Joined:
    """What a joined node knows about itself and about the platform it belongs to."""

    node: str
    """Its name."""
    address: str
    """Its own address, by which the platform and other nodes reach it."""
    server: tuple[str, int]
    """IPv4 address and port of the API server, as this machine reaches it."""
    same_machine: bool
    """The platform runs on this very machine (network namespace): what listens on its loopback can be reached."""
    pod_range: str
    """The addresses of its pods, given out by the platform."""
    serving: Callable[[], ssl.SSLContext]
    """The TLS context of its kubelet API: a ``kubelet-serving`` certificate, callers verified; follows renewals."""
    network: Client
    """The API as ``system:kube-proxy``: Services, endpoints, policies and what they select."""
    network_control: ControlContext
    """For controllers that act as that user."""
