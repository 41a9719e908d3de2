"""Which addresses are this machine's own."""

from __future__ import annotations

import pytest

from sampan.kernel.addresses import is_here, towards


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1", True),
        ("127.77.3.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("192.0.2.77", False),
        ("::ffff:192.0.2.77", False),
        ("2001:db8::77", False),
        ("somewhere", False),
        ("", False),
    ],
)
def test_an_address_is_here_if_connections_to_it_arrive_here(address: str, here: bool) -> None:
    assert is_here(address) == here


def test_the_machines_address_towards_the_outside_is_here() -> None:
    try:
        own = towards("192.0.2.1", 9)
    except OSError:
        pytest.skip("this machine has no way to the outside")
    assert is_here(own)
