"""The machine's addresses: under which others reach what listens here."""

from __future__ import annotations

import socket

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104


def advertised(host: str) -> str:
    """The address to tell others for a listener on ``host``: itself, or for a wildcard the machine's own address towards the
    outside (127.0.0.1 where it has none)."""
    if host not in WILDCARDS:
        return host
    try:
        return towards("192.0.2.1", 9)
    except OSError:
        return _first_interface()


def _first_interface() -> str:
    """The first IPv4 address that is not loopback, on a machine without a default route."""
    import psutil

    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return str(one.address)
    return "127.0.0.1"


def towards(host: str, port: int) -> str:
    """The address this machine has towards another. Raises OSError (there is no route)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((host, port))  # sends nothing; the kernel chooses the source
        return str(asked.getsockname()[0])


def is_own(address: str) -> bool:
    """The IPv4 address is this machine's (in this network namespace)."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind((address, 0))
    except OSError:
        return False
    return True
