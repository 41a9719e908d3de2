"""The clock: readings, timers, steering, and what no steering may break."""

from __future__ import annotations

import asyncio
import threading

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import COMPACT_AT, EPSILON, Clock, Timeline

DAY = 86400.0


def frozen(at: float = 1000.0) -> Clock:
    return Clock(Timeline(origin=0.0, base=at, wall_offset=1_700_000_000.0, rate=0.0))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_three_day_sleep_ends_when_the_clock_jumps_three_days() -> None:
    clock = frozen()
    asleep = asyncio.get_running_loop().create_task(clock.sleep(3 * DAY))
    await settle()
    clock.jump(3 * DAY - 1)
    await settle()
    assert not asleep.done()
    clock.jump(1)
    await settle()
    assert asleep.done()


async def test_a_jump_fires_the_timers_it_passes_in_order() -> None:
    clock, fired = frozen(), list[float]()
    for delay in (30.0, 10.0, 20.0, 99.0):
        clock.call_later(delay, fired.append, delay)
    clock.jump(50)
    await settle()
    assert fired == [10.0, 20.0, 30.0]


async def test_a_backward_jump_moves_the_wall_reading_and_no_timer() -> None:
    clock, fired = frozen(), list[str]()
    clock.call_later(10, fired.append, "late")
    wall, monotonic = clock.time(), clock.monotonic()
    clock.jump(-DAY)
    assert clock.time() == wall - DAY
    assert clock.monotonic() == monotonic
    clock.jump(10)
    await settle()
    assert fired == ["late"]


async def test_sleep_until_waits_through_a_backward_jump() -> None:
    clock = frozen()
    asleep = asyncio.get_running_loop().create_task(clock.sleep_until(clock.time() + 60))
    await settle()
    clock.jump(-30)
    clock.jump(60)
    await settle()
    assert not asleep.done()
    clock.jump(30)
    await settle()
    assert asleep.done()


async def test_a_timeout_cancels_its_body_and_only_then() -> None:
    clock = frozen()

    async def work(seconds: float) -> str:
        async with clock.timeout(10):
            await clock.sleep(seconds)
        return "done"

    loop = asyncio.get_running_loop()
    slow, quick = loop.create_task(work(11)), loop.create_task(work(9))
    await settle()
    clock.jump(10)
    await settle()
    assert quick.result() == "done"
    assert isinstance(slow.exception(), TimeoutError)
    assert clock.next_timer() is None


async def test_a_faster_clock_leaves_those_outside_no_less_time() -> None:
    clock = frozen()
    clock.run(1000.0)
    async with clock.patience(0.5):
        await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.5):
            await asyncio.sleep(0.02)
    async with clock.patience(5):
        clock.jump(3600)
        await asyncio.sleep(0.02)
    clock.freeze()
    with pytest.raises(TimeoutError):
        async with clock.patience(0.01):
            await asyncio.sleep(60)
    async with clock.patience(None):
        await asyncio.sleep(0)


async def test_a_callback_that_sets_a_due_timer_does_not_hold_the_loop() -> None:
    clock, turns = frozen(), 0

    def again() -> None:
        nonlocal turns
        turns += 1
        clock.call_later(0, again)

    clock.call_later(0, again)
    await settle()
    assert 1 <= turns <= 5


async def test_a_failing_callback_does_not_stop_the_next_ones() -> None:
    clock, fired, errors = frozen(), list[str](), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    clock.call_later(1, lambda: 1 / 0)
    clock.call_later(2, fired.append, "next")
    clock.jump(5)
    await settle()
    assert fired == ["next"]
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_cancelled_timers_do_not_pile_up() -> None:
    clock = frozen()
    for _ in range(20 * COMPACT_AT):
        clock.call_later(3600, print).cancel()
    assert len(clock._heap) <= COMPACT_AT + 1
    clock.call_later(1, print)
    assert clock.next_timer() == 1001.0


async def test_a_faster_clock_reaches_its_timers_sooner() -> None:
    clock = Clock()
    clock.run(rate=10_000)
    await clock.sleep(60)
    clock.freeze()
    reading = clock.monotonic()
    await asyncio.sleep(0.002)
    assert clock.monotonic() == reading


async def test_a_clock_refuses_a_timeline_that_goes_back() -> None:
    clock = frozen(1000)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.steer(Timeline(origin=0.0, base=999.0, wall_offset=0.0, rate=0.0))


async def test_a_follower_that_hears_late_of_a_slower_timeline_stands_still() -> None:
    leader, follower = Clock(), Clock()
    follower.steer(leader.timeline)
    leader.freeze()
    await asyncio.sleep(0.005)
    reading = follower.monotonic()
    follower.steer(leader.timeline)
    assert follower.monotonic() >= reading
    leader.jump(60)
    follower.steer(leader.timeline)
    assert follower.monotonic() == leader.monotonic()


async def test_followers_hear_of_each_steering() -> None:
    clock, heard = frozen(), list[Timeline]()
    clock.on_steer(heard.append)
    clock.jump(5)
    assert heard == [clock.timeline]


def test_a_real_clock_works_under_uvloop() -> None:
    async def body() -> list[str]:
        clock, fired = Clock(), list[str]()
        clock.call_later(0.02, fired.append, "b")
        clock.call_later(0.01, fired.append, "a")
        begin = clock.monotonic()
        await clock.sleep(0.03)
        assert clock.monotonic() - begin >= 0.03 - EPSILON
        clock.call_later(DAY, fired.append, "c")
        clock.jump(DAY)
        await clock.sleep(0.001)
        return fired

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(body()) == ["a", "b", "c"]


steps = st.lists(
    st.tuples(st.sampled_from(["set", "jump", "back", "cancel"]), st.floats(0, 1e6, allow_nan=False)), max_size=30
)


@given(steps)
def test_whatever_the_steering_every_timer_fires_once_at_its_time_and_in_order(
    plan: list[tuple[str, float]],
) -> None:
    async def body() -> None:
        clock = frozen()
        fired: list[tuple[float, int]] = []
        pending: dict[int, float] = {}
        timers = {}
        for number, (step, amount) in enumerate(plan):
            if step == "set":
                when = clock.monotonic() + amount
                timers[number] = clock.call_at(when, fired.append, (when, number))
                pending[number] = when
            elif step == "cancel" and timers:
                victim = sorted(timers)[int(amount) % len(timers)]
                timers.pop(victim).cancel()
                pending.pop(victim, None)
            elif step == "back":
                clock.jump(-amount)
            else:
                clock.jump(amount)
                await settle()
                due = sorted(n for n, when in pending.items() if when <= clock.monotonic() + EPSILON)
                assert sorted(n for _, n in fired) == due
                assert [when for when, _ in fired] == sorted(when for when, _ in fired)
                for _, n in fired:
                    del pending[n]
                    timers.pop(n)
                fired.clear()

    asyncio.run(body())


# -- autojump


async def test_autojump_makes_long_waits_instant_and_keeps_their_order() -> None:
    clock, order = frozen(), list[str]()

    async def worker(name: str, period: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep(period)
            order.append(name)

    begin = clock.monotonic()
    with autojump(clock):
        await asyncio.gather(worker("hourly", 3600, 3), worker("once", 9000, 1))
    assert order == ["hourly", "hourly", "once", "hourly"]
    assert clock.monotonic() - begin == 3 * 3600


async def test_autojump_lets_the_executor_finish_first() -> None:
    clock, go = frozen(), threading.Event()
    with autojump(clock):
        asyncio.get_running_loop().call_later(0.02, go.set)
        async with clock.timeout(5):
            await asyncio.to_thread(go.wait)
    assert clock.monotonic() == 1000.0


async def test_autojump_waits_while_the_clock_is_held() -> None:
    clock = frozen()
    with autojump(clock):
        asleep = asyncio.get_running_loop().create_task(clock.sleep(60))
        with clock.hold():
            await asyncio.sleep(0.02)
            assert not asleep.done()
        await asleep
    assert clock.monotonic() == 1060.0


async def test_autojump_lets_input_win() -> None:
    clock = frozen()
    with autojump(clock):
        reader, writer = await asyncio.open_connection(sock=_echoing_socket())
        writer.write(b"ping\n")
        async with clock.timeout(1):
            assert await reader.readline() == b"ping\n"
        writer.close()
    assert clock.monotonic() == 1000.0


def _echoing_socket() -> object:
    import socket

    near, far = socket.socketpair()
    far.sendall(b"ping\n")
    near.setblocking(False)
    _kept.append(far)
    return near


_kept: list[object] = []


async def test_autojump_stops_at_its_limit() -> None:
    clock = frozen()
    with autojump(clock, limit=10):
        forever = asyncio.get_running_loop().create_task(clock.sleep(11))
        await clock.sleep(9)
        await asyncio.sleep(0.01)
        assert not forever.done()
        forever.cancel()


def test_autojump_refuses_a_loop_it_cannot_see_into() -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="asyncio's own event loop"), autojump(frozen()):
            pass

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())
