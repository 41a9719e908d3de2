"""What a Service can be connected to, and where that leads, as values."""

from __future__ import annotations

import errno
import json
from typing import Any

from sampan.kube.objects import Object
from sampan.parts.network.control.health import answer
from sampan.parts.network.control.proxy import explained
from sampan.parts.network.services import Backends, Frontend, Health, frontends, health_of


def _service(*, labels: dict[str, str] | None = None, status: Object | None = None, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {
        "metadata": {"name": "web", "namespace": "default", "labels": labels or {}},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.20", "ports": ports, **spec},
        "status": status or {},
    }


def _slice(*endpoints: Object, ports: list[Object] | None = None) -> Object:
    http = {"name": "http", "protocol": "TCP", "port": 8080}
    return {"addressType": "IPv4", "ports": [http] if ports is None else ports, "endpoints": list(endpoints)}


def _endpoint(address: str, node: str = "here", **conditions: bool) -> Object:
    return {"addresses": [address], "nodeName": node, "conditions": conditions}


ONE, TWO, THREE = "10.244.0.1", "10.244.0.2", "10.244.0.3"
VIP = Frontend("10.96.0.20", 80, "TCP")


def _addresses(found: dict[Frontend, Backends], frontend: Frontend = VIP) -> list[str]:
    return [address for address, _ in found[frontend].endpoints]


def test_ready_endpoints_take_connections() -> None:
    slices = [_slice(_endpoint(ONE, ready=True), _endpoint(TWO, ready=False)), _slice(_endpoint(THREE))]
    found = frontends(_service(), slices)
    assert found == {VIP: Backends(((ONE, 8080), (THREE, 8080)), name="default/web:http")}


def test_endpoints_that_terminate_serve_while_none_is_ready() -> None:
    leaving = _endpoint(ONE, ready=False, serving=True, terminating=True)
    gone = _endpoint(TWO, ready=False, serving=False, terminating=True)
    assert _addresses(frontends(_service(), [_slice(leaving, gone)])) == [ONE]
    assert _addresses(frontends(_service(), [_slice(leaving, _endpoint(THREE, ready=True))])) == [THREE]


def test_a_service_without_endpoints_refuses() -> None:
    assert frontends(_service(), []) == {VIP: Backends((), name="default/web:http")}


def test_ports_are_matched_by_name_and_protocol() -> None:
    ports: list[Object] = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    behind: list[Object] = [
        {"name": "dns", "protocol": "UDP", "port": 5353},
        {"name": "dns-tcp", "protocol": "TCP", "port": 5354},
    ]
    found = frontends(_service(ports=ports), [_slice(_endpoint(ONE), ports=behind)])
    assert {(key.port, key.protocol): value.endpoints for key, value in found.items()} == {
        (53, "UDP"): ((ONE, 5353),),
        (53, "TCP"): ((ONE, 5354),),
    }


def test_an_endpoint_at_a_port_that_is_none_is_nowhere() -> None:
    for number in (0, 65536, -1):
        made = frontends(_service(), [_slice(_endpoint("10.1.0.1"), ports=[{"name": "http", "port": number}])])
        assert made[VIP].endpoints == ()


def test_sctp_is_left_out() -> None:
    assert frontends(_service(ports=[{"port": 80, "protocol": "SCTP"}]), []) == {}


def test_what_has_no_address_has_no_frontends() -> None:
    assert frontends(_service(clusterIP="None"), [_slice(_endpoint(ONE))]) == {}
    assert frontends(_service(type="ExternalName", clusterIP=None), []) == {}
    assert frontends(_service(labels={"service.kubernetes.io/headless": ""}), []) == {}
    assert frontends(_service(labels={"service.kubernetes.io/service-proxy-name": "mine"}), []) == {}


def test_node_ports_stand_on_the_nodes_addresses() -> None:
    service = _service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}])
    found = frontends(service, [_slice(_endpoint(ONE))], "here", ["127.0.0.1", "192.0.2.1"])
    assert sorted(found) == [VIP, Frontend("127.0.0.1", 30080, "TCP"), Frontend("192.0.2.1", 30080, "TCP")]
    assert found[Frontend("192.0.2.1", 30080, "TCP")].reach == "node"


def test_load_balancers_and_external_addresses_lead_there_too() -> None:
    status: Object = {
        "loadBalancer": {
            "ingress": [{"ip": "127.77.0.1"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}, {"hostname": "lb.example.com"}]
        }
    }
    found = frontends(_service(externalIPs=["192.0.2.5"], status=status), [_slice(_endpoint(ONE))])
    reach = {frontend.address: backends.reach for frontend, backends in found.items()}
    assert reach == {"10.96.0.20": "cluster", "127.77.0.1": "external", "192.0.2.5": "external"}


def test_traffic_policies_keep_to_the_node() -> None:
    slices = [_slice(_endpoint(ONE, "here"), _endpoint(TWO, "there"))]
    inner = frontends(_service(internalTrafficPolicy="Local"), slices, "here")
    assert _addresses(inner) == [ONE]
    elsewhere = frontends(_service(internalTrafficPolicy="Local"), slices, "third")
    assert elsewhere[VIP] == Backends((), drop=True, name="default/web:http")
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    outer = frontends(
        _service(type="NodePort", externalTrafficPolicy="Local", ports=ports), slices, "there", ["127.0.0.1"]
    )
    assert _addresses(outer) == [ONE, TWO]
    assert _addresses(outer, Frontend("127.0.0.1", 30080, "TCP")) == [TWO]


def test_clients_stay_for_three_hours_unless_told_otherwise() -> None:
    assert frontends(_service(sessionAffinity="ClientIP"), [])[VIP].affinity == 10800
    config = {"clientIP": {"timeoutSeconds": 60}}
    assert frontends(_service(sessionAffinity="ClientIP", sessionAffinityConfig=config), [])[VIP].affinity == 60


def test_clients_of_a_load_balancer_may_have_to_come_from_somewhere() -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "127.77.1.1"}]}}
    given: dict[str, Any] = {"type": "LoadBalancer", "externalIPs": ["192.0.2.1"]}
    ranges = ["10.0.0.0/8", "127.0.0.1/32"]
    found = frontends(_service(status=status, loadBalancerSourceRanges=ranges, **given), [])
    assert found[Frontend("127.77.1.1", 80, "TCP")].sources == ("10.0.0.0/8", "127.0.0.1/32")
    assert found[Frontend("192.0.2.1", 80, "TCP")].sources == found[VIP].sources == ()
    everywhere = frontends(_service(status=status, loadBalancerSourceRanges=["0.0.0.0/0"], **given), [])
    assert everywhere[Frontend("127.77.1.1", 80, "TCP")].sources == ()
    annotated = _service(status=status, **given)
    annotated["metadata"]["annotations"] = {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.1.0.0/16, x"}
    assert frontends(annotated, [])[Frontend("127.77.1.1", 80, "TCP")].sources == ("10.1.0.0/16",)


def test_the_health_check_counts_ready_endpoints_of_this_node() -> None:
    local: dict[str, Any] = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
    slices = [_slice(_endpoint(ONE), _endpoint(TWO, ready=False), _endpoint(THREE, node="there"))]
    assert health_of(_service(**local), slices, "here") == Health(31000, "default", "web", 1)
    assert health_of(_service(**{**local, "externalTrafficPolicy": "Cluster"}), slices, "here") is None
    assert health_of(_service(), slices, "here") is None


def test_the_health_check_answers_in_kube_proxys_words() -> None:
    status, body = answer(Health(31000, "default", "web", 2))
    assert status == "200 OK"
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert answer(Health(31000, "default", "web", 0))[0] == "503 Service Unavailable"
    assert answer(None)[0] == "503 Service Unavailable"


def test_why_nobody_listens_is_told_by_what_it_is() -> None:
    taken = OSError(errno.EADDRINUSE, "Address already in use")
    cluster = explained(Frontend("10.96.0.10", 53, "UDP"), taken, in_range=True)
    assert "at 127.96.0.10" in cluster
    assert "kubernetes.service_range" in cluster
    port_of_the_node = explained(Frontend("10.0.0.5", 30080, "TCP"), taken)
    assert port_of_the_node == "cannot listen on 10.0.0.5:30080/TCP: the port is in use on this machine"
