"""Every part may be asked to stop at any moment of its start, before it has made anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from sampan.kernel.clock import Clock
from sampan.kernel.part import Part
from sampan.kernel.runs import load_object
from sampan.kernel.tasks import Tasks
from sampan.parts import PARTS


@pytest.mark.parametrize("name", PARTS)
async def test_a_part_that_has_not_begun_can_be_drained_and_stopped(name: str) -> None:
    async with Tasks(Clock()) as tasks:
        made: Part[Any] = load_object(PARTS[name])(
            cast(Any, SimpleNamespace(tasks=tasks, settings=SimpleNamespace(keep_pods=False)))
        )
        await made.drain()
        await made.stop()
