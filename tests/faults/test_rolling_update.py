"""The short form of ``tests.faults.rolling_update``: no request is lost while pods are replaced, added and taken away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.rolling_update import rolled


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pods with addresses of their own")
async def test_a_rolling_update_under_load_loses_no_request(tmp_path: Path) -> None:
    report = await rolled(tmp_path, replicas=4, rollouts=1)
    assert report.lost() == {}
    for answers in (*report.inside.values(), *report.gateway.values()):
        assert answers["200"] > 10
