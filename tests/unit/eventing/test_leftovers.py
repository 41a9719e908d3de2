"""What belongs to no object any more is found by its name."""

from __future__ import annotations

from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.objects import Object
from sampan.parts.eventing.control.leftovers import Leftovers, leftovers
from sampan.parts.eventing.names import group_of, subscriber_group, topic_of
from sampan.parts.eventing.streams import Streams


def named(kind: str, name: str, uid: str, **spec: object) -> Object:
    return {"kind": kind, "metadata": {"namespace": "default", "name": name, "uid": uid}, "spec": spec}


def test_only_topics_and_groups_of_ours_without_an_object_are_left_over() -> None:
    broker, gone = named("Broker", "b", "1-1"), named("Broker", "b", "2-2")
    channel = named("InMemoryChannel", "c", "3-3", subscribers=[{"uid": "4-4"}, {}])
    closed = named("InMemoryChannel", "d", "5-5")
    trigger, former = named("Trigger", "t", "6-6"), named("Trigger", "t", "7-7")
    topics = [*map(topic_of, (broker, gone, channel, closed)), "orders", "knative-sources"]
    groups = [group_of(trigger), group_of(former), subscriber_group("4-4"), subscriber_group("8-8"), "shop"]
    groups.append(group_of(named("RocketMQSource", "s", "9-9")))  # its group may be one of a cluster elsewhere
    bare = [{key: value for key, value in one.items() if key != "kind"} for one in (broker, channel, trigger)]
    assert leftovers(topics, groups, bare[:1], bare[1:2], bare[2:]) == Leftovers(
        sorted([topic_of(gone), topic_of(closed)]), sorted([group_of(former), subscriber_group("8-8")])
    )


async def test_a_start_knows_whether_messaging_was_ever_spoken_to(tmp_path: Path) -> None:
    clock = Clock()
    tasks = Tasks(clock)

    def streams() -> Streams:
        return Streams(lambda: ("127.0.0.1", 1), clock, tasks, note=tmp_path / "streams")

    assert not streams().used
    first = streams()
    first.client()
    await first.close()
    assert streams().used
