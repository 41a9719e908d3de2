"""kill -9 of platform, keeper and zygote under churn: no orphan process, no lost or doubled pod, no identity held twice.

The long version: ``python -m tests.faults.node_churn 20``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.node_churn import KUBECTL, REPLICAS, STATELESS, churn

pytestmark = [
    pytest.mark.skipif(KUBECTL is None, reason="needs kubectl"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the lock files are seen through a mount, which needs root"),
    pytest.mark.slow,
]


async def test_killed_under_churn_nothing_is_lost_doubled_or_left(tmp_path: Path) -> None:
    report = await churn(tmp_path, 6)
    assert (report.twice, report.doubled, report.orphans) == ([], [], [])
    assert report.kills == {"core": 2, "keeper": 2, "zygote": 2}
    assert report.starts == REPLICAS + STATELESS
