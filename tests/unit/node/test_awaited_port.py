"""When a built-in server is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.parts.node.agent.launching import awaited_port
from sampan.parts.node.images.image import Image, ImageConfig


def image(*, builtin: bool = True, **ports: int) -> Image:
    exposed: dict[str, dict[str, str]] = {f"{port}/{protocol}": {} for protocol, port in ports.items()}
    return Image("nginx", "sha256:1", "sha256:2", ImageConfig(exposed_ports=exposed), layers=(), builtin=builtin)


def test_a_built_in_server_is_waited_for() -> None:
    assert awaited_port({}, image(tcp=80)) == 80


@pytest.mark.parametrize("field", ["command", "args", "readinessProbe", "startupProbe"])
def test_who_says_how_it_starts_is_not(field: str) -> None:
    spec: dict[str, Any] = {field: ["sleep"] if field in ("command", "args") else {"exec": {}}}
    assert awaited_port(spec, image(tcp=80)) == 0


def test_images_of_ones_own_and_without_tcp_ports_are_not() -> None:
    assert awaited_port({}, image(builtin=False, tcp=80)) == 0
    assert awaited_port({}, image(udp=53)) == 0
    assert awaited_port({}, image()) == 0
