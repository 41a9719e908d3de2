"""The work queue: once a key, one worker a key, backoff."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kube.control import WorkQueue
from sampan.kube.control.measures import ControllerMetrics


def frozen() -> Clock:
    clock = Clock()
    clock.freeze()
    return clock


async def test_a_key_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["a", "b"] and len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_returns_when_done() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_waiting_workers_each_get_one_key() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    getters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    getters[0].cancel()
    for key in "ab":
        queue.add(key)
    assert sorted(await asyncio.gather(*getters[1:])) == ["a", "b"]


async def test_a_worker_cancelled_as_it_is_woken_passes_the_key_on() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    first, second = (asyncio.create_task(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add("a")
    first.cancel()
    assert await second == "a"


async def test_of_two_delays_the_earlier_counts() -> None:
    clock = frozen()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 10)
    queue.add_after("a", 5)
    queue.add_after("a", 20)
    clock.jump(5)
    await asyncio.sleep(0.01)
    assert await queue.get() == "a"
    queue.done("a")
    clock.jump(100)
    await asyncio.sleep(0.01)
    assert len(queue) == 0


async def test_backoff_doubles_from_5_ms_to_1000_s_until_forgotten() -> None:
    queue: WorkQueue[str] = WorkQueue(frozen())
    delays = [queue.retry("a") for _ in range(30)]
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04] and delays[-1] == 1000.0
    assert queue.failures("a") == 30
    queue.forget("a")
    assert queue.retry("a") == 0.005
    assert all(queue.retry("b") <= 1000.0 for _ in range(3000))


async def test_metrics_have_the_usual_names() -> None:
    registry = CollectorRegistry()
    queue: WorkQueue[str] = WorkQueue(Clock(), metrics=ControllerMetrics(registry, "replicaset"))
    queue.add("a")
    queue.add("b")
    await queue.get()
    labels = {"name": "replicaset"}
    assert registry.get_sample_value("workqueue_adds_total", labels) == 2
    assert registry.get_sample_value("workqueue_depth", labels) == 1
    assert registry.get_sample_value("workqueue_queue_duration_seconds_count", labels) == 1


class QueueMachine(RuleBasedStateMachine):
    """No key is lost, none is with two workers."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.queue: WorkQueue[str] = WorkQueue(Clock())
        self.wanted: set[str] = set()
        self.active: set[str] = set()

    @rule(key=st.sampled_from("abcd"))
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.wanted.add(key)

    @precondition(lambda self: hasattr(self, "queue") and len(self.queue) > 0)
    @rule()
    def get(self) -> None:
        key = self.runner.run(self.queue.get())
        assert key in self.wanted and key not in self.active
        self.wanted.remove(key)
        self.active.add(key)

    @precondition(lambda self: bool(getattr(self, "active", None)))
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.active.remove(key)
        self.queue.done(key)

    @invariant()
    def everything_wanted_and_free_waits(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.wanted - self.active)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=30, deadline=None)
