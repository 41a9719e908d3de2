"""The platform: order, failures, restarts and endings, with parts made for the purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sampan.kernel.errors import DataDirectoryError, SettingsError
from sampan.kernel.part import Part, PartSettings
from sampan.kernel.platform import Platform, choose
from sampan.kernel.runs import PartFailedError

happened: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    happened.clear()
    yield


class Offered:
    """What Base provides."""


class Recording(Part[PartSettings]):
    async def provision(self) -> None:
        happened.append(f"{self.name} provision")

    async def start(self) -> None:
        happened.append(f"{self.name} start")

    async def drain(self) -> None:
        happened.append(f"{self.name} drain")

    async def stop(self) -> None:
        happened.append(f"{self.name} stop")


class Base(Recording):
    name = "base"
    broken: ClassVar[asyncio.Event]

    async def start(self) -> None:
        await super().start()
        Base.broken = asyncio.Event()
        self.context.provide(Offered, Offered())
        self.context.tasks.start("work", self._work())

    async def _work(self) -> None:
        await Base.broken.wait()
        raise OSError("the disk went away")

    def status(self) -> dict[str, Any]:
        return {"depth": 3}


class Upper(Recording):
    name = "upper"
    needs = ("base",)

    async def start(self) -> None:
        await super().start()
        self.offered = self.context.get(Offered)


class Apart(Recording):
    name = "apart"


class Refuses(Recording):
    name = "refuses"
    needs = ("base",)

    async def start(self) -> None:
        raise ValueError("no wind")


PARTS: dict[str, str | type[Part[Any]]] = {part.name: part for part in (Upper, Base, Apart)}


async def until(platform: Platform, what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


async def test_parts_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    async with Platform(PARTS, tmp_path, only=["upper"]):
        assert happened == ["base provision", "base start", "upper provision", "upper start"]
        happened.clear()
    assert happened == ["upper drain", "upper stop", "base drain", "base stop"]


async def test_status_tells_states_and_facts(tmp_path: Path) -> None:
    async with Platform(PARTS, tmp_path, version="9") as platform:
        platform.listeners.record("somewhere", "127.0.0.1", 99)
        status = await platform.status()
    assert status.state == "ready"
    assert {part.name: (part.state, part.facts) for part in status.parts} == {
        "base": ("ready", {"depth": 3}),
        "upper": ("ready", {}),
        "apart": ("ready", {}),
    }
    assert status.addresses == {"somewhere": "127.0.0.1:99"}


async def test_a_failed_part_comes_back_and_its_dependents_around_it(tmp_path: Path) -> None:
    async with Platform(PARTS, tmp_path) as platform:
        first = platform.get(Offered)
        happened.clear()
        Base.broken.set()
        await until(platform, lambda: happened.count("upper start") and platform._runs["upper"].state == "ready")
        assert platform.get(Offered) is not first
        status = {part.name: part for part in (await platform.status()).parts}
        assert (status["base"].restarts, status["apart"].restarts) == (1, 0)
        assert happened == [
            "upper stop",
            "base stop",
            *("base provision", "base start"),
            *("upper provision", "upper start"),
        ]


async def test_a_first_start_that_fails_ends_the_platform_with_its_reason(tmp_path: Path) -> None:
    platform = Platform({**PARTS, "refuses": Refuses}, tmp_path)
    with pytest.raises(PartFailedError, match="part refuses did not start: ValueError: no wind"):
        await platform.start()
    assert happened[-1] == "base stop"
    async with Platform(PARTS, tmp_path):
        pass  # the lock was given back


class Hopeless(Recording):
    name = "hopeless"

    async def provision(self) -> None:
        raise PartFailedError("nothing to stand on")


class Waiting(Recording):
    name = "waiting"
    needs = ("hopeless",)


async def test_a_part_that_fails_before_its_dependents_began_ends_the_platform_too(tmp_path: Path) -> None:
    platform = Platform({"hopeless": Hopeless, "waiting": Waiting}, tmp_path)
    async with asyncio.timeout(20):
        with pytest.raises(PartFailedError, match="nothing to stand on"):
            await platform.start()


async def test_two_platforms_on_one_data_directory_are_refused(tmp_path: Path) -> None:
    async with Platform(PARTS, tmp_path):
        with pytest.raises(DataDirectoryError, match=r"another platform \(process \d+\) is running"):
            await Platform(PARTS, tmp_path).start()
    assert Platform(PARTS, tmp_path).directory.holder() is None


async def test_a_data_directory_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format").write_text("sampan 99\n")
    with pytest.raises(DataDirectoryError, match="has format 99, this Sampan knows 1"):
        await Platform(PARTS, tmp_path).start()
    assert (tmp_path / "format").read_text() == "sampan 99\n"


async def test_a_misspelt_setting_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no setting platform[.]port; did you mean ports"):
        await Platform(PARTS, tmp_path, flags=["platform.port=auto"]).start()
    assert happened == []


async def test_the_clock_goes_on_where_it_was(tmp_path: Path) -> None:
    async with Platform(PARTS, tmp_path) as platform:
        platform.clock.jump(86400)
        platform.clock.freeze()
        reading = platform.clock.time()
    async with Platform(PARTS, tmp_path) as platform:
        assert abs(platform.clock.time() - reading) < 0.001
        assert platform.clock.timeline.rate == 0


@pytest.mark.parametrize(
    ("only", "without", "chosen"),
    [
        ([], [], ["base", "upper", "apart"]),
        (["upper"], [], ["base", "upper"]),
        ([], ["base"], ["apart"]),
        ([], ["apart"], ["base", "upper"]),
    ],
)
def test_a_choice_takes_what_is_needed_along(only: list[str], without: list[str], chosen: list[str]) -> None:
    assert list(choose(PARTS, only, without)) == chosen


@pytest.mark.parametrize(
    ("only", "without", "message"),
    [
        (["uper"], [], "no part named uper; did you mean upper"),
        (["upper"], ["base"], "upper needs base, which is excluded"),
    ],
)
def test_an_impossible_choice_is_explained(only: list[str], without: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose(PARTS, only, without)
