"""kill -9 under load: nothing acknowledged is lost, no message group out of order, nothing before its time."""

from __future__ import annotations

from pathlib import Path

from tests.faults.messaging_kill import run


async def test_killing_the_broker_under_load_breaks_no_promise(tmp_path: Path) -> None:
    account = await run(tmp_path, rounds=4, sends=1600, seed=7, segment_bytes=1 << 20)
    assert account.kills == 4
    assert len(account.acknowledged) > 1000
    assert account.lost == set()
    assert account.disorder() == []
    assert account.early == []
    assert account.repeated == []
    # what was never acknowledged may be stored once; what was consumed must at least have been sent
    assert len(account.consumed) <= len(account.sent)
