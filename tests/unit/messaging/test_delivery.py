"""The delivery state machine against a simple specification."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sampan.parts.messaging.delivery import NEVER, Held, Progress, QueueProgress, Terms

MAX_ATTEMPTS = 3
LEASE = 100


def progress(*, ordered: bool) -> Progress:
    made = Progress(ordered=ordered, max_attempts=MAX_ATTEMPTS)
    made.queues[0] = QueueProgress(0)
    return made


def terms(now: int, call: str = "") -> Terms:
    return Terms(now, LEASE, client="c", attempt_id=call or f"#{now}")


def everything(held: Held) -> bool:
    return True


class Delivery(RuleBasedStateMachine):
    """Specification: every message is ready, leased until a time, or over (acknowledged or dead), and counts its attempts."""

    @initialize(ordered=st.booleans())
    def begin(self, ordered: bool) -> None:
        self.now = 1000
        self.calls = 0
        self.ordered = ordered
        self.machine = progress(ordered=ordered)
        self.keys: list[str] = []
        self.attempts: dict[int, int] = {}
        self.leases: dict[int, tuple[int, int]] = {}
        """Offset to (serial, end)."""
        self.over: set[int] = set()
        self.given: list[tuple[int, bool]] = []

    def _given(self, held: Held) -> None:
        assert held.offset not in self.over
        assert held.offset not in self.leases, "a leased message was handed out again"
        self.attempts[held.offset] = self.attempts.get(held.offset, 0) + 1
        assert held.attempt == self.attempts[held.offset]
        if self.ordered:
            earlier = [
                offset
                for offset, key in enumerate(self.keys)
                if key == held.key and offset < held.offset and offset not in self.over
            ]
            assert all(self.calls_of.get(offset) == self.calls for offset in earlier), "overtook its message group"
        self.calls_of[held.offset] = self.calls
        self.leases[held.offset] = (held.serial, self.now + LEASE)

    calls_of: dict[int, int]

    @initialize()
    def more(self) -> None:
        self.calls_of = {}

    @rule(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=5))
    def arrive(self, keys: list[str]) -> None:
        self.keys += keys

    @rule(limit=st.integers(1, 4))
    def receive(self, limit: int) -> None:
        self.calls += 1
        call = terms(self.now, f"call-{self.calls}")
        taken = self.machine.redeliver(0, limit, call, everything)
        for held in taken:
            self._given(held)
        count = len(taken)
        queue = self.machine.queues[0]
        while count < limit and queue.next < len(self.keys):
            offset = queue.next
            given = self.machine.hand_out(0, offset, offset * 10, 10, self.keys[offset], call)
            if given is not None:
                self._given(given)
                count += 1
        if count < limit and not self.ordered:
            ready = set(range(len(self.keys))) - self.over - set(self.leases)
            assert not ready, "something ready was not handed out"

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def acknowledge(self, data: Any) -> None:
        offset = data.draw(st.sampled_from(sorted(self.leases)))
        serial, _ = self.leases.pop(offset)
        held = self.machine.find(0, offset, serial, self.now)
        assert held is not None
        self.machine.acknowledge(held)
        self.over.add(offset)
        assert self.machine.find(0, offset, serial, self.now) is None

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), ahead=st.integers(0, 150))
    def change(self, data: Any, ahead: int) -> None:
        offset = data.draw(st.sampled_from(sorted(self.leases)))
        serial, _ = self.leases[offset]
        held = self.machine.find(0, offset, serial, self.now)
        assert held is not None
        self.machine.change(held, self.now + ahead, self.now)
        self.leases[offset] = (held.serial, self.now + ahead)
        assert self.machine.find(0, offset, serial, self.now) is None
        self._settle()

    @rule(step=st.integers(1, 120))
    def time_passes(self, step: int) -> None:
        self.now += step
        self._settle()

    def _settle(self) -> None:
        queues, dead = self.machine.expire(self.now, lambda client: False)
        ended = {offset for offset, (_, end) in self.leases.items() if end <= self.now}
        for offset in ended:
            del self.leases[offset]
        expected_dead = {offset for offset in ended if self.attempts[offset] >= MAX_ATTEMPTS}
        assert {held.offset for held in dead} == expected_dead
        assert bool(queues) == bool(ended - expected_dead)
        for held in dead:
            self.machine.restore_ack(0, held.offset)
            self.over.add(held.offset)

    @rule(ordered=st.booleans())
    def the_journal_restores_it(self, ordered: bool) -> None:
        """A copy built from what the journal would say behaves the same from now on."""
        copy = progress(ordered=self.ordered)
        old = self.machine.queues[0]
        copy.queues[0].next = old.next
        for held in sorted(old.held.values(), key=lambda held: held.offset):
            fields = {name: getattr(held, name) for name in Held.__slots__}
            copy.restore_lease(Held(**fields), old.next)
        copy.serial = self.machine.serial
        self.machine = copy

    @invariant()
    def it_agrees_with_the_specification(self) -> None:
        machine = getattr(self, "machine", None)
        if machine is None:
            return
        assert machine.leased == len(self.leases)
        assert machine.next_deadline() == min((end for _, end in self.leases.values()), default=NEVER)
        queue = machine.queues[0]
        assert set(range(queue.next)) - set(queue.held) == {o for o in self.over if o < queue.next}
        assert queue.deferred == sum(1 for held in queue.held.values() if not held.attempt)


Delivery.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDelivery = Delivery.TestCase


def test_the_same_call_gets_its_messages_again_and_no_other_does() -> None:
    machine = progress(ordered=True)
    first = [machine.hand_out(0, n, n, 1, "k", terms(0, "A")) for n in range(2)]
    assert all(first)
    assert machine.redeliver(0, 10, terms(10, "B"), everything) == []
    again = machine.redeliver(0, 10, terms(10, "A"), everything)
    assert [(held.offset, held.attempt) for held in again] == [(0, 1), (1, 1)]


def test_a_lease_renews_itself_while_its_client_lives() -> None:
    machine = progress(ordered=False)
    held = machine.hand_out(0, 0, 0, 1, "", Terms(0, LEASE, "c", renew_until_ms=200_000))
    assert held is not None
    assert machine.expire(LEASE, lambda client: True) == (set(), [])
    assert machine.find(0, 0, held.serial, LEASE + 1) is held
    queues, _ = machine.expire(LEASE + 60_000, lambda client: False)
    assert queues == {0}


def test_a_vanished_client_gives_its_leases_back_soon() -> None:
    machine = progress(ordered=False)
    machine.hand_out(0, 0, 0, 1, "", Terms(0, 60_000, "c", renew_until_ms=200_000))
    machine.release("c", 1_000)
    assert machine.next_deadline() == 1_000


def test_memory_follows_what_is_held_not_what_was() -> None:
    machine = progress(ordered=False)
    for offset in range(5_000):
        held = machine.hand_out(0, offset, 0, 1, "", Terms(0, LEASE, "c"))
        assert held is not None
        machine.acknowledge(held)
    assert len(machine._deadlines) < 200
    assert not list(machine.held())
