"""The root of every exception family in Sampan.

A part derives one family from `SampanError` and maps it to its wire protocol in one place, its front.
"""

from __future__ import annotations

import errno


class SampanError(Exception):
    """Something a person should read: what happened, why, and what to do, in one sentence."""


class SettingsError(SampanError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class PortTakenError(SampanError):
    """A listening address is in use; the message names the holder where it can be found."""


class DataDirectoryError(SampanError):
    """The data directory is locked by another platform, unreadable, or of a newer format."""


def told(error: BaseException) -> str:
    """An error in a line for a person; one that is none of ours has its type's name before it."""
    if isinstance(error, SampanError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" that holds {error.filename}" if error.filename else ""
        return f"the disk{where} is full; make room and start again"
    return f"{type(error).__name__}: {error}"
