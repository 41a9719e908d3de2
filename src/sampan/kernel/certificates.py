"""The platform's certificate authority: made at first start, kept in the data directory."""

from __future__ import annotations

from pathlib import Path


class Authority:
    """Issues server and client certificates signed by the platform's own CA."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
