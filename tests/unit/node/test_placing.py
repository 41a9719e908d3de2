"""Where the sockets of pods with addresses by convention go."""

from __future__ import annotations

import struct
from ipaddress import IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kernel import addresses
from sampan.parts.node.runtime.placing import INET, INET6, Address, PodPlaces, parse

POD = "127.116.0.7"
HIDDEN = "127.7.0.7"
STREAM, DATAGRAM = 1, 2


@pytest.fixture(autouse=True)
def no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_lowest_port", lambda: 1024)


@pytest.fixture
def places() -> PodPlaces:
    return PodPlaces(POD, [IPv4Network("10.96.0.0/12")])


def sockaddr(family: int, host: str, port: int) -> bytes:
    packed = ip_address(host).packed
    if family == INET:
        return struct.pack("=H", family) + struct.pack(">H", port) + packed + bytes(8)
    full = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return struct.pack("=H", family) + struct.pack(">HI", port, 0) + full + bytes(4)


class TestDoor:
    def test_low_ports_of_conventional_addresses_are_at_the_top(self) -> None:
        assert addresses.door(POD, 80) == 64592
        assert addresses.door("127.96.0.10", 53) == 64565
        assert addresses.door(HIDDEN, 1023) == 65535

    @pytest.mark.parametrize(
        ("host", "port"),
        [
            (POD, 1024),
            (POD, 0),
            ("127.0.0.1", 80),
            ("127.0.0.53", 53),
            ("10.244.0.7", 80),
            ("example.org", 80),
            ("::1", 80),
        ],
    )
    def test_everything_else_is_where_it_says(self, host: str, port: int) -> None:
        assert addresses.door(host, port) == port

    @given(st.integers(min_value=0, max_value=65535))
    def test_a_door_leads_to_itself(self, port: int) -> None:
        assert addresses.door(POD, addresses.door(POD, port)) == addresses.door(POD, port) <= 65535

    def test_who_may_listen_on_low_ports_needs_no_doors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(addresses, "_lowest_port", lambda: 0)
        assert addresses.door(POD, 80) == 80


class TestParse:
    @given(st.sampled_from(["0.0.0.0", "127.0.0.1", POD]), st.integers(0, 65535))
    def test_ipv4(self, host: str, port: int) -> None:
        assert parse(sockaddr(INET, host, port)) == Address(INET, host, port)
        assert parse(sockaddr(INET6, host, port)) == Address(INET6, host, port, mapped=True)

    def test_ipv6(self) -> None:
        assert parse(sockaddr(INET6, "::", 80)) == Address(INET6, "::", 80)

    @given(st.binary(max_size=128))
    def test_anything_is_taken(self, data: bytes) -> None:
        found = parse(data)
        assert found is None or found.family in (INET, INET6)


class TestBind:
    @pytest.mark.parametrize(
        ("asked", "placed"),
        [
            (Address(INET, "0.0.0.0", 80), Address(INET, POD, 64592)),
            (Address(INET, "0.0.0.0", 8080), Address(INET, POD, 8080)),
            (Address(INET, POD, 443), Address(INET, POD, 64955)),
            (Address(INET, "127.0.0.1", 8080), Address(INET, HIDDEN, 8080)),
            (Address(INET6, "::", 80), Address(INET6, POD, 64592, mapped=True)),
            (Address(INET6, "::1", 9000), Address(INET6, HIDDEN, 9000, mapped=True)),
            (Address(INET6, "127.0.0.1", 9000, mapped=True), Address(INET6, HIDDEN, 9000, mapped=True)),
        ],
    )
    def test_servers_are_put_at_the_pods_own_addresses(
        self, places: PodPlaces, asked: Address, placed: Address
    ) -> None:
        assert places.bind(asked, only6=False) == placed

    @pytest.mark.parametrize(
        "asked",
        [
            Address(INET, "0.0.0.0", 0),
            Address(INET, "192.168.1.10", 80),
            Address(INET, "127.116.0.8", 80),
            Address(INET6, "fe80::1", 80),
        ],
    )
    def test_others_are_bound_as_asked(self, places: PodPlaces, asked: Address) -> None:
        assert places.bind(asked, only6=False) is None

    def test_an_ipv6_only_server_beside_an_ipv4_one_does_not_collide(self, places: PodPlaces) -> None:
        assert places.bind(Address(INET6, "::", 80), only6=True) == Address(INET6, "::1", 0)


class TestConnect:
    def serve(self, places: PodPlaces, host: str, port: int, kind: int = STREAM) -> None:
        asked = Address(INET, host, port)
        placed = places.bind(asked, only6=False)
        assert placed is not None
        places.bound(kind, asked, placed)

    def test_localhost_is_the_pods_where_it_serves_and_the_machines_elsewhere(self, places: PodPlaces) -> None:
        self.serve(places, "0.0.0.0", 80)
        assert places.connect(STREAM, Address(INET, "127.0.0.1", 80), only6=False) == Address(INET, POD, 64592)
        assert places.connect(STREAM, Address(INET, "127.0.0.1", 6443), only6=False) is None
        assert places.connect(DATAGRAM, Address(INET, "127.0.0.1", 80), only6=False) is None

    @pytest.mark.parametrize("order", [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])
    def test_a_server_on_localhost_goes_before_one_on_all_addresses(
        self, places: PodPlaces, order: tuple[str, str]
    ) -> None:
        for host in order:
            self.serve(places, host, 9000)
        for asked in (Address(INET, "127.0.0.1", 9000), Address(INET6, "::1", 9000)):
            placed = places.connect(STREAM, asked, only6=False)
            assert placed is not None
            assert placed.host == HIDDEN

    def test_other_pods_and_services_are_at_their_doors(self, places: PodPlaces) -> None:
        assert places.connect(STREAM, Address(INET, "127.116.0.9", 80), only6=False) == Address(
            INET, "127.116.0.9", 64592
        )
        assert places.connect(STREAM, Address(INET, "10.96.1.4", 80), only6=False) == Address(INET, "127.96.1.4", 64592)

    @pytest.mark.parametrize("host", ["10.0.0.1", "10.244.0.1", "192.0.2.1", "127.0.0.53", "2001:db8::1"])
    def test_the_rest_of_the_world_is_where_it_is(self, places: PodPlaces, host: str) -> None:
        family = INET6 if ":" in host else INET
        assert places.connect(STREAM, Address(family, host, 80), only6=False) is None

    def test_names_are_asked_of_the_cluster_where_the_machines_servers_are_meant(self) -> None:
        places = PodPlaces(POD, (), "127.96.0.10", ["192.0.2.53"])
        assert places.connect(DATAGRAM, Address(INET, "192.0.2.53", 53), only6=False) == Address(
            INET, "127.96.0.10", 64565
        )
        assert places.connect(DATAGRAM, Address(INET, "8.8.8.8", 53), only6=False) is None

    @given(st.integers(1, 65535), st.sampled_from(["0.0.0.0", "127.0.0.1"]))
    def test_what_is_bound_is_found_again(self, port: int, host: str) -> None:
        places = PodPlaces(POD)
        asked = Address(INET, host, port)
        placed = places.bind(asked, only6=False)
        assert placed is not None
        places.bound(STREAM, asked, placed)
        assert places.connect(STREAM, Address(INET, "127.0.0.1", port), only6=False) == placed
