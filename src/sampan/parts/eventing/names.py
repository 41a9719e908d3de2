"""Names that eventing gives to topics and consumer groups: readable, valid for RocketMQ, never used twice."""

from __future__ import annotations

from sampan.kube.objects import Object

LONGEST = 100
"""Characters of the readable part; RocketMQ allows 127 in all for topics."""


def topic_of(obj: Object) -> str:
    """The topic of a broker or channel."""
    metadata = obj["metadata"]
    return _name(f"knative-{obj['kind'].lower()}", metadata["namespace"], metadata["name"], metadata["uid"])


def group_of(obj: Object) -> str:
    """The consumer group of a Trigger or Subscription."""
    metadata = obj["metadata"]
    return _name(f"knative-{obj['kind'].lower()}", metadata["namespace"], metadata["name"], metadata["uid"])


def subscriber_group(uid: str) -> str:
    """The consumer group of a channel's subscriber."""
    return f"knative-subscriber_{uid.replace('-', '')[:20]}"


def _name(kind: str, namespace: str, name: str, uid: str) -> str:
    readable = f"{kind}_{namespace}_{name}".replace(".", "-")[:LONGEST]
    return f"{readable}_{uid.replace('-', '')[:12]}"
