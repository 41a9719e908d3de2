"""What several controllers of Serving look up in informers."""

from __future__ import annotations

from collections.abc import Iterable

from sampan.kube.control.indexes import Lookup
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Object, dig
from sampan.parts.serving import keys


def _revision_of(pod: Object) -> Iterable[str]:
    uid = dig(pod, "metadata", "labels", keys.REVISION_UID)
    return (f"{pod['metadata']['namespace']}/{uid}",) if uid else ()


_BY_REVISION = Lookup("revision", _revision_of)


def pods_of_revision(pods: Informer, namespace: str, uid: str) -> list[Object]:
    """A revision's pods. Only those of its namespace: a label anyone can write, in a namespace of theirs."""
    return _BY_REVISION(pods, f"{namespace}/{uid}")
