"""Receipts: the opaque text a client gives back to acknowledge or keep a message.

``startOffset popTime invisibleTime serial topicClass broker queueId queueOffset position``: the reference's form, because its
remoting clients build the first eight fields themselves. The fourth field, there the number of a revive queue, here tells one
lease of a message from the next.
"""

from __future__ import annotations

from typing import NamedTuple

from sampan.parts.messaging.errors import MessagingError, Reason


class Receipt(NamedTuple):
    """What a receipt says."""

    popped_ms: int
    invisible_ms: int
    serial: int
    queue: int
    offset: int


def write(receipt: Receipt, broker: str, position: int) -> str:
    """The text of a receipt."""
    popped_ms, invisible_ms, serial, queue, offset = receipt
    return f"{offset} {popped_ms} {invisible_ms} {serial} 0 {broker} {queue} {offset} {position}"


def read(text: str) -> Receipt:
    """A receipt from its text.

    Raises:
        MessagingError: INVALID_RECEIPT_HANDLE, it is malformed.
    """
    fields = text.split(" ")
    try:
        if not 8 <= len(fields) <= 9 or len(text) > 512:
            raise ValueError
        return Receipt(int(fields[1]), int(fields[2]), int(fields[3]), int(fields[6]), int(fields[7]))
    except ValueError:
        raise MessagingError(Reason.INVALID_RECEIPT_HANDLE, "the receipt handle is malformed") from None
