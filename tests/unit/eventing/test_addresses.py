"""What objects say of brokers elsewhere."""

from __future__ import annotations

import pytest

from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.errors import ConnectionSettingsError
from sampan.parts.eventing.fronts.rocketmq_sink import FIFO, NORMAL, group_of
from sampan.parts.eventing.streams import proxy_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ""),
        ("10.0.0.1:8081", "10.0.0.1:8081"),
        ("proxy.rocketmq:8081;other:8081", "proxy.rocketmq:8081"),
        (" http://proxy:8081", "proxy:8081"),
        ("[::1]:8081", "[::1]:8081"),
    ],
)
def test_a_proxys_address_is_read(text: str, address: str) -> None:
    assert proxy_address(text) == address


@pytest.mark.parametrize("text", ["proxy", "proxy:", ":8081", "proxy:many", "proxy:70000", "proxy:²"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(ConnectionSettingsError, match="host:port"):
        proxy_address(text)


@pytest.mark.parametrize(
    ("kinds", "key", "group"),
    [
        ({NORMAL}, "k", ""),
        ({NORMAL, FIFO}, "k", "k"),
        ({NORMAL, FIFO}, None, ""),
        ({FIFO}, None, "/shop"),
        ({FIFO}, "k" * 99, "k" * 64),
    ],
)
def test_an_events_message_group_is_what_the_topic_can_keep_in_order(
    kinds: set[int], key: str | None, group: str
) -> None:
    event = cloudevents.make("order", "/shop", "1", b"{}")
    if key:
        event.attributes["partitionkey"] = key
    assert group_of(event, frozenset(kinds)) == group
