"""The exception family of eventing."""

from __future__ import annotations

from sampan.kernel.errors import SampanError


class EventingError(SampanError):
    """Root of eventing's errors."""


class NotAnEventError(EventingError):
    """An HTTP message that does not claim to be a CloudEvent."""


class MalformedEventError(EventingError):
    """An HTTP message that claims to be a CloudEvent and is none; the message says which attribute is wrong and how."""


class ExpressionError(EventingError):
    """A CESQL expression or a filter cannot be compiled; the message says where."""


class EvaluationError(EventingError):
    """A CESQL expression has no value for this event (missing attribute, failed cast, division by zero)."""


class UnresolvedError(EventingError):
    """A Destination has no URL (yet)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConnectionSettingsError(EventingError):
    """What an object says of its connection to a broker elsewhere makes no connection."""
