"""The cluster's names (DNS schema 1.1.0), as values."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from sampan.kube.objects import Object
from sampan.parts.network.dns import message as dns
from sampan.parts.network.dns.message import Target
from sampan.parts.network.dns.zone import Zone, reversed_address
from sampan.parts.network.records import ServiceRecords, service_records


def _slice(ports: Sequence[Object], *endpoints: Object) -> Object:
    return {"addressType": "IPv4", "ports": list(ports), "endpoints": list(endpoints)}


def _endpoint(address: str, *, ready: bool | None = True, hostname: str = "") -> Object:
    made: Object = {"addresses": [address], "conditions": {} if ready is None else {"ready": ready}}
    if hostname:
        made["hostname"] = hostname
    return made


HTTP: Object = {"name": "http", "protocol": "TCP", "port": 8080}
SERVICES: dict[str, tuple[Object, list[Object]]] = {
    "default/web": (
        {"clusterIP": "10.96.0.20", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        [_slice([HTTP], _endpoint("10.244.0.5"))],
    ),
    "default/db": (
        {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
        [
            _slice(
                [HTTP],
                _endpoint("10.244.0.6", hostname="db-0"),
                _endpoint("10.244.0.7", ready=None),
                _endpoint("10.244.0.8", ready=False, hostname="db-2"),
            )
        ],
    ),
    "default/empty": ({"clusterIP": "None", "ports": [{"port": 80}]}, []),
    "default/far": ({"type": "ExternalName", "externalName": "WWW.example.com."}, []),
    "default/near": ({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}, []),
    "default/nearer": ({"type": "ExternalName", "externalName": "near.default.svc.cluster.local"}, []),
    "default/round": ({"type": "ExternalName", "externalName": "about.default.svc.cluster.local"}, []),
    "default/about": ({"type": "ExternalName", "externalName": "round.default.svc.cluster.local"}, []),
    "default/self": ({"type": "ExternalName", "externalName": "self.default.svc.cluster.local"}, []),
    "default/numeric": ({"type": "ExternalName", "externalName": "192.0.2.7"}, []),
}  # fmt: skip


class World:
    def has_namespace(self, name: str) -> bool:
        return name in ("default", "kube-system")

    def service(self, namespace: str, name: str) -> ServiceRecords | None:
        found = SERVICES.get(f"{namespace}/{name}")
        return None if found is None else service_records({"spec": found[0]}, found[1])

    def names_of(self, address: str) -> list[str]:
        return {"10.96.0.20": ["web.default"], "10.244.0.6": ["db-0.db.default"]}.get(address, [])


ZONE = Zone(World(), server="10.96.0.10")


def _ask(name: str, kind: int = dns.A) -> tuple[int, list[str | Target]]:
    answer = ZONE.answer(name, kind)
    assert answer is not None
    shown: list[str | Target] = []
    for record in answer.reply.answers:
        data = record.data
        assert record.ttl == 5
        if isinstance(data, bytes):
            shown.append(data[1:].decode() if record.type == dns.TXT else str(ipaddress.ip_address(data)))
        elif isinstance(data, (str, Target)):
            shown.append(data)
    assert answer.reply.answers or answer.reply.authority or answer.reply.code == dns.SERVER_FAILURE
    return answer.reply.code, shown


NAME = "svc.cluster.local"


@pytest.mark.parametrize(
    ("name", "kind", "code", "found"),
    [
        (f"web.default.{NAME}", dns.A, 0, ["10.96.0.20"]),
        (f"web.default.{NAME}", dns.AAAA, 0, []),
        (f"web.default.{NAME}", dns.TXT, 0, []),
        (f"10-244-0-5.web.default.{NAME}", dns.A, 0, ["10.244.0.5"]),
        (f"absent.default.{NAME}", dns.A, 3, []),
        (f"absent.default.{NAME}", dns.AAAA, 3, []),
        (f"web.absent.{NAME}", dns.A, 3, []),
        (f"default.{NAME}", dns.A, 0, []),
        (f"absent.{NAME}", dns.A, 3, []),
        (NAME, dns.A, 0, []),
        ("cluster.local", dns.A, 0, []),
        ("cluster.local", dns.NS, 0, ["ns.dns.cluster.local"]),
        ("ns.dns.cluster.local", dns.A, 0, ["10.96.0.10"]),
        ("nothing.cluster.local", dns.A, 3, []),
        (f"db.default.{NAME}", dns.A, 0, ["10.244.0.6", "10.244.0.7"]),
        (f"db-0.db.default.{NAME}", dns.A, 0, ["10.244.0.6"]),
        (f"10-244-0-7.db.default.{NAME}", dns.A, 0, ["10.244.0.7"]),
        (f"db-2.db.default.{NAME}", dns.A, 3, []),
        (f"empty.default.{NAME}", dns.A, 0, []),
        (f"_http._tcp.web.default.{NAME}", dns.SRV, 0, [Target(0, 100, 80, f"web.default.{NAME}")]),
        (f"_dns._udp.web.default.{NAME}", dns.SRV, 0, [Target(0, 100, 53, f"web.default.{NAME}")]),
        (f"_dns._tcp.web.default.{NAME}", dns.SRV, 3, []),
        (f"_tcp.web.default.{NAME}", dns.SRV, 0, []),
        (
            f"_http._tcp.db.default.{NAME}",
            dns.SRV,
            0,
            [Target(0, 100, 8080, f"db-0.db.default.{NAME}"), Target(0, 100, 8080, f"10-244-0-7.db.default.{NAME}")],
        ),
        (f"db-0.db.default.{NAME}", dns.SRV, 0, [Target(0, 100, 8080, f"db-0.db.default.{NAME}")]),
        ("10-1-2-3.default.pod.cluster.local", dns.A, 0, ["10.1.2.3"]),
        ("10-1-2-3.default.pod.cluster.local", dns.AAAA, 0, []),
        ("fd00--1.default.pod.cluster.local", dns.AAAA, 0, ["fd00::1"]),
        ("10-1-2-3.absent.pod.cluster.local", dns.A, 3, []),
        ("web.default.pod.cluster.local", dns.A, 3, []),
        ("dns-version.cluster.local", dns.TXT, 0, ["1.1.0"]),
        ("20.0.96.10.in-addr.arpa", dns.PTR, 0, [f"web.default.{NAME}"]),
        ("6.0.244.10.in-addr.arpa", dns.PTR, 0, [f"db-0.db.default.{NAME}"]),
        (f"far.default.{NAME}", dns.A, 0, ["www.example.com"]),
        (f"near.default.{NAME}", dns.A, 0, [f"web.default.{NAME}", "10.96.0.20"]),
        (f"near.default.{NAME}", dns.AAAA, 0, [f"web.default.{NAME}"]),
        (f"nearer.default.{NAME}", dns.A, 0, [f"near.default.{NAME}", f"web.default.{NAME}", "10.96.0.20"]),
        (f"round.default.{NAME}", dns.A, 2, []),
        (f"self.default.{NAME}", dns.A, 2, []),
        (f"numeric.default.{NAME}", dns.A, 0, ["192.0.2.7"]),
    ],
)
def test_answers(name: str, kind: int, code: int, found: list[str | Target]) -> None:
    assert _ask(name, kind) == (code, found)


def test_a_query_for_services_brings_their_addresses_along() -> None:
    answer = ZONE.answer(f"_http._tcp.db.default.{NAME}", dns.SRV)
    assert answer is not None
    assert [record.name.split(".")[0] for record in answer.reply.additional] == ["db-0", "10-244-0-7"]


def test_other_names_are_not_ours() -> None:
    assert ZONE.answer("www.example.com", dns.A) is None
    assert ZONE.answer("notcluster.local", dns.A) is None
    assert ZONE.answer("1.2.0.192.in-addr.arpa", dns.PTR) is None


def test_an_alias_outside_is_followed() -> None:
    answer = ZONE.answer(f"far.default.{NAME}", dns.A)
    assert answer is not None
    assert answer.follow == "www.example.com"


def test_cluster_addresses_may_be_shown_as_others() -> None:
    service: Object = {"spec": {"clusterIP": "10.96.0.20", "ports": []}}
    shown = service_records(service, [], lambda address: "127" + address[2:])
    assert shown.addresses == (bytes([127, 96, 0, 20]),)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("20.0.96.10.in-addr.arpa", "10.96.0.20"),
        ("0.96.10.in-addr.arpa", ""),
        ("x.0.96.10.in-addr.arpa", ""),
        ("1" + ".0" * 31 + ".ip6.arpa", "::1"),
    ],
)
def test_reverse_names(name: str, address: str) -> None:
    assert reversed_address(name) == address
