"""The part's life at its edges."""

from __future__ import annotations

from typing import Any, cast

from sampan.parts.serving.part import ServingPart


async def test_a_part_that_never_started_can_be_stopped() -> None:
    part = ServingPart.__new__(ServingPart)
    part.context = cast(Any, None)
    await part.stop()
