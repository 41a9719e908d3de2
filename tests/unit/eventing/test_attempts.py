"""Failed attempts across the death of a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sampan.parts.eventing import attempts
from sampan.parts.eventing.attempts import Attempts
from sampan.parts.eventing.delivery import Outcome


def reopened(path: Path) -> Attempts:
    found = Attempts(path)
    found.open()
    return found


def test_what_failed_is_known_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    kept = reopened(tmp_path / "a")
    kept.failed("g 1 http://x", 1, Outcome(503, "", b"no room"))
    kept.failed("g 1 http://x", 2, Outcome(0, "refused"))
    kept.failed("g 2 http://x", 1, Outcome(500))
    kept.forget("g 2 http://x", "g 3 http://x")
    after = reopened(tmp_path / "a")  # the other one was never closed, as after kill -9
    assert after.of("g 1 http://x") == (2, Outcome(0, "refused", b""))
    assert after.of("g 2 http://x")[0] == 0
    assert len(after) == 1


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    kept = reopened(tmp_path / "a")
    kept.failed("g 1 u", 1, Outcome(500, "", b"\x00\xff" * 4000))
    kept.failed("g 2 u", 1, Outcome(500))
    kept.close()
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:-9])
    after = reopened(tmp_path / "a")
    assert after.of("g 1 u") == (1, Outcome(500, "", (b"\x00\xff" * 4000)[: attempts.BODY_KEPT]))
    assert after.of("g 2 u")[0] == 0


def test_the_file_is_written_anew_when_most_of_it_is_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "SLACK", 10)
    kept = reopened(tmp_path / "a")
    for number in range(100):
        kept.failed(f"g {number} u", 1, Outcome(500))
        if number != 42:
            kept.forget(f"g {number} u")
    assert len((tmp_path / "a").read_bytes().splitlines()) < 20
    assert reopened(tmp_path / "a").of("g 42 u")[0] == 1


def test_a_subscriber_that_is_gone_takes_its_attempts_along(tmp_path: Path) -> None:
    kept = reopened(tmp_path / "a")
    kept.failed("g 1 u", 1, Outcome(500))
    kept.failed("gg 1 u", 1, Outcome(500))
    kept.forget_group("g")
    assert [kept.of(key)[0] for key in ("g 1 u", "gg 1 u")] == [0, 1]


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path: Path) -> None:
    kept = Attempts(tmp_path / "absent" / "a")
    kept.open()
    kept.failed("g 1 u", 1, Outcome(500))
    assert kept.of("g 1 u")[0] == 1
