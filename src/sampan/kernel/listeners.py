"""The platform's book of listening addresses.

Every server asks the book for its socket by name (``kubernetes``, ``messaging.grpc``, ...), so that ``sampan status`` can
list all of them, a taken port is one clear error that names its holder, and ``--ports auto`` needs no help from any part.
Under ``auto`` a listener gets the port it had in the platform's last run if that is still free, so that a kubeconfig or a
client configuration stays good across restarts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Mapping

from sampan.kernel.errors import PortTakenError

LOOPBACK = "127.0.0.1"
BACKLOG = 1024

Address = tuple[str, int]


class ListenerBook:
    """The listening addresses of one platform."""

    def __init__(
        self,
        *,
        auto: bool = False,
        remembered: Mapping[str, Address] | None = None,
        on_record: Callable[[str, Address], object] | None = None,
    ) -> None:
        """``remembered``: where listeners stood before; ``on_record(name, address)`` hears of each new address."""
        self._auto = auto
        self._remembered = dict(remembered or {})
        self._addresses: dict[str, Address] = {}
        self._on_record = on_record

    def bind(self, name: str, port: int, host: str | None = None) -> socket.socket:
        """A bound, listening, non-blocking socket, recorded under ``name``; port 0 is any free one.

        Raises:
            PortTakenError: the port is in use; the message names the holder.
        """
        host = host or LOOPBACK
        if self._auto or port == 0:
            remembered = self._remembered.get(name)
            listener = None
            if remembered is not None:
                with contextlib.suppress(OSError):  # somebody else has it now: any other port will do
                    listener = _listen(host, remembered[1])
            try:
                listener = listener or _listen(host, 0)
            except OSError as error:
                raise _explained(name, host, 0, error) from error
        else:
            try:
                listener = _listen(host, port)
            except OSError as error:
                raise _explained(name, host, port, error) from error
        self.record(name, host, listener.getsockname()[1])
        return listener

    def choose(self, name: str, port: int) -> int:
        """The port for a listener that something else will bind: ``port``, or a free one under ``--ports auto``.

        Raises:
            PortTakenError: the port is in use now.
        """
        probe = ListenerBook(auto=self._auto, remembered=self._remembered)
        with probe.bind(name, port) as listener:
            chosen: int = listener.getsockname()[1]
        self._remembered[name] = (LOOPBACK, chosen)
        return chosen

    def record(self, name: str, host: str, port: int) -> None:
        """Note an address that is listened on."""
        address = (host, port)
        self._remembered[name] = address
        if self._addresses.get(name) != address:
            self._addresses[name] = address
            if self._on_record is not None:
                self._on_record(name, address)

    def address(self, name: str) -> Address | None:
        """Where a listener stands, or None."""
        return self._addresses.get(name)

    def addresses(self) -> dict[str, Address]:
        """All recorded addresses by name."""
        return dict(self._addresses)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def _explained(name: str, host: str, port: int, error: OSError) -> PortTakenError:
    if error.errno != errno.EADDRINUSE:
        why = os.strerror(error.errno) if error.errno else str(error)
        return PortTakenError(f"{name} cannot listen on {host}:{port}: {why}")
    return PortTakenError(
        f"{name} cannot listen on {host}:{port}: the port is in use by {_holder(port)}; "
        "stop that, choose another port in the settings, or let Sampan choose with --ports auto"
    )


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if not (connection.laddr and connection.pid and connection.status == psutil.CONN_LISTEN):
                continue
            if connection.laddr.port == port:
                process = psutil.Process(connection.pid)
                return f"process {connection.pid} ({' '.join(' '.join(process.cmdline()).split())[:120] or process.name()})"
    return "another user's process"
