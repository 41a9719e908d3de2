"""What a function takes and gives: requests, responses and CloudEvents."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

STRUCTURED = "application/cloudevents+json"
_CORE = ("id", "source", "type", "subject", "time", "dataschema")


class FunctionError(Exception):
    """The request cannot be served; ``status`` and the text are the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """An HTTP request; header names are lower-case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @cached_property
    def path(self) -> str:
        """The path, decoded, without the query."""
        return unquote(urlsplit(self.target).path) or "/"

    @cached_property
    def query(self) -> dict[str, str]:
        """Query parameters; of a repeated one the last."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            FunctionError: 400, it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise FunctionError(400, f"the body is not JSON: {error}") from error


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(value: object) -> Response:
        """What a function returned: a Response, text, bytes, something for JSON, (any of those, status), or None for 204.

        Raises:
            TypeError: it is nothing that can be sent.
        """
        match value:
            case Response():
                return value
            case None:
                return Response(status=204)
            case (inner, int(status)):
                made = Response.of(inner)
                return Response(made.body, status, made.headers)
            case str():
                return Response(value.encode(), headers={"content-type": "text/plain; charset=utf-8"})
            case bytes():
                return Response(value, headers={"content-type": "application/octet-stream"})
            case _:
                return Response(json.dumps(value).encode(), headers={"content-type": "application/json"})


@dataclass(frozen=True)
class Event:
    """A CloudEvent, version 1.0."""

    type: str
    source: str
    data: Any = None
    """Decoded JSON where the content type says JSON; else text or bytes."""
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    subject: str = ""
    time: str = ""
    dataschema: str = ""
    datacontenttype: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def is_in(request: Request) -> bool:
        """The request carries one."""
        return "ce-specversion" in request.headers or request.headers.get("content-type", "").startswith(STRUCTURED)

    @staticmethod
    def of(request: Request) -> Event:
        """The event of a request, in binary or structured mode.

        Raises:
            FunctionError: 400, something that must be there is not.
        """
        content_type = request.headers.get("content-type", "")
        if content_type.startswith(STRUCTURED):
            document = request.json()
            if not isinstance(document, dict):
                raise FunctionError(400, "a structured CloudEvent is a JSON object")
            attributes = {name: value for name, value in document.items() if name not in ("data", "data_base64")}
            data = document.get("data")
            if "data_base64" in document:
                import base64

                data = base64.b64decode(document["data_base64"])
        else:
            attributes = {
                name.removeprefix("ce-"): unquote(value)
                for name, value in request.headers.items()
                if name.startswith("ce-")
            }
            attributes["datacontenttype"] = content_type
            data = _decoded(request.body, content_type)
        missing = [name for name in ("specversion", "id", "source", "type") if not attributes.get(name)]
        if missing:
            raise FunctionError(400, f"not a CloudEvent: {', '.join(missing)} missing")
        known = {name: str(attributes.pop(name, "") or "") for name in (*_CORE, "datacontenttype")}
        attributes.pop("specversion")
        return Event(data=data, extensions={name: str(value) for name, value in attributes.items()}, **known)

    def response(self) -> Response:
        """The event as an answer in binary mode."""
        headers = {"ce-specversion": "1.0"}
        for name in _CORE:
            if getattr(self, name):
                headers[f"ce-{name}"] = getattr(self, name)
        headers |= {f"ce-{name}": value for name, value in self.extensions.items()}
        if self.data is None:
            return Response(headers=headers)
        made = Response.of(self.data)
        content_type = self.datacontenttype or made.headers["content-type"]
        return Response(made.body, 200, {**headers, "content-type": content_type})


def _decoded(body: bytes, content_type: str) -> Any:
    kind = content_type.partition(";")[0].strip()
    if not body:
        return None
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return json.loads(body)
        except ValueError as error:
            raise FunctionError(400, f"the event's data is not JSON: {error}") from error
    return body.decode("utf-8", "replace") if kind.startswith("text/") else body
