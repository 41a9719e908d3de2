"""The root of every exception family in Sampan.

A part derives one family from `SampanError` and maps it to its wire protocol in one place, its front.
"""

from __future__ import annotations


class SampanError(Exception):
    """Something a person should read: what happened, why, and what to do, in one sentence."""


class SettingsError(SampanError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class PortTakenError(SampanError):
    """A listening address is in use; the message names the holder where it can be found."""


class DataDirectoryError(SampanError):
    """The data directory is locked by another platform, unreadable, or of a newer format."""
