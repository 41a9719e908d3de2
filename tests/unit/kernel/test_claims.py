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
    os.close(held)
    assert claims.claimed() == ["10.244.2.0/24"]
    again = claims.claim("10.244.1.0/24")
    assert again is not None
    for descriptor in (again, other):
        os.close(descriptor)
