"""No answer is lost while a Service grows, falls asleep and rolls out: the soak of ``tests.faults.serving_churn``, in short."""

from __future__ import annotations

import asyncio

import pytest

from sampan.testing import Platform
from tests.faults.serving_churn import churn


@pytest.mark.parametrize("limit", [0, 3])
def test_no_answer_is_lost(limit: int) -> None:
    with Platform(without=["messaging", "eventing"]) as platform:
        account = asyncio.run(churn(platform, 2, 2, limit))
    assert account.lost == {}
    assert account.told["200"] > 50
    assert max(account.sizes) > 1, "it never grew"
