"""When probes run, and what their results mean."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.parts.node.agent.handlers import Outcome
from sampan.parts.node.agent.probes import Kind, Verdicts, watch


class Answers:
    """Handlers whose outcomes are given."""

    def __init__(self, *outcomes: bool) -> None:
        self.left = list(outcomes)

    async def run(self, *_: Any) -> Outcome:
        return Outcome(self.left.pop(0) if len(self.left) > 1 else self.left[0], "told")


async def test_a_program_that_is_not_ready_at_once_becomes_ready_on_a_frozen_platform() -> None:
    clock, reached = Clock(), asyncio.Event()
    clock.freeze()

    def verdict(kind: Kind, ok: bool, message: str) -> None:
        if ok:
            reached.set()

    watching = asyncio.create_task(
        watch(
            "readiness",
            {"tcpSocket": {"port": 80}},
            handlers=Answers(False, False, False, True),  # type: ignore[arg-type]
            container="c",
            spec={},
            address="10.244.0.2",
            clock=clock,
            verdict=verdict,
            failed=lambda kind, message: None,
            jitter=0.5,
        )
    )
    try:
        async with asyncio.timeout(20):
            await reached.wait()
    finally:
        watching.cancel()


@pytest.mark.parametrize(
    ("probe", "results", "verdicts"),
    [
        ({}, [True], [True]),
        ({}, [False, False, False], [False, False, True]),
        ({"failureThreshold": 1}, [False], [True]),
        ({"successThreshold": 2}, [True, False, True, True], [False, False, False, True]),
    ],
)
def test_so_many_equal_results_in_a_row_are_a_verdict(
    probe: dict[str, int], results: list[bool], verdicts: list[bool]
) -> None:
    counted = Verdicts(probe)
    assert [counted.add(result) for result in results] == verdicts
