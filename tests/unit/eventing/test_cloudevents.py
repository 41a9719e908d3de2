"""CloudEvents over HTTP: what is read, what is refused, and that nothing is lost on the way (judged by the SDK too)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent, from_http
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event, decode, encode, pack, unpack
from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError

BASE = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/a", "ce-type": "t"}
STRUCTURED = {"content-type": "application/cloudevents+json"}

names = st.from_regex(r"[a-z][a-z0-9]{0,11}", fullmatch=True).filter(
    lambda name: (
        name not in ("id", "source", "type", "specversion", "time", "subject", "data", "dataschema", "datacontenttype")
    )
)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
values = texts | st.booleans() | st.integers(-(2**31), 2**31 - 1)


@st.composite
def events(draw: st.DrawFn) -> Event:
    attributes: dict[str, Any] = {"specversion": "1.0", "id": draw(texts), "source": "/s", "type": draw(texts)}
    attributes.update(draw(st.dictionaries(names, values, max_size=4)))
    content_type = draw(st.sampled_from(["application/json", "text/plain", "application/octet-stream"]))
    data = draw(st.none() | st.binary(min_size=1, max_size=60))
    if data is not None:
        attributes["datacontenttype"] = content_type
        if content_type == "application/json":
            data = msgspec.json.encode(draw(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)))
    return Event(attributes, data, draw(st.sampled_from(["binary", "structured"])))


@given(events())
@settings(max_examples=150)
def test_an_event_survives_storage_and_both_modes(event: Event) -> None:
    assert unpack(pack(event)) == event
    headers, body = cloudevents.encode_structured(event)
    found = decode(CIMultiDict(headers), body)
    assert (found.attributes, found.data) == (event.attributes, event.data)
    headers, body = cloudevents.encode_binary(event)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    found = decode(CIMultiDict(headers), body)
    assert {name: found.text(name) for name in found.attributes} == {
        name: event.text(name) for name in event.attributes
    }
    assert found.data == event.data


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=6), st.binary(max_size=80))
@settings(max_examples=150)
def test_anything_else_is_refused_and_nothing_else_happens(headers: dict[str, str], body: bytes) -> None:
    for more in ({}, BASE, STRUCTURED):
        try:
            decode(CIMultiDict({**headers, **more}), body)
        except (NotAnEventError, MalformedEventError):
            continue


@pytest.mark.parametrize("convert", [to_binary, to_structured])
@pytest.mark.parametrize("data", [{"a": [1, "ü"]}, "plain text", b"\x00\xff", None])
def test_the_sdk_and_we_read_each_other(convert: Any, data: Any) -> None:
    kinds: dict[type, str] = {dict: "application/json", str: "text/plain", bytes: "application/octet-stream"}
    content_type = kinds.get(type(data))
    attributes = {"type": "t", "source": "/s", "subject": "x y", "comexample": "1"}
    if content_type:
        attributes["datacontenttype"] = content_type
    made = CloudEvent(attributes, data)
    headers, body = convert(made)
    event = decode(CIMultiDict(headers), body)
    assert event.text("id") == made["id"]
    again = from_http(encode(event)[0], encode(event)[1])
    assert again["comexample"] == "1"
    assert again["time"] == made["time"]
    if isinstance(data, dict):
        assert again.data == data
    elif data is not None:
        assert again.data in (data, data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"ce-id": ""}, "attribute id is not a non-empty"),
        ({"ce-specversion": "1.1"}, "specversion '1.1'"),
        ({"ce-source": "a b"}, "source is not a URI"),
        ({"ce-source": "a%zz"}, "broken percent"),
        ({"ce-time": "2024-02-30T00:00:00Z"}, "time is not a time"),
        ({"ce-time": "yesterday"}, "time is not a time"),
        ({"ce-dataschema": "relative/path"}, "dataschema is not an absolute URI"),
        ({"ce-subject": ""}, "subject is not a non-empty"),
        ({"ce-some_name": "x"}, "attribute name 'some_name'"),
        ({"ce-x": "%ff"}, "not UTF-8"),
        ({"ce-x": "a%0Ab"}, "control characters"),
        ({"content-type": "nonsense"}, "datacontenttype is not a media type"),
        ({"ce-data": "x"}, "is not allowed"),
    ],
)
def test_a_malformed_binary_event_is_refused_with_the_reason(headers: dict[str, str], what: str) -> None:
    with pytest.raises(MalformedEventError, match=what):
        decode(CIMultiDict({**BASE, **headers}), b"x")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"id": 5}, "attribute id is not a non-empty string"),
        ({"n": 1.5}, "not an integer"),
        ({"n": 2**31}, "32-bit"),
        ({"n": {}}, "not a simple value"),
        ({"Upper": "x"}, "attribute name 'Upper'"),
        ({"data": 1, "data_base64": "YQ=="}, "exclude each other"),
        ({"data_base64": "!"}, "not base64"),
    ],
)
def test_a_malformed_structured_event_is_refused_with_the_reason(entry: dict[str, Any], what: str) -> None:
    body = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", **entry}
    with pytest.raises(MalformedEventError, match=what):
        decode(CIMultiDict(STRUCTURED), msgspec.json.encode(body))


def test_headers_are_decoded_as_the_binding_says() -> None:
    event = decode(CIMultiDict({**BASE, "CE-Subject": "Euro%20%E2%82%AC%20%F0%9F%98%80"}), b"")
    assert event.attributes["subject"] == "Euro € 😀"
    assert event.data is None
    assert cloudevents.encode_binary(event)[0]["ce-subject"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"


def test_null_means_not_there_and_an_old_event_becomes_a_new_one() -> None:
    body = b'{"specversion":"0.3","id":"1","source":"/a","type":"t","subject":null,"schemaurl":"http://s/x",'
    body += b'"datacontentencoding":"base64","datacontenttype":"text/plain","data":"aGk="}'
    event = decode(CIMultiDict(STRUCTURED), body)
    assert event.attributes == {
        "specversion": "1.0",
        "id": "1",
        "source": "/a",
        "type": "t",
        "dataschema": "http://s/x",
        "datacontenttype": "text/plain",
    }
    assert event.data == b"hi"


def test_a_batch_is_read_and_written_as_one() -> None:
    batch = [cloudevents.make("t", "/a", str(number), b'{"n":1}') for number in range(3)]
    headers, body = cloudevents.encode_batch(batch)
    found = cloudevents.decode_batch(CIMultiDict(headers), body)
    assert [(one.attributes, one.data) for one in found] == [(one.attributes, one.data) for one in batch]
    with pytest.raises(NotAnEventError):
        decode(CIMultiDict(headers), body)
