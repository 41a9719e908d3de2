"""Messaging: a RocketMQ-compatible broker. `part` is where to begin reading.

What other parts may use is the small asynchronous client: `MessagingClient`, its `Received` messages and its error, and the
`Membership` that a proxy wants of who receives. It speaks the public gRPC protocol, so it works against any RocketMQ 5 proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sampan.parts.messaging.client import MessagingClient, MessagingClientError, Received, Sent
    from sampan.parts.messaging.membership import Membership

__all__ = ["Membership", "MessagingClient", "MessagingClientError", "Received", "Sent"]


def __getattr__(name: str) -> Any:
    """Import the client when it is first used: the broker itself does not need it."""
    if name in __all__:
        from sampan.parts.messaging import client, membership

        return getattr(membership if name == "Membership" else client, name)
    raise AttributeError(name)
