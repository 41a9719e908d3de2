"""Node ports and addresses are given out until there are none, those that people choose by hand last."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.resources import SERVICES
from sampan.kube.server.allocation import CHOSEN_BY_HAND, NODE_PORTS, ServiceAllocator
from tests.unit.kube_server.conftest import Cluster


def give_all(cluster: Cluster, service_range: str, ports: int) -> list[Object]:
    """What the writes of ever more Services, none of which has ended, are given."""
    allocator = ServiceAllocator(cluster.store, service_range)
    kind = cluster.types.find(SERVICES)
    assert kind is not None
    given: list[Object] = []
    writes = []
    while True:
        wanted = [{"port": number + 1, "protocol": "TCP"} for number in range(ports)]
        new: Object = {
            "metadata": {"name": f"s{len(given)}", "namespace": "default"},
            "spec": {"type": "NodePort", "ports": wanted},
        }
        writes.append(allocator.allocating(kind, new, None))
        if writes[-1].__enter__().errors:
            break
        given.append(new["spec"])
    for write in writes:
        write.__exit__(None, None, None)
    allocator.close()
    return given


async def test_every_node_port_is_given_once_and_the_low_ones_last(cluster: Cluster) -> None:
    given = [port["nodePort"] for spec in give_all(cluster, "10.96.0.0/16", 100) for port in spec["ports"]]
    assert len(given) == len(set(given)) == len(NODE_PORTS) // 100 * 100
    assert min(given[: len(NODE_PORTS) - CHOSEN_BY_HAND]) == NODE_PORTS.start + CHOSEN_BY_HAND


async def test_every_address_is_given_once_and_the_low_ones_last(cluster: Cluster) -> None:
    given = [spec["clusterIP"] for spec in give_all(cluster, "10.96.0.0/25", 0)]
    assert len(given) == len(set(given)) == 126
    low = {f"10.96.0.{number}" for number in range(1, 16)}
    assert set(given[-15:]) == low


async def test_platforms_begin_at_places_of_their_own(cluster: Cluster) -> None:
    firsts = [give_all(cluster, "10.96.0.0/28", 1)[0]["ports"][0]["nodePort"] for _ in range(12)]
    assert len(set(firsts)) > 1
    assert all(first >= NODE_PORTS.start + CHOSEN_BY_HAND for first in firsts)
