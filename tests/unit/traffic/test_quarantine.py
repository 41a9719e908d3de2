"""Finding the rules that Envoy refuses, with an Envoy that is a predicate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.traffic.control.quarantine import Quarantine
from sampan.parts.traffic.envoy.hosts import Configuration, Plan
from sampan.parts.traffic.model import EVERYTHING, Host, Match, Respond, Rule


def rules(count: int) -> list[Rule]:
    return [Rule(Match(EVERYTHING), Respond(200), order=(number,), name=str(number)) for number in range(count)]


def settle(made: list[Rule], bad: set[int]) -> int:
    """Publish until nothing waits; how many publications that took."""
    configuration = Configuration("c", [Plan("*", [Host("*", list(made))])])
    quarantine, sure, publications = Quarantine(), False, 0
    while True:
        publications += 1
        if not sure:
            quarantine.trial()
        sure = False
        # what a host's bytes say of freshness does not matter here: everything counts as new until it is trusted
        configuration.fresh = {0}
        shown = [rule for rule in made if rule.wire.standing in ("new", "trusted")]
        if any(int(rule.name) in bad for rule in shown):
            suspects = configuration.suspects()
            sure = not quarantine.waiting and len(suspects) > 1
            quarantine.refused(suspects, "no")
        else:
            configuration.trust()
            if not quarantine.waiting:
                return publications


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4))))
def test_exactly_the_bad_ones_stay_out(case: tuple[int, set[int]]) -> None:
    count, bad = case
    made = rules(count)
    settle(made, bad)
    assert {int(rule.name) for rule in made if rule.wire.standing == "refused"} == bad
    assert all(rule.wire.standing == "trusted" for rule in made if int(rule.name) not in bad)


def test_one_of_thousands_is_found_in_two_publications_a_halving() -> None:
    assert settle(rules(4096), {1234}) <= 2 * 12 + 3


def test_a_lone_newcomer_is_the_culprit_at_once() -> None:
    made = rules(100)
    settle(made[:99], set())
    assert settle(made, {99}) == 2
    assert made[99].wire.reason == "no"


def test_what_waits_is_left_out_until_its_trial() -> None:
    made = rules(4)
    quarantine = Quarantine()
    quarantine.refused(made, "no")
    assert [rule.wire.standing for rule in made] == ["waiting"] * 4
    assert quarantine.trial()
    assert [rule.wire.standing for rule in made] == ["new", "new", "waiting", "waiting"]
