"""What deletions that were cut short left in messaging: topics and consumer groups whose objects are gone.

A controller deletes an object's topic once it sees that the object has gone. Where nobody saw it (the process was killed in
between, or eventing was not among the parts when the object was deleted), the topic is found here, at the next start.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import NamedTuple

from sampan.kube.objects import Object
from sampan.kube.status import ApiError
from sampan.parts.eventing.control.broker import RETRY_UNAVAILABLE
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.names import group_of, subscriber_group, topic_of
from sampan.parts.eventing.resources import BROKERS, IN_MEMORY_CHANNELS, TRIGGERS
from sampan.parts.eventing.streams import UnavailableError

log = logging.getLogger(__name__)

OWN_TOPICS = ("knative-broker_", "knative-inmemorychannel_")
OWN_GROUPS = ("knative-trigger_", "knative-subscriber_")
"""What names begin with that only eventing gives, and gives only here."""


class Leftovers(NamedTuple):
    """Topics and groups that nothing refers to."""

    topics: list[str]
    groups: list[str]


def leftovers(
    topics: Collection[str],
    groups: Collection[str],
    brokers: Iterable[Object],
    channels: Iterable[Object],
    triggers: Iterable[Object],
) -> Leftovers:
    """Of what messaging has, what belongs to no object. The objects must have been looked at after messaging was."""
    channels = list(channels)
    used = {topic_of({**one, "kind": "Broker"}) for one in brokers}
    used |= {topic_of({**one, "kind": "InMemoryChannel"}) for one in channels}
    used |= {group_of({**one, "kind": "Trigger"}) for one in triggers}
    rows = [row for one in channels for row in (one.get("spec") or {}).get("subscribers") or ()]
    used |= {subscriber_group(row["uid"]) for row in rows if row.get("uid")}
    return Leftovers(
        sorted(one for one in topics if one.startswith(OWN_TOPICS) and one not in used),
        sorted(one for one in groups if one.startswith(OWN_GROUPS) and one not in used),
    )


async def sweep(shared: Shared) -> None:
    """Delete them, once, as soon as messaging is there. Groups first: nobody reads a topic that goes."""
    client, streams = shared.context.client, shared.streams
    while True:
        try:
            topics, groups = await streams.topics(), await streams.groups()
            brokers, channels, triggers = [
                (await client.list(resource)).items for resource in (BROKERS, IN_MEMORY_CHANNELS, TRIGGERS)
            ]
            left = leftovers(topics, groups, brokers, channels, triggers)
            for group in left.groups:
                await streams.delete_group(group)
            for topic in left.topics:
                await streams.delete_topic(topic)
        except (UnavailableError, ApiError):
            await shared.context.clock.sleep(RETRY_UNAVAILABLE)
            continue
        if left.topics or left.groups:
            log.info("deleted what objects that are gone left in messaging: %s", ", ".join(left.groups + left.topics))
        return
