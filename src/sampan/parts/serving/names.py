"""Names of what Serving makes."""

from __future__ import annotations

import hashlib

LONGEST = 63


def child(parent: str, suffix: str) -> str:
    """``parent + suffix``, shortened by a digest when it would not fit a DNS label."""
    name = parent + suffix
    if len(name) <= LONGEST:
        return name
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    room = LONGEST - len(digest) - len(suffix)
    if room > 0:
        return parent[:room] + digest + suffix
    return name[: LONGEST - len(digest)] + digest


def revision(configuration: str, generation: int) -> str:
    """The generated name of a configuration's revision."""
    return child(configuration, f"-{generation:05d}")


def deployment(revision_name: str) -> str:
    return child(revision_name, "-deployment")


def private_service(revision_name: str) -> str:
    return child(revision_name, "-private")


def image_cache(revision_name: str, container: str) -> str:
    return child(revision_name, f"-cache-{container}")
