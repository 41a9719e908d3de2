"""The HTTP client against a server that misbehaves in the ways real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import Clock
from sampan.kube.client.config import ClientConfig
from sampan.kube.client.http import HttpClient
from sampan.kube.resources import CLUSTER_ROLES, CONFIG_MAPS
from sampan.kube.status import ApiError, too_many_requests

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Stub:
    """A server whose behaviour a test sets."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.requests: list[web.Request] = []
        self.server = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await request.read()
        assert self.handler is not None
        return await self.handler(request)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", stub.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.server = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stub
    await runner.cleanup()


def found() -> web.Response:
    return web.json_response({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}})


async def test_a_request_is_repeated_when_the_server_asks_for_it(stub: Stub) -> None:
    clock = Clock()

    async def busy(request: web.Request) -> web.Response:
        if len(stub.requests) < 4:
            error = too_many_requests("busy", retry_after=20)
            return web.json_response(error.status(), status=429, headers={"Retry-After": "20"})
        return found()

    stub.handler = busy
    began = clock.monotonic()
    async with HttpClient(stub.server, clock=clock) as client:
        with autojump(clock, grace=0.05):
            await client.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, "default")
    assert len(stub.requests) == 4 and clock.monotonic() - began >= 60


async def test_a_server_that_never_stops_asking_is_believed_in_the_end(stub: Stub) -> None:
    clock = Clock()

    async def busy(request: web.Request) -> web.Response:
        return web.Response(status=503, text="no", headers={"Retry-After": "1"})

    stub.handler = busy
    async with HttpClient(stub.server, clock=clock) as client:
        with autojump(clock, grace=0.05), pytest.raises(ApiError) as error:
            await client.get(CONFIG_MAPS, "a", "default")
    assert (error.value.code, error.value.reason, len(stub.requests)) == (503, "ServiceUnavailable", 11)


async def test_a_refusal_without_retry_after_is_final(stub: Stub) -> None:
    async def busy(request: web.Request) -> web.Response:
        return web.json_response(too_many_requests("the budget is spent", retry_after=0).status(), status=429)

    stub.handler = busy
    async with HttpClient(stub.server) as client:
        with pytest.raises(ApiError, match="the budget is spent"):
            await client.create(CONFIG_MAPS, {}, "default", name="a", subresource="eviction")
    assert len(stub.requests) == 1


async def test_a_rotated_token_is_read_again(stub: Stub, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")

    async def guarded(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == f"Bearer {accepted}":
            return found()
        return web.Response(status=401)

    stub.handler = guarded
    async with HttpClient.from_config(ClientConfig(stub.server, token_file=token)) as client:
        accepted = "old"
        await client.get(CONFIG_MAPS, "a", "default")
        accepted = "new"
        token.write_text("new\n")
        await client.get(CONFIG_MAPS, "a", "default")
        accepted = "none"
        with pytest.raises(ApiError) as error:
            await client.get(CONFIG_MAPS, "a", "default")
        assert error.value.code == 401


async def test_a_watch_ends_when_the_server_goes_and_raises_when_it_says_so(stub: Stub) -> None:
    lines: list[bytes] = []

    async def watched(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
            await asyncio.sleep(0.01)
        assert request.transport is not None
        request.transport.abort()
        return response

    event = b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}\n'
    stub.handler = watched
    async with HttpClient(stub.server) as client:

        async def read() -> list[tuple[str, str]]:
            async with client.watch(CONFIG_MAPS, "default", revision="5") as events:
                return [(event.type, event.revision) async for event in events]

        lines[:] = [event[:20], event[20:] + event[:5], event[5:], event[:9]]
        assert await read() == [("ADDED", "7"), ("ADDED", "7")]
        query = stub.requests[0].query
        assert (query["watch"], query["resourceVersion"], query["allowWatchBookmarks"]) == ("true", "5", "true")
        lines[:] = [b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n']
        with pytest.raises(ApiError) as error:
            await read()
        assert error.value.expired
        lines[:] = [b"<html>\n"]
        with pytest.raises(ApiError, match="not JSON"):
            await read()


async def test_a_timeout_inside_a_watch_stays_the_callers_own(stub: Stub) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(5)
        return response

    stub.handler = silent
    async with HttpClient(stub.server) as client:
        with pytest.raises(TimeoutError):
            async with client.watch(CONFIG_MAPS, "default", revision="5") as events:
                async with asyncio.timeout(0.05):
                    await anext(aiter(events))


@pytest.mark.parametrize("name", ["system:node", "what?", "a#b"])
async def test_names_of_any_shape_reach_the_server_whole(stub: Stub, name: str) -> None:
    async def named(request: web.Request) -> web.Response:
        return found()

    stub.handler = named
    async with HttpClient(f"{stub.server}/k8s/one/") as client:
        await client.get(CLUSTER_ROLES, name)
    assert stub.requests[0].path == f"/k8s/one/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}"


async def test_what_is_no_api_server_is_an_api_error(stub: Stub) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    stub.handler = page
    async with HttpClient(stub.server) as client:
        with pytest.raises(ApiError, match="something else than JSON"):
            await client.get(CONFIG_MAPS, "a", "default")


async def test_impersonation_keeps_credentials_and_connections(stub: Stub) -> None:
    seen: list[dict[str, Any]] = []

    async def noting(request: web.Request) -> web.Response:
        seen.append({name: request.headers.getall(name) for name in request.headers})
        return found()

    stub.handler = noting
    async with HttpClient.from_config(ClientConfig(stub.server, basic=("a", "b"))) as client:
        await client.impersonate("ann", ["crew", "ops"]).get(CONFIG_MAPS, "a", "default")
    assert seen[0]["Impersonate-User"] == ["ann"] and seen[0]["Impersonate-Group"] == ["crew", "ops"]
    assert seen[0]["Authorization"] == ["Basic YTpi"]
