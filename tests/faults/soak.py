"""What soaks that are run by hand have alike."""

from __future__ import annotations

import sys


def numbers(*usual: int) -> tuple[int, ...]:
    """The numbers of the command line, in order; those that are not given are the usual ones."""
    given = [int(one) for one in sys.argv[1 : len(usual) + 1]]
    return (*given, *usual[len(given) :])
