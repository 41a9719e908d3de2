"""A pod's worker: its tasks and their ends."""

from __future__ import annotations

import gc
import warnings
import weakref
from types import SimpleNamespace
from typing import Any, cast

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.node.agent.sources import InformedSources
from sampan.parts.node.agent.worker import PodWorker
from sampan.parts.node.runtime.interface import Container, ExitRecord

POD = {
    "metadata": {"namespace": "default", "name": "web", "uid": "u1"},
    "spec": {"containers": [{"name": "c", "image": "busybox"}]},
}


async def test_what_is_cancelled_before_it_began_leaves_nothing_unawaited() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        worker = PodWorker(cast(Any, SimpleNamespace(clock=clock, tasks=tasks)), cast(Any, POD))
        began: list[str] = []

        async def work() -> None:
            began.append("work")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            task = worker.begin("finish", work)
            await worker.cancel()
            gc.collect()
        assert task.cancelled()
        assert began == []
        assert [str(warning.message) for warning in caught] == []


async def test_a_start_that_fails_unforeseen_is_told_and_tried_later_and_later() -> None:
    clock = Clock()
    tries: list[float] = []

    async def get(name: str, policy: str) -> None:
        tries.append(clock.monotonic())
        raise TypeError("nobody thought of this")

    told: list[tuple[str, str]] = []
    async with Tasks(clock) as tasks:
        agent = SimpleNamespace(clock=clock, tasks=tasks, images=SimpleNamespace(get=get))
        worker = PodWorker(cast(Any, agent), cast(Any, POD))
        worker.event = lambda type, reason, message, container="": told.append((reason, message))  # type: ignore[method-assign]
        state = worker.state.containers["c"]
        for _ in range(2):
            state.busy = "starting"
            await worker.starting.start(state)
            assert (state.busy, state.reason) == ("", "CreateContainerError")
        assert state.message == "TypeError: nobody thought of this"
        assert state.retry_at - clock.monotonic() > 0.9
    assert told == [("Failed", "Error: TypeError: nobody thought of this")]
    assert len(tries) == 2


async def test_a_worker_that_is_let_go_begins_nothing_more() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        sources = InformedSources(cast(Any, None))
        worker = PodWorker(cast(Any, SimpleNamespace(clock=clock, tasks=tasks, sources=sources)), cast(Any, POD))
        planned: list[str] = []
        worker._begin = lambda action: planned.append(type(action).__name__)  # type: ignore[method-assign]
        worker._report = lambda: None  # type: ignore[method-assign]
        worker.run()
        await clock.sleep(0)
        await clock.sleep(0)
        before = len(planned)
        await worker.cancel()
        worker.wake()
        await clock.sleep(0.01)
        assert before == 1
        assert len(planned) == before


async def test_a_worker_that_is_released_goes_at_once() -> None:
    clock = Clock()
    gc.collect()
    gc.disable()
    try:
        async with Tasks(clock) as tasks:
            sources = InformedSources(cast(Any, None))
            worker = PodWorker(cast(Any, SimpleNamespace(clock=clock, tasks=tasks, sources=sources)), cast(Any, POD))
            worker._work = worker._woken.wait  # type: ignore[method-assign, assignment]
            worker.run()
            await clock.sleep(0)
            await worker.cancel()
            del worker._work
            worker.release()
            await clock.sleep(0)
            left = weakref.ref(worker)
            del worker
            assert left() is None
    finally:
        gc.enable()


async def test_a_process_that_ends_after_its_pod_was_let_go_concerns_nobody() -> None:
    clock = Clock()
    async with Tasks(clock) as tasks:
        worker = PodWorker(cast(Any, SimpleNamespace(clock=clock, tasks=tasks)), cast(Any, POD))
        state = worker.state.containers["c"]
        state.id, state.running = "c1", True
        worker.gone = True
        await worker.cancel()
        worker.release()
        worker.exited(Container("c1", "u1", "c", 0, 0.0, exit=ExitRecord(0, 1.0)))
        assert state.running
