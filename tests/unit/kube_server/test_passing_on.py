"""What travels with a request that is passed on to another server: never whom the client says it is."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from sampan.kube.server.relay import forwarded
from sampan.kube.server.tunnel import Backend, _head

SPOOFED = {
    "X-Remote-User": "root",
    "x-remote-GROUP": "system:masters",
    "X-Remote-Extra-Scopes": "all",
    "Impersonate-User": "root",
    "impersonate-extra-a": "b",
    "Authorization": "Bearer secret",
    "Cookie": "secret",
}


@pytest.mark.parametrize("upgrade", [False, True])
def test_a_client_cannot_speak_for_the_front_proxy(upgrade: bool) -> None:
    ours = [("X-Remote-User", "alice"), ("X-Remote-Group", "system:authenticated")]
    request = make_mocked_request("GET", "/apis/x/v1/y", headers={**SPOOFED, "Accept": "a/b", "Upgrade": "websocket"})
    if upgrade:
        head = _head(request, Backend("10.0.0.1", 443, None), "/apis/x/v1/y", ours, False).decode()
        passed = [(name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)]
    else:
        passed = [*forwarded(request), *ours]
    assert [pair for pair in passed if pair[0].lower().startswith(("x-remote-", "impersonate-"))] == ours
    assert ("Accept", "a/b") in passed
    assert not any("secret" in value for _, value in passed)
