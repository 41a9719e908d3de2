"""Who passes the gate, and in which order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sampan.parts.serving.activator import throttle as module
from sampan.parts.serving.activator.throttle import QueueFullError, Slot, Throttle


def future() -> asyncio.Future[Slot]:
    return asyncio.Future(loop=asyncio.new_event_loop())


def test_without_pods_nobody_passes() -> None:
    assert Throttle(0).take() is None


def test_without_a_limit_everybody_passes_once_a_pod_is_there() -> None:
    throttle = Throttle(0)
    waiting = [future() for _ in range(3)]
    for one in waiting:
        throttle.wait(one)
    throttle.set_pods({"10.0.0.1:8080"})
    assert [one.result().limited for one in waiting] == [False] * 3
    assert throttle.waiting == 0


def test_a_limit_fills_pods_in_order() -> None:
    throttle = Throttle(1)
    throttle.set_pods({"a:1", "b:1"})
    first, second = throttle.take(), throttle.take()
    assert first is not None
    assert second is not None
    assert (first.pod, second.pod) == ("a:1", "b:1")
    assert throttle.take() is None


def test_a_place_given_back_goes_to_the_first_in_line() -> None:
    throttle = Throttle(1)
    throttle.set_pods({"a:1"})
    assert throttle.take() is not None
    first, second = future(), future()
    throttle.wait(first)
    throttle.wait(second)
    throttle.give_back("a:1")
    assert first.result() == Slot("a:1", limited=True)
    assert not second.done()


def test_who_leaves_the_line_keeps_no_place() -> None:
    throttle = Throttle(1)
    throttle.set_pods({"a:1"})
    throttle.take()
    waiting = future()
    throttle.wait(waiting)
    throttle.give_back("a:1")
    throttle.leave(waiting)
    assert throttle.busy == 0
    assert throttle.take() is not None


def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_DEPTH", 2)
    throttle = Throttle(1)
    throttle.wait(future())
    throttle.wait(future())
    with pytest.raises(QueueFullError):
        throttle.wait(future())


def test_a_pod_that_goes_takes_its_requests_along() -> None:
    throttle = Throttle(2)
    throttle.set_pods({"a:1"})
    throttle.take()
    throttle.set_pods({"b:1"})
    assert throttle.busy == 0
    throttle.give_back("a:1")
    assert throttle.busy == 0


class ThrottleModel(RuleBasedStateMachine):
    """No pod ever has more than its limit, and nobody waits while there is a place."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.throttle = Throttle(2)
        self.held: list[str] = []
        self.line: list[asyncio.Future[Slot]] = []

    def _collect(self) -> None:
        for one in list(self.line):
            if one.done():
                self.line.remove(one)
                self.held.append(one.result().pod)

    @rule(pods=st.sets(st.sampled_from(["a:1", "b:1", "c:1"])))
    def pods_change(self, pods: set[str]) -> None:
        self.throttle.set_pods(pods)
        self.held = [one for one in self.held if one in pods]
        self._collect()

    @rule()
    def arrive(self) -> None:
        slot = self.throttle.take() if not self.throttle.waiting else None
        if slot is not None:
            self.held.append(slot.pod)
        else:
            waiting: asyncio.Future[Slot] = asyncio.Future(loop=self.loop)
            self.throttle.wait(waiting)
            self.line.append(waiting)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        pod = data.draw(st.sampled_from(self.held))
        self.held.remove(pod)
        self.throttle.give_back(pod)
        self._collect()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.line))
        self.line.remove(waiting)
        self.throttle.leave(waiting)
        self._collect()

    @invariant()
    def limits_hold(self) -> None:
        for pod, count in self.throttle.in_flight.items():
            assert count == self.held.count(pod) <= 2

    @invariant()
    def nobody_waits_for_a_free_place(self) -> None:
        free = any(count < 2 for count in self.throttle.in_flight.values())
        assert not (free and self.throttle.waiting)

    def teardown(self) -> None:
        self.loop.close()


TestThrottleModel = ThrottleModel.TestCase
