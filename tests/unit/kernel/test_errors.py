"""What a person reads of an error."""

from __future__ import annotations

import errno

import pytest

from sampan.kernel.errors import SampanError, told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SampanError("the port is taken"), "the port is taken"),
        (
            OSError(errno.ENOSPC, "No space left", "/data/x"),
            "the disk that holds /data/x is full; make room and start again",
        ),
        (OSError(errno.EDQUOT, "Quota"), "the disk is full; make room and start again"),
        (ValueError("no"), "ValueError: no"),
    ],
)
def test_an_error_is_told_in_a_line(error: Exception, words: str) -> None:
    assert told(error) == words
