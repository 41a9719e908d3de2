"""Whether a peer is still there, as far as the system tells."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sampan.kernel.departure import probe, state


@pytest.mark.parametrize("missing", [(), ("TCP_INFO", "TCP_KEEPIDLE")])
def test_a_system_that_tells_less_is_asked_less(monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]) -> None:
    for name in missing:
        monkeypatch.delattr(socket, name)
    with socket.socket() as connection:
        transport = asyncio.BaseTransport({"socket": connection})
        probe(transport)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        assert state(transport) == (0 if missing else 7)
