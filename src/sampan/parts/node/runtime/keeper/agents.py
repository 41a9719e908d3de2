"""The keeper's side of its socket: agents come and go, ask, and are told.

``{"id": 1, "op": "start", ...}`` is answered by ``{"id": 1, ...}`` or ``{"id": 1, "error": ..., "code": ...}``; ``{"event":
"exited", ...}`` comes unasked. Descriptors of an exec or attach travel beside a request. An agent that reads no more is cut off:
what it missed it finds by listing when it comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

MESSAGE_SIZE = 1 << 18
OUTGOING_LIMIT = 100_000
"""Messages that may wait for an agent before it is taken to be stuck."""

Request = dict[str, Any]
Reply = Callable[[dict[str, Any]], None]
Operation = Callable[[Request, Reply, list[int], socket.socket], None]
"""``operation(request, reply, descriptors, connection)``; OSError, ValueError and KeyError become the answer's error."""


class Agents:
    """The connected agents (one, but for the moment in which one replaces another)."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        operations: Mapping[str, Operation],
        greeting: Callable[[], dict[str, Any]],
        dropped: Callable[[socket.socket], None],
    ) -> None:
        self.connected: list[socket.socket] = []
        self._selector = selector
        self._operations = operations
        self._greeting = greeting
        self._dropped = dropped
        self._outgoing: dict[socket.socket, deque[bytes]] = {}
        """Messages that an agent's socket has no room for yet."""

    def accept(self, listener: socket.socket) -> None:
        """Greet an agent."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.connected.append(connection)
        self._outgoing[connection] = deque()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))
        self.send(connection, {"event": "hello", **self._greeting()})

    def send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        """A message to one agent, if it is still there."""
        if connection not in self.connected:
            return
        encoded = json.dumps(message).encode()
        waiting = self._outgoing[connection]
        if not waiting:
            try:
                connection.send(encoded)
            except BlockingIOError:
                self._selector.modify(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self._both(connection))
            except OSError:
                self._drop(connection)
                return
            else:
                return
        waiting.append(encoded)
        if len(waiting) > OUTGOING_LIMIT:
            # the agent reads no more: cut it off; what it missed it finds by listing when it comes back
            self._drop(connection)

    def _both(self, connection: socket.socket) -> Callable[[], None]:
        """Write what waits for an agent, and read what it says."""

        def ready() -> None:
            waiting = self._outgoing.get(connection)
            while waiting:
                try:
                    connection.send(waiting[0])
                except BlockingIOError:
                    break
                except OSError:
                    self._drop(connection)
                    return
                waiting.popleft()
            if waiting is not None and not waiting:
                self._selector.modify(connection, selectors.EVENT_READ, lambda: self._receive(connection))
            self._receive(connection)

        return ready

    def _drop(self, connection: socket.socket) -> None:
        if connection not in self.connected:
            return
        self.connected.remove(connection)
        del self._outgoing[connection]
        self._selector.unregister(connection)
        connection.close()
        self._dropped(connection)

    def _receive(self, connection: socket.socket) -> None:
        try:
            message, descriptors, _flags, _address = socket.recv_fds(connection, MESSAGE_SIZE, 4)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not message:
            self._drop(connection)
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        request = json.loads(message)
        number = request.get("id")

        def reply(answer: dict[str, Any]) -> None:
            if number is not None and connection in self.connected:
                self.send(connection, {"id": number, **answer})

        try:
            self._operations[request["op"]](request, reply, descriptors, connection)
        except (OSError, ValueError, KeyError) as error:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            reply({"error": str(error), "code": 128})

    def tell(self, event: dict[str, Any]) -> None:
        """An event to every agent."""
        for connection in list(self.connected):
            self.send(connection, event)
