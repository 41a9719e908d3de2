"""Statuses are written until the API has taken them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sampan.kernel.clock import Clock
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key, Object
from sampan.kube.status import ApiError, internal, not_found, too_many_requests
from sampan.parts.traffic import resources
from sampan.parts.traffic.control.statuses import AGAIN, StatusWriter

KEY = Key("default", "r")


class Api:
    """Fails as often as it is told to."""

    def __init__(self, *errors: ApiError) -> None:
        self.errors = list(errors)
        self.taken: list[Object] = []
        self.asked = asyncio.Event()

    async def patch(self, resource: object, name: str, change: Object, *_: Any, **more: Any) -> None:
        self.asked.set()
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(change)


async def written(api: Api, jumps: int) -> list[Object]:
    """What is written of one status, with this many waits."""
    clock = Clock()
    clock.freeze()
    context = SimpleNamespace(client=api, clock=clock)
    writer = StatusWriter(cast(ControlContext, context), lambda *_: {"metadata": {}})
    task = asyncio.create_task(writer.run())
    writer.want(resources.HTTP_ROUTES, KEY, {"parents": [{"parentRef": {}, "controllerName": "x", "conditions": []}]})
    for turn in range(jumps + 1):
        await asyncio.wait_for(api.asked.wait(), 10)
        api.asked.clear()
        await asyncio.sleep(0)
        if turn < jumps:
            clock.jump(AGAIN)
    task.cancel()
    return api.taken


@pytest.mark.parametrize("error", [internal("the disk is full"), too_many_requests("later")])
async def test_what_the_api_could_not_take_is_written_again(error: ApiError) -> None:
    assert len(await written(Api(error, error), 2)) == 1


async def test_what_is_gone_is_let_go() -> None:
    assert await written(Api(not_found(resources.HTTP_ROUTES, "r")), 0) == []
