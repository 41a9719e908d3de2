"""A Kafka record as an event."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Value
from sampan.parts.eventing.errors import ConnectionSettingsError
from sampan.parts.eventing.kafka.reader import Connection
from sampan.parts.eventing.kafka.records import event_of, key_of


class Record(msgspec.Struct):
    topic: str = "orders"
    partition: int = 2
    offset: int = 41
    timestamp: int = 1_700_000_000_123
    key: bytes | None = None
    value: bytes | None = b'{"n": 1}'
    headers: Sequence[tuple[str, bytes]] = ()


def test_a_record_becomes_an_event_with_its_key_and_headers_as_extensions() -> None:
    record = Record(key=b"k1", headers=[("X-Trace_Id", b"77"), ("content-type", b"application/json")])
    event = event_of(record, "shop", "reader")
    assert event.attributes == {
        "specversion": "1.0",
        "id": "partition:2/offset:41",
        "source": "/apis/v1/namespaces/shop/kafkasources/reader#orders",
        "type": "dev.knative.kafka.event",
        "subject": "partition:2#41",
        "time": "2023-11-14T22:13:20.123Z",
        "kafkaheaderxtraceid": "77",
        "kafkaheadercontenttype": "application/json",
        "key": "k1",
        "partitionkey": "k1",
        "datacontenttype": "application/json",
    }
    assert event.data == b'{"n": 1}'


def test_a_tombstone_has_no_data() -> None:
    event = event_of(Record(value=None, key=b"k"), "shop", "reader")
    assert event.data is None
    assert "datacontenttype" not in event.attributes


@pytest.mark.parametrize(
    ("kind", "key", "found"),
    [
        ("string", "钥匙".encode(), "钥匙"),
        ("int", (7).to_bytes(4, "big"), 7),
        ("int", (-1).to_bytes(8, "big", signed=True), -1),
        ("int", (2**40).to_bytes(8, "big"), str(2**40)),
        ("int", b"abc", "abc"),
        ("float", struct.pack(">d", 1.5), "1.5"),
        ("float", struct.pack(">f", 0.25), "0.25"),
        ("byte-array", b"\x00\xff", "AP8="),
    ],
)
def test_a_key_is_what_the_label_says(kind: str, key: bytes, found: Value) -> None:
    assert key_of(key, kind) == found


def test_a_cloud_event_stays_what_it_is_in_both_modes() -> None:
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"9"),
        ("ce_type", b"order"),
        ("ce_source", b"/shop"),
        ("ce_note", "50 % off, für dich".encode()),
        ("content-type", b"text/plain"),
    ]
    event = event_of(Record(value=b"hi", headers=headers), "shop", "reader")
    assert (event.text("id"), event.text("note"), event.data) == ("9", "50 % off, für dich", b"hi")
    assert event.text("datacontenttype") == "text/plain"
    structured = b'{"specversion":"1.0","id":"8","type":"order","source":"/shop","data":{"n":2}}'
    kind = [("Content-Type", b"application/cloudevents+json; charset=UTF-8")]
    event = event_of(Record(value=structured, headers=kind), "shop", "reader")
    assert (event.text("id"), event.data, event.mode) == ("8", b'{"n":2}', "structured")


def test_what_says_it_is_an_event_and_is_none_goes_on_as_a_record() -> None:
    record = Record(headers=[("ce_specversion", b"1.0"), ("ce_id", b"9")])
    event = event_of(record, "shop", "reader")
    assert event.text("type") == "dev.knative.kafka.event"
    assert event.text("kafkaheaderceid") == "9"


@given(
    st.binary(),
    st.none() | st.binary(),
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.binary())),
    st.sampled_from(["string", "int", "float", "byte-array"]),
)
def test_whatever_a_record_holds_its_event_is_valid(
    value: bytes, key: bytes | None, headers: list[tuple[str, bytes]], kind: str
) -> None:
    event = event_of(Record(value=value, key=key, headers=headers), "shop", "reader", kind)
    cloudevents.check(event.attributes)
    packed = cloudevents.unpack(cloudevents.pack(event))
    assert (packed.attributes, packed.data) == (event.attributes, event.data)


def test_how_the_client_library_is_told_to_connect() -> None:
    options = Connection(("a:9092", "b:9092"), mechanism="SCRAM-SHA-512", user="u", password="p").options()
    assert options == {
        "bootstrap_servers": ["a:9092", "b:9092"],
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }
    with pytest.raises(ConnectionSettingsError, match=r"net\.tls"):
        Connection(("a:9093",), tls=True, authority="no certificate").options()
