"""Names of what Serving makes."""

from __future__ import annotations

import hashlib

LONGEST = 63
DIGEST = 32


def child(parent: str, suffix: str) -> str:
    """``parent + suffix``; shortened by a digest when it would not fit a DNS label, as upstream, whose tools look it up."""
    if len(parent) + len(suffix) <= LONGEST:
        return parent + suffix
    room = LONGEST - DIGEST
    if len(suffix) < room:
        return parent[: room - len(suffix)] + _digest(parent) + suffix
    name = (parent[:room] + _digest(parent + suffix) + suffix)[:LONGEST]
    while not name[-1].isalnum():
        name = name[:-1]
    return name


def _digest(name: str) -> str:
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def revision(configuration: str, generation: int) -> str:
    """The generated name of a configuration's revision."""
    return child(configuration, f"-{generation:05d}")


def deployment(revision_name: str) -> str:
    return child(revision_name, "-deployment")


def private_service(revision_name: str) -> str:
    return child(revision_name, "-private")


def image_cache(revision_name: str, container: str) -> str:
    return child(child(revision_name, "-cache"), f"-{container}")
