"""Gradual rollout as arithmetic."""

from __future__ import annotations

from sampan.parts.serving.rollouts import (
    SECOND,
    ConfigurationRollout,
    RevisionShare,
    Rollout,
    advance,
    observe,
)


def goal(revision: str, percent: int = 100) -> Rollout:
    return Rollout([ConfigurationRollout("app", "", percent, [RevisionShare(revision, percent)])])


def shares(rollout: Rollout) -> dict[str, int]:
    return {one.revision_name: one.percent for one in rollout.configurations[0].revisions}


def test_the_first_revision_gets_everything_at_once() -> None:
    assert shares(advance(Rollout(), goal("app-1"), 0, gradual=True)) == {"app-1": 100}


def test_without_a_duration_traffic_moves_at_once() -> None:
    assert shares(advance(goal("app-1"), goal("app-2"), 0, gradual=False)) == {"app-2": 100}


def test_a_new_revision_starts_with_one_percent() -> None:
    started = advance(goal("app-1"), goal("app-2"), 5 * SECOND, gradual=True)
    assert shares(started) == {"app-1": 99, "app-2": 1}
    assert started.running


def test_steps_reach_the_whole_in_about_the_duration() -> None:
    now = SECOND
    state = advance(goal("app-1"), goal("app-2"), now, gradual=True)
    now = 3 * SECOND
    state = observe(state, now, duration=60)
    steps = 0
    while state.running:
        due = state.next_step
        assert due is not None
        assert due >= now
        now = due
        before = shares(state)["app-2"]
        state = advance(state, goal("app-2"), now, gradual=True)
        assert sum(shares(state).values()) == 100
        assert shares(state)["app-2"] > before
        steps += 1
        assert steps < 100
    assert shares(state) == {"app-2": 100}
    # the step size is rounded, as upstream's is, so the last steps may come a little late
    assert now <= 63 * SECOND * 1.2


def test_a_step_is_not_taken_before_its_time() -> None:
    state = observe(advance(goal("app-1"), goal("app-2"), SECOND, gradual=True), 2 * SECOND, duration=100)
    assert shares(advance(state, goal("app-2"), 2 * SECOND, gradual=True)) == {"app-1": 99, "app-2": 1}


def test_a_further_revision_stacks_on_a_running_rollout() -> None:
    state = advance(goal("app-1"), goal("app-2"), 0, gradual=True)
    state.configurations[0].revisions = [RevisionShare("app-1", 60), RevisionShare("app-2", 40)]
    stacked = advance(state, goal("app-3"), SECOND, gradual=True)
    assert shares(stacked) == {"app-1": 60, "app-2": 39, "app-3": 1}


def test_a_changed_target_percentage_is_taken_from_the_oldest() -> None:
    state = advance(goal("app-1"), goal("app-2"), 0, gradual=True)
    smaller = advance(state, goal("app-2", percent=50), SECOND, gradual=True)
    assert shares(smaller) == {"app-1": 49, "app-2": 1}


def test_state_survives_its_annotation() -> None:
    state = observe(advance(goal("app-1"), goal("app-2"), 7, gradual=True), SECOND, duration=10)
    assert Rollout.parse(state.text()) == state
    assert '"starttime"' in state.text()
    assert Rollout.parse("nonsense") == Rollout()
