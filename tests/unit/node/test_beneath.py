"""Places in volumes while somebody changes the way to them (the shape of CVE-2021-25741)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sampan.parts.node.runtime import beneath


def test_what_is_there_is_found_and_what_is_not_is_made(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data/key").write_text("value")
    (tmp_path / "key").symlink_to("..data/key")
    with os.fdopen(os.open(f"/proc/self/fd/{beneath.make(str(tmp_path), 'key')}", os.O_RDONLY)) as file:
        assert file.read() == "value"
    os.close(beneath.make(str(tmp_path), "a/b/c"))
    os.close(beneath.make(str(tmp_path), "a/b/d"))
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["c", "d"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize("sub", ["../x", "/etc", "a/../../x", "out/x", "out", "absolute/passwd"])
def test_nothing_leads_out(tmp_path: Path, sub: str) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "out").symlink_to("..")
    (volume / "absolute").symlink_to("/etc")
    with pytest.raises(OSError, match="cross-device"):
        beneath.make(str(volume), sub)
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]


def test_a_link_that_comes_and_goes_never_leads_out(tmp_path: Path) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    (volume / "directory").mkdir()
    way = volume / "x"
    way.symlink_to("directory")
    done = threading.Event()

    def exchange() -> None:
        while not done.is_set():
            for target in (outside, Path("directory")):
                (volume / "next").symlink_to(target)
                (volume / "next").rename(way)

    other = threading.Thread(target=exchange)
    other.start()
    refused = made = 0
    try:
        for index in range(3000):
            try:
                place = beneath.make(str(volume), f"x/{index}")
            except OSError:
                refused += 1
                continue
            made += 1
            assert Path(f"/proc/self/fd/{place}").readlink().is_relative_to(volume)
            os.close(place)
            if index > 300 and refused and made:
                break
    finally:
        done.set()
        other.join()
    assert not list(outside.iterdir())
    assert refused + made > 300
