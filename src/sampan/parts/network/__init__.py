"""Services, cluster DNS and NetworkPolicy: how pods find and reach each other by name."""

from __future__ import annotations


def loopback_address(address: str) -> str:
    """Where forwarders in user space listen for a cluster address: ``10.96.0.10`` at ``127.96.0.10``."""
    return "127." + address.partition(".")[2]
