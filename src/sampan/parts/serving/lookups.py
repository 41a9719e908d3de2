"""What several controllers of Serving look up in informers."""

from __future__ import annotations

from sampan.kube.control.indexes import Lookup
from sampan.kube.objects import dig
from sampan.parts.serving import keys

PODS_OF_REVISION = Lookup(
    "revision", lambda pod: [uid] if (uid := dig(pod, "metadata", "labels", keys.REVISION_UID)) else []
)
"""Pods by the uid of their revision."""
