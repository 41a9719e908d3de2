"""Which function answers what: the decorators, and the choice of a function for a request."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from sampan.functions.messages import Event, FunctionError, Request, Response

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Application:
    """The functions of one program."""

    by_path: dict[str, Callable[[Request], Any]] = field(default_factory=dict)
    by_type: dict[str, Callable[[Event], Any]] = field(default_factory=dict)

    async def answer(self, request: Request) -> Response:
        """The answer to a request; what a function raises is a 500 that says no more than that."""
        try:
            if self.by_type and Event.is_in(request):
                return await self._on_event(Event.of(request))
            return await self._on_request(request)
        except FunctionError as error:
            return Response(str(error).encode(), error.status, {"content-type": "text/plain; charset=utf-8"})
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return Response(b"the function failed\n", 500, {"content-type": "text/plain; charset=utf-8"})

    async def _on_event(self, event: Event) -> Response:
        function = self.by_type.get(event.type) or self.by_type.get("")
        if function is None:
            raise FunctionError(404, f"no function takes events of type {event.type}")
        reply = await _call(function, event)
        if reply is None:
            return Response(status=202)
        if isinstance(reply, dict):
            reply = Event(type=f"{event.type}.reply", source=f"/functions/{function.__name__}", data=reply)
        return reply.response() if isinstance(reply, Event) else Response.of(reply)

    async def _on_request(self, request: Request) -> Response:
        path = request.path
        while True:
            function = self.by_path.get(path)
            if function is not None:
                return Response.of(await _call(function, request))
            if path == "/":
                break
            path = path.rstrip("/").rpartition("/")[0] or "/"
        if self.by_type:
            raise FunctionError(400, "not a CloudEvent: neither ce- headers nor application/cloudevents+json")
        raise FunctionError(404, f"no function answers {request.path}")


async def _call(function: Callable[..., Any], argument: object) -> Any:
    """A plain function runs in a thread, so that one that blocks holds up nobody else."""
    if inspect.iscoroutinefunction(function):
        return await function(argument)
    return await asyncio.to_thread(function, argument)


APPLICATION = Application()
"""Where the decorators put what they are given."""


@overload
def http(function: F, /) -> F: ...


@overload
def http(*, path: str = "/") -> Callable[[F], F]: ...


def http(function: Any = None, /, *, path: str = "/") -> Any:
    """Answer HTTP requests at ``path`` and below it, where no other function's path is longer."""

    def register(chosen: F) -> F:
        APPLICATION.by_path[path.rstrip("/") or "/"] = chosen
        return chosen

    return register if function is None else register(function)


@overload
def event(function: F, /) -> F: ...


@overload
def event(*, type: str = "") -> Callable[[F], F]: ...


def event(function: Any = None, /, *, type: str = "") -> Any:
    """Take CloudEvents of a type, or all that no other function takes. An Event or a dict that it returns is the reply."""

    def register(chosen: F) -> F:
        APPLICATION.by_type[type] = chosen
        return chosen

    return register if function is None else register(function)
