"""The versioned object store: interface, core and drivers."""

from sampan.kube.store.core import Store
from sampan.kube.store.interface import (
    Change,
    CompactedError,
    ConflictError,
    Entry,
    FullError,
    LogDriver,
    Record,
    SlowWatchError,
    StoreError,
    Watch,
)
from sampan.kube.store.memory import MemoryLog

__all__ = [
    "Change",
    "CompactedError",
    "ConflictError",
    "Entry",
    "FullError",
    "LogDriver",
    "MemoryLog",
    "Record",
    "SlowWatchError",
    "Store",
    "StoreError",
    "Watch",
]
