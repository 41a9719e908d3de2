"""Functions: which one answers, what it is given, what becomes of what it returns."""

from __future__ import annotations

import asyncio
import json

import pytest

from sampan.functions.application import Application
from sampan.functions.messages import Event, FunctionError, Request, Response


def answer(application: Application, request: Request) -> Response:
    return asyncio.run(application.answer(request))


@pytest.mark.parametrize(
    ("value", "status", "body", "content_type"),
    [
        ("hi", 200, b"hi", "text/plain; charset=utf-8"),
        (b"hi", 200, b"hi", "application/octet-stream"),
        ({"a": 1}, 200, b'{"a": 1}', "application/json"),
        (("made", 201), 201, b"made", "text/plain; charset=utf-8"),
        (None, 204, b"", None),
        (Response(b"x", 418), 418, b"x", None),
    ],
)
def test_what_a_function_returns_becomes_a_response(value: object, status: int, body: bytes, content_type: str) -> None:
    made = answer(Application(by_path={"/": lambda _: value}), Request("GET", "/"))
    assert (made.status, made.body, made.headers.get("content-type")) == (status, body, content_type)


def test_the_longest_path_answers() -> None:
    functions = {"/": lambda _: "root", "/a": lambda _: "a", "/a/b": lambda _: "b"}
    application = Application(by_path=functions)
    found = {
        path: answer(application, Request("GET", path)).body.decode()
        for path in ("/", "/x", "/a", "/a/c", "/a/b/c", "/ab")
    }
    assert found == {"/": "root", "/x": "root", "/a": "a", "/a/c": "a", "/a/b/c": "b", "/ab": "root"}


def test_a_function_that_fails_is_a_500_without_its_secrets() -> None:
    def broken(_: Request) -> str:
        raise ValueError("the password is 1234")

    made = answer(Application(by_path={"/": broken}), Request("GET", "/"))
    assert made.status == 500
    assert b"1234" not in made.body


def test_a_request_knows_its_query_and_refuses_bad_json() -> None:
    request = Request("POST", "/a%20b?x=1&y=&x=2", {}, b"{")
    assert (request.path, request.query) == ("/a b", {"x": "2", "y": ""})
    with pytest.raises(FunctionError, match="not JSON"):
        request.json()


BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "ce-shard": "7"}


def test_events_come_in_binary_and_structured_mode() -> None:
    binary = Event.of(Request("POST", "/", {**BINARY, "content-type": "application/json"}, b'{"a": 1}'))
    document = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "shard": 7, "data": {"a": 1}}
    structured = Event.of(
        Request("POST", "/", {"content-type": "application/cloudevents+json"}, json.dumps(document).encode())
    )
    for event in (binary, structured):
        assert (event.id, event.source, event.type, event.data, event.extensions) == (
            "1",
            "/s",
            "t",
            {"a": 1},
            {"shard": "7"},
        )


def test_an_event_goes_to_the_function_of_its_type_and_the_reply_is_an_event() -> None:
    application = Application(by_type={"t": lambda event: {"got": event.id}, "": lambda _: None})
    reply = answer(application, Request("POST", "/", BINARY))
    assert (reply.status, json.loads(reply.body)) == (200, {"got": "1"})
    assert reply.headers["ce-type"] == "t.reply"
    assert answer(application, Request("POST", "/", {**BINARY, "ce-type": "other"})).status == 202


def test_what_is_no_event_is_refused() -> None:
    application = Application(by_type={"": lambda _: None})
    assert answer(application, Request("POST", "/", {}, b"x")).status == 400
    missing = {key: value for key, value in BINARY.items() if key != "ce-id"}
    made = answer(application, Request("POST", "/", missing))
    assert (made.status, made.body) == (400, b"not a CloudEvent: id missing")
