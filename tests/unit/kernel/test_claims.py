"""Platforms of one machine claim ranges from each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sampan.kernel import claims


def test_a_range_has_one_holder_and_is_free_again_when_that_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "folder", lambda: tmp_path)
    held = claims.claim("10.244.1.0/24")
    assert held is not None
    assert claims.claim("10.244.1.0/24", attempts=2) is None
    other = claims.claim("10.244.2.0/24")
    assert other is not None
    assert claims.claimed() == ["10.244.1.0/24", "10.244.2.0/24"]
    assert claims.holder("10.244.1.0/24") == (os.getpid(), "")
    assert claims.holder("10.244.3.0/24") is None
    os.close(held)
    assert claims.claimed() == ["10.244.2.0/24"]
    again = claims.claim("10.244.1.0/24", owner="/a b/c")
    assert again is not None
    assert claims.holder("10.244.1.0/24") == (os.getpid(), "/a b/c")
    for descriptor in (again, other):
        os.close(descriptor)


def test_the_first_range_that_is_free_is_taken_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "folder", lambda: tmp_path / "claims")
    ranges = ("10.96.0.0/12", "10.112.0.0/16", "10.113.0.0/16")
    one, two, three, four = (tmp_path / name for name in ("one", "two", "three", "four"))
    first, held = claims.claim_one(ranges, one)
    second, other = claims.claim_one(ranges, two)
    assert (first, second) == ranges[:2]
    assert held is not None
    assert other is not None
    os.close(held)
    again, held = claims.claim_one(ranges, two)
    assert (again, held) == (second, None), "its own, although somebody has it"
    third, held = claims.claim_one(ranges, three)
    assert third == first, "free again"
    last, another = claims.claim_one(ranges[:2], four)
    assert (last, another) == (first, None), "all are taken"
    assert not four.exists()
    for descriptor in (held, other):
        assert descriptor is not None
        os.close(descriptor)
