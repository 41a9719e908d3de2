"""Receivers, brokers, triggers and senders for the tests of eventing; events are made and read by the CloudEvents SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent, from_http

from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.parts.eventing.resources import BROKERS, TRIGGERS
from sampan.testing import Platform


class Receiver:
    """A subscriber: keeps what it gets (read by the SDK) and answers as it is told."""

    def __init__(self) -> None:
        self.events: list[CloudEvent] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[web.Response] = []
        self.reply: CloudEvent | None = None
        self.url = ""
        self._arrived = asyncio.Condition()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        event = from_http(dict(request.headers), body)
        async with self._arrived:
            self.events.append(event)
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            self._arrived.notify_all()
        if self.answers:
            return self.answers.pop(0)
        if self.reply is not None:
            headers, content = to_binary(self.reply)
            return web.Response(headers=headers, body=content)
        return web.Response(status=202)

    async def wait(self, count: int) -> list[CloudEvent]:
        async with asyncio.timeout(40), self._arrived:
            await self._arrived.wait_for(lambda: len(self.events) >= count)
        return self.events


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    made.url = f"http://127.0.0.1:{port}/"
    try:
        yield made
    finally:
        await runner.cleanup()


async def ready(client: HttpClient, resource: Any, name: str, wanted: str = "True") -> Object:
    """The object once its Ready is as wanted for its present generation."""
    async with asyncio.timeout(40):
        while True:
            obj = await client.get(resource, name, "default")
            status = obj.get("status") or {}
            found = [one for one in status.get("conditions") or () if one["type"] == "Ready"]
            if found and found[0]["status"] == wanted and status["observedGeneration"] == obj["metadata"]["generation"]:
                return obj
            await asyncio.sleep(0.02)


async def broker(client: HttpClient, name: str, **spec: Any) -> Object:
    await client.create(
        BROKERS,
        {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": name}, "spec": spec},
        "default",
    )
    return await ready(client, BROKERS, name)


async def trigger(client: HttpClient, name: str, broker: str, url: str, **spec: Any) -> Object:
    body = {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": name},
        "spec": {"broker": broker, "subscriber": {"uri": url}, **spec},
    }
    await client.create(TRIGGERS, body, "default")
    return await ready(client, TRIGGERS, name)


def event(type: str = "order.placed", data: Any = None, **attributes: str) -> CloudEvent:
    kind = {} if data is None else {"datacontenttype": "application/json"}
    return CloudEvent({"type": type, "source": "/shop", **kind, **attributes}, data)


async def send(platform: Platform, path: str, made: CloudEvent, *, structured: bool = False, **more: str) -> int:
    headers, body = to_structured(made) if structured else to_binary(made)
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://{platform.address('eventing.ingress')}{path}", data=body, headers={**headers, **more}
        ) as response,
    ):
        return response.status
