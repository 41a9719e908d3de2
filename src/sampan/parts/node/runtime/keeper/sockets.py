"""Binds and connects the sockets of pods that have addresses by convention, as `placing` decides.

A container's process hands its filter's listener over while it starts (`notification`); whatever binds or connects in it waits
here for a moment. What the keeper does with a socket it does on a descriptor of its own for the very same socket. Where
anything is unclear, the kernel does as it was asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from sampan.parts.node.runtime import notification
from sampan.parts.node.runtime.interface import Sandbox
from sampan.parts.node.runtime.notification import Notice
from sampan.parts.node.runtime.placing import Address, PodPlaces, parse

_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT: the port of the source is chosen when connecting."""
_PROBE_SECONDS = 5.0

CONNECTING = 4096
"""Connects that wait for a server with a full backlog, of all pods; more fail with EAGAIN."""

Later = Callable[[socket.socket, Callable[[], None], Callable[[], bool]], bool]
"""Call the second once the first is connected, or is not; the third tells whether the caller still waits. False: too many wait."""


class Sockets:
    """The listeners of running containers, and what their pods serve."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.services: Sequence[IPv4Network] = ()
        """The cluster addresses that forwarders stand for."""
        self.why: str | None = "not asked for"
        """What keeps sockets from being placed; None: nothing."""
        self._selector = selector
        self._pods: dict[str, PodPlaces] = {}
        self._connecting: dict[socket.socket, Callable[[], bool]] = {}

    def start(self, services: Sequence[str]) -> None:
        """Find out whether it works here."""
        self.services = [IPv4Network(one) for one in services]
        self.why = probe() or None

    def add(self, pod: Sandbox, names: str, listener: int) -> None:
        """Answer the calls that a filter stops, until nobody is left under it."""
        if pod.id not in self._pods:
            resolvers = _resolvers() if names else []
            self._pods[pod.id] = PodPlaces(pod.address, self.services, names, resolvers)
        places = self._pods[pod.id]
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._answer(places, listener))

    def forget(self, pod: str) -> None:
        """A pod is gone."""
        self._pods.pop(pod, None)

    def _answer(self, places: PodPlaces, listener: int) -> None:
        pending = notification.pending(listener)
        if pending is None:
            self._selector.unregister(listener)
            os.close(listener)
            self._sweep()
        elif pending:
            decide(places, listener, self._later)

    def _later(self, connecting: socket.socket, done: Callable[[], None], waits: Callable[[], bool]) -> bool:
        def ready() -> None:
            self._selector.unregister(connecting)
            del self._connecting[connecting]
            done()

        if len(self._connecting) >= CONNECTING:
            self._sweep()
        if len(self._connecting) >= CONNECTING:
            return False
        self._connecting[connecting] = waits
        self._selector.register(connecting, selectors.EVENT_WRITE, ready)
        return True

    def _sweep(self) -> None:
        """Let go of the sockets of those who were killed while they waited: such a connect ends by itself in minutes only."""
        for connecting, waits in list(self._connecting.items()):
            if not waits():
                self._selector.unregister(connecting)
                del self._connecting[connecting]
                connecting.close()


def _resolvers() -> list[str]:
    """The machine's name servers."""
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        return []
    return [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]


def decide(places: PodPlaces, listener: int, later: Later) -> None:
    """Answer the next call that waits at a listener."""
    try:
        notice = notification.receive(listener)
    except OSError:
        return  # nobody is left under the filter
    if notice is None:
        return
    reply = partial(notification.answer, listener, notice)
    try:
        asked = parse(notification.read_address(notice))
        held = _take(notice) if asked is not None else None
    except OSError:
        asked = held = None  # no socket, or not ours to have: the kernel says what is wrong with it
    if asked is None or held is None:
        reply(None)
    elif not notification.waits(listener, notice) or held.family != asked.family:
        held.close()
        reply(None)
    elif notice.call == notification.BIND:
        with held:
            reply(_bind(places, held, asked))
    else:
        waits = partial(notification.waits, listener, notice)
        _connect(places, held, asked, reply, lambda connecting, done: later(connecting, done, waits))


def _take(notice: Notice) -> socket.socket:
    """The call's socket. Raises OSError (it is none)."""
    descriptor = notification.take_socket(notice)
    try:
        return socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise


def _only6(held: socket.socket) -> bool:
    return held.family == socket.AF_INET6 and bool(held.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))


def _bind(places: PodPlaces, held: socket.socket, asked: Address) -> int | None:
    placed = places.bind(asked, only6=_only6(held))
    if placed is None:
        return None
    try:
        held.bind(placed.tuple())
    except OSError as error:
        return error.errno or errno.EINVAL
    places.bound(held.type, asked, placed)
    return 0


def _connect(
    places: PodPlaces,
    held: socket.socket,
    asked: Address,
    reply: Callable[[int | None], None],
    later: Callable[[socket.socket, Callable[[], None]], bool],
) -> None:
    placed = places.connect(held.type, asked, only6=_only6(held))
    if placed is None:
        held.close()
        reply(None)
        return
    _speak_as(places.address, held)
    # it leads to this machine's loopback, where it is done at once but for a full backlog: nobody else is to wait for that
    patient = os.get_blocking(held.fileno())
    if patient:
        os.set_blocking(held.fileno(), False)
    result = held.connect_ex(placed.tuple())
    if patient:
        os.set_blocking(held.fileno(), True)
    if not patient or result != errno.EINPROGRESS:
        held.close()
        reply(result)
        return

    def done() -> None:
        with held:
            reply(held.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    if not later(held, done):
        held.close()
        reply(errno.EAGAIN)


def _speak_as(address: str, held: socket.socket) -> None:
    """Let the other side see the pod's address, unless the socket has one of its own."""
    with contextlib.suppress(OSError):
        if held.getsockname()[1] == 0:
            held.setsockopt(socket.IPPROTO_IP, _NO_PORT, 1)
            held.bind((f"::ffff:{address}" if held.family == socket.AF_INET6 else address, 0))


def probe() -> str:
    """What keeps a child's sockets from being placed on this machine; "" where nothing does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = os.fork()
        if child == 0:
            os._exit(_be_probed(theirs))
        try:
            theirs.close()
            ours.settimeout(_PROBE_SECONDS)
            message, descriptors, _flags, _address = socket.recv_fds(ours, 4096, 1)
            if not descriptors:
                return message.decode() or "the probe was killed"
            listener = descriptors[0]
            try:
                places, asking = PodPlaces("127.64.255.254"), select.poll()
                asking.register(listener, select.POLLIN)
                while notification.pending(listener) is not None:
                    if not asking.poll(_PROBE_SECONDS * 1000):
                        return "its filter tells nothing"
                    decide(places, listener, lambda *_: False)
                return ours.recv(4096).decode()
            finally:
                os.close(listener)
        except OSError as error:
            return str(error)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _be_probed(parent: socket.socket) -> int:
    try:
        notification.promise()
        listener = notification.listen()
        socket.send_fds(parent, [b"listener"], [listener])
        os.close(listener)
        with socket.socket() as server:
            server.bind(("0.0.0.0", 1))  # noqa: S104 - that it becomes the pod's address is the test
            if server.getsockname()[0] != "127.64.255.254":
                parent.send(f"a wildcard server got {server.getsockname()[0]}".encode())
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # another platform's probe
            parent.send(str(error).encode())
    return 0
