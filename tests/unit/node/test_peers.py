"""Routes to other nodes' pods, and what a joined node follows of what its pods name."""

from __future__ import annotations

from typing import Any

from tests.unit.kube_control.cluster import Cluster, settle

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kube.control import ControlContext, SharedInformers
from sampan.kube.joining.interface import JOINED
from sampan.kube.objects import Key
from sampan.kube.resources import CONFIG_MAPS, NODES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES
from sampan.parts.network.part import PlatformProxy
from sampan.parts.network.services import reached
from sampan.parts.node.agent.peers import wanted_routes
from sampan.parts.node.agent.sources import Reference, ReferencedSources, references


def node(name: str, network: str, address: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": network} if network else {},
        "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
    }


def test_routes_lead_to_other_machines_only() -> None:
    nodes = [
        node("own", "10.244.0.0/24", "10.0.0.1"),
        node("far", "10.244.1.0/24", "10.0.0.2"),
        node("beside", "10.244.2.0/24", "10.0.0.1"),
        node("loop", "10.244.3.0/24", "127.0.0.1"),
        node("young", "", "10.0.0.3"),
        node("odd", "nonsense", "10.0.0.4"),
        {"metadata": {"name": "silent"}, "spec": {"podCIDR": "10.244.5.0/24"}},
    ]
    assert wanted_routes(nodes, "own", frozenset({"10.0.0.1"})) == {"10.244.1.0/24": "10.0.0.2"}


def slice_(*endpoints: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "s"},
        "endpoints": list(endpoints),
        "ports": [{"port": 9053, "protocol": "UDP"}, {"port": 9053, "protocol": "TCP"}],
    }


def test_what_another_machine_has_on_loopback_is_left_out() -> None:
    near = {"addresses": ["10.244.1.5"], "nodeName": "far"}
    own = {"addresses": ["127.0.0.5"], "nodeName": "here"}
    found = reached(
        slice_(near, own, {"addresses": ["127.0.0.1"]}, {"addresses": ["127.9.9.9"], "nodeName": "far"}),
        lambda name: name == "here",
    )
    assert found["endpoints"] == [near, own]


async def test_the_platform_leaves_out_what_joined_nodes_of_other_machines_have_on_loopback() -> None:
    own = node("own", "10.244.0.0/24", "127.0.0.1")
    beside = node("beside", "10.244.1.0/24", "127.0.0.1")
    far = node("far", "10.244.2.0/24", "192.0.2.77")
    for joined in (beside, far):
        joined["metadata"]["annotations"] = {JOINED: "true"}
    cluster = await Cluster.started()
    async with Tasks(clock := Clock()) as tasks:
        control = ControlContext(cluster, SharedInformers(cluster, clock, tasks), clock, tasks)
        for one in (own, beside, far):
            await cluster.create(NODES, one)
        proxy = PlatformProxy(control, "own", ["127.0.0.1"])
        await control.informers.informer(NODES).wait_synced()
        assert [proxy.is_here(name) for name in ("own", "beside", "far", "gone", "")] == [True, True, False, True, True]
        slices = [slice_(*({"addresses": ["127.116.0.2"], "nodeName": name} for name in ("own", "beside", "far")))]
        (seen,) = proxy._seen(Key("default", "web"), slices)
        assert [endpoint["nodeName"] for endpoint in seen["endpoints"]] == ["own", "beside"]


def test_what_a_machine_has_itself_takes_the_place() -> None:
    found = reached(
        slice_({"addresses": ["127.0.0.1"]}), lambda name: False, {"UDP": ("127.0.0.1", 53), "TCP": ("127.0.0.1", 54)}
    )
    assert found["endpoints"] == [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}]
    assert [port["port"] for port in found["ports"]] == [53, 54]


POD = {
    "metadata": {"namespace": "default", "name": "p", "uid": "u1"},
    "spec": {
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [
            {
                "name": "c",
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "env-map"}}],
            }
        ],
        "volumes": [
            {"name": "a", "configMap": {"name": "map"}},
            {"name": "b", "secret": {"secretName": "secret"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
            {"name": "d", "ephemeral": {}},
            {"name": "e", "projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "part"}}]}},
            {"name": "f", "emptyDir": {}},
        ],
    },
}


def test_everything_a_pod_names_is_found() -> None:
    found: dict[str, set[str]] = {}
    for plural, key in references(POD):
        assert key.namespace == "default"
        found.setdefault(plural, set()).add(key.name)
    assert found == {
        "configmaps": {"env-map", "map", "root"},
        "secrets": {"pull", "env-secret", "secret", "part"},
        "persistentvolumeclaims": {"claim", "p-d"},
    }


async def test_objects_are_followed_while_a_pod_names_them() -> None:
    clock = Clock()
    cluster = await Cluster.started(clock)
    await cluster.create(CONFIG_MAPS, {"metadata": {"name": "map"}, "data": {"a": "1"}}, "default")
    await cluster.create(CONFIG_MAPS, {"metadata": {"name": "other"}}, "default")
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": "claim"}, "spec": {}}, "default")
    async with Tasks(clock) as tasks:
        sources = ReferencedSources(ControlContext(cluster, SharedInformers(cluster, clock, tasks), clock, tasks))
        changes: list[Any] = []
        sources.on_change("configmaps", lambda old, new: changes.append(new and new.get("data")))
        volumes = [
            {"name": "a", "configMap": {"name": "map"}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
        ]
        one, two = ({"metadata": {**POD["metadata"], "uid": uid}, "spec": {"volumes": volumes}} for uid in ("1", "2"))  # type: ignore[dict-item]
        await sources.follow(one)
        await sources.follow(two)
        found = sources.get("configmaps", Key("default", "map"))
        assert found is not None
        assert found["data"] == {"a": "1"}
        assert sources.get("configmaps", Key("default", "other")) is None
        await cluster.patch(CONFIG_MAPS, "map", {"data": {"a": "2"}}, "default")
        await settle()
        assert changes == [{"a": "1"}, {"a": "2"}]
        # the volume that a claim is bound to later is followed, too
        await cluster.create(PERSISTENT_VOLUMES, {"metadata": {"name": "pv"}})
        await cluster.patch(PERSISTENT_VOLUME_CLAIMS, "claim", {"spec": {"volumeName": "pv"}}, "default")
        await settle(turns=200)
        assert sources.get("persistentvolumes", Key("", "pv")) is not None
        sources.forget("1")
        assert sources.get("configmaps", Key("default", "map")) is not None
        sources.forget("2")
        assert sources.get("configmaps", Key("default", "map")) is None
        assert Reference("persistentvolumes", Key("", "pv")) not in sources._watched
        await tasks.cancel()
