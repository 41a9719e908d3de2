"""Where proxy requests go, and what the other end is shown."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.resources import ENDPOINT_SLICES, NODES, PODS, SERVICES
from sampan.kube.server.connect import KubeletConnector, _check_log
from sampan.kube.server.routing import Target, parse
from sampan.kube.status import ApiError
from tests.unit.kube_server.conftest import Cluster

POD: dict[str, Any] = {
    "metadata": {"name": "p"},
    "spec": {"hostNetwork": True, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 10250}]}]},
}
SLICE: dict[str, Any] = {
    "metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.0.0.1"]}],
    "ports": [{"name": "", "port": 10250}],
}


def target(path: str) -> Target:
    found = parse(path)
    assert found is not None
    return found


@pytest.fixture
async def connector(cluster: Cluster) -> KubeletConnector:
    made = KubeletConnector(cluster.api, cluster.clock)
    made.context = ssl.create_default_context()
    await cluster.client.create(PODS, POD, "default")
    status = {"status": {"podIP": "10.0.0.1"}}
    await cluster.client.patch(PODS, "p", status, "default", subresource="status")
    ports = [{"name": "", "port": 443, "protocol": "TCP"}]
    await cluster.client.create(SERVICES, {"metadata": {"name": "s"}, "spec": {"ports": ports}}, "default")
    await cluster.client.create(ENDPOINT_SLICES, SLICE, "default")
    await cluster.client.create(NODES, {"metadata": {"name": "n"}})
    addressed = {"status": {"addresses": [{}, {"type": "InternalIP", "address": "10.0.0.1"}]}}
    await cluster.client.patch(NODES, "n", addressed, subresource="status")
    return made


@pytest.mark.parametrize("name", ["pods/https:p:10250", "services/https:s:443"])
async def test_what_users_run_is_not_shown_the_certificate_that_kubelets_obey(
    cluster: Cluster, connector: KubeletConnector, name: str
) -> None:
    type = cluster.types.find(PODS if name.startswith("pods") else SERVICES)
    assert type is not None
    backend, path = connector._proxied(type, target(f"/api/v1/namespaces/default/{name}/proxy/exec/a/b/c"))
    assert (backend.host, backend.port, path) == ("10.0.0.1", 10250, "/exec/a/b/c")
    assert backend.context is not None
    assert backend.context is not connector.context
    assert backend.context.verify_mode is ssl.CERT_NONE


async def test_kubelets_are(cluster: Cluster, connector: KubeletConnector) -> None:
    type = cluster.types.find(NODES)
    assert type is not None
    backend, _ = connector._proxied(type, target("/api/v1/nodes/n/proxy/pods"))
    assert backend.context is connector.context


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_a_node_that_joined_is_asked_at_no_name_that_it_gives_itself(
    cluster: Cluster, connector: KubeletConnector, name: str
) -> None:
    await cluster.client.create(NODES, {"metadata": {"name": "m", "annotations": {JOINED: "true"}}})
    told = {"status": {"addresses": [{"type": "Hostname", "address": name}]}}
    await cluster.client.patch(NODES, "m", told, subresource="status")
    with pytest.raises(ApiError, match="no preferred addresses found"):
        connector._kubelet("m")
    told["status"]["addresses"].append({"type": "ExternalIP", "address": "192.0.2.1"})
    await cluster.client.patch(NODES, "m", told, subresource="status")
    assert connector._kubelet("m").host == "192.0.2.1"


@pytest.mark.parametrize("port", ["0", "65536", "99999", "9" * 5000])
async def test_a_port_that_is_none_is_the_clients_mistake(
    cluster: Cluster, connector: KubeletConnector, port: str
) -> None:
    for path, resource in ((f"namespaces/default/pods/p:{port}", PODS), (f"nodes/n:{port}", NODES)):
        type = cluster.types.find(resource)
        assert type is not None
        with pytest.raises(ApiError) as caught:
            connector._proxied(type, target(f"/api/v1/{path}/proxy/"))
        assert caught.value.code == 400


def test_a_time_that_is_none_is_the_clients_mistake() -> None:
    _check_log({"sinceTime": ["2026-01-02T03:04:05Z"]}, "p")
    with pytest.raises(ApiError) as caught:
        _check_log({"sinceTime": ["garbage"]}, "p")
    assert caught.value.code == 400
