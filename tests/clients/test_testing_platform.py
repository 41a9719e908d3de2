"""The test platform itself: isolated, steerable, usable from blocking and asyncio code."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import sampan.testing
from sampan.kernel.part import Part, PartSettings


class Alarm(Part[PartSettings]):
    """Rings every hour of platform time."""

    name = "alarm"
    own_process = True

    async def start(self) -> None:
        self.rang = 0
        self.listener = self.context.listeners.bind("alarm", 9999)
        self.context.tasks.start("ring", self._ring())

    async def _ring(self) -> None:
        while True:
            await self.context.clock.sleep(3600)
            self.rang += 1

    async def stop(self) -> None:
        self.listener.close()

    def status(self) -> dict[str, Any]:
        return {"rang": self.rang}


PARTS: dict[str, str | type[Part[Any]]] = {"alarm": Alarm}


def rang(platform: sampan.testing.Platform) -> int:
    status = platform.run(platform.kernel.status())
    return int(status.parts[0].facts["rang"])


def test_two_platforms_live_side_by_side_and_leave_nothing() -> None:
    with sampan.testing.Platform(parts=PARTS) as one, sampan.testing.Platform(parts=PARTS) as other:
        assert one.address("alarm") != other.address("alarm")
        assert one.data_dir != other.data_dir
        one.clock.jump(3600)
        assert (rang(one), rang(other)) == (1, 0)
    assert not one.data_dir.exists()


def test_autojump_lives_through_a_day_at_once() -> None:
    with sampan.testing.Platform(parts=PARTS, clock="frozen", event_loop="asyncio") as platform:
        begin = platform.clock.time()
        with platform.clock.autojump(limit=86400.5):
            while platform.clock.time() < begin + 86400:
                pass
        assert rang(platform) == 24


def test_it_runs_on_the_products_event_loop_which_no_clock_can_jump_on() -> None:
    with sampan.testing.Platform(parts=PARTS) as platform:
        assert platform.call(lambda: type(asyncio.get_running_loop()).__module__) == "uvloop"
        with pytest.raises(RuntimeError, match='takes event_loop="asyncio"'), platform.clock.autojump():
            pass


async def test_it_also_lives_in_the_running_loop(tmp_path: Path) -> None:
    async with sampan.testing.Platform(parts=PARTS, data_dir=tmp_path) as platform:
        platform.clock.jump(3600)
        await asyncio.sleep(0.01)
        assert (await platform.kernel.status()).parts[0].facts == {"rang": 1}
        with pytest.raises(LookupError, match="nothing listens as door; there is alarm"):
            platform.address("door")


@pytest.mark.sampan(parts=PARTS, clock="frozen")
def test_the_fixtures_give_a_platform_and_its_clock(
    platform: sampan.testing.Platform, clock: sampan.testing.SteeredClock
) -> None:
    clock.jump(7200)
    assert rang(platform) == 1


def test_an_error_at_start_reaches_the_test() -> None:
    with pytest.raises(Exception, match="no setting alarm"):
        sampan.testing.Platform(parts=PARTS, settings={"alarm.volume": 3}).__enter__()
