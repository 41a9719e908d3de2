"""The cluster's name server on real sockets, asked by dnspython."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import dns.asyncquery
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest

import sampan.testing
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import ENDPOINT_SLICES, SERVICES

ONLY = ["kubernetes", "network"]


class _Outside(socketserver.BaseRequestHandler):
    """A resolver that knows everything below example.com."""

    def handle(self) -> None:
        data, sock = self.request
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        if name.endswith("example.com."):
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        sock.sendto(answer.to_wire(), self.client_address)


@pytest.fixture
def outside() -> Iterator[str]:
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Outside) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Asker:
    """dnspython at the platform's name server."""

    def __init__(self, platform: sampan.testing.Platform) -> None:
        host, _, port = platform.address("dns").rpartition(":")
        self.where, self.port = host, int(port)

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False, **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        if tcp:
            return await dns.asyncquery.tcp(query, self.where, port=self.port, timeout=10)
        return await dns.asyncquery.udp(query, self.where, port=self.port, timeout=10)

    async def texts(self, name: str, kind: str = "A", **options: Any) -> list[str]:
        answer = await self.ask(name, kind, **options)
        return [str(one) for rrset in answer.answer for one in rrset]


def _endpoints(service: str, count: int) -> Object:
    return {
        "metadata": {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [f"10.244.0.{n + 2}"], "conditions": {"ready": True}, "hostname": f"{service}-{n}"}
            for n in range(count)
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }


async def _service(client: HttpClient, name: str, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80}]
    return await client.create(SERVICES, {"metadata": {"name": name}, "spec": {"ports": ports, **spec}}, "default")


async def test_names_follow_the_objects(outside: str) -> None:
    settings = {"kubernetes.store": "memory", "network.upstream": [outside]}
    async with sampan.testing.Platform(only=ONLY, settings=settings) as platform, platform.client() as client:
        asker = Asker(platform)
        api = await client.get(SERVICES, "kubernetes", "default")
        assert await asker.texts("kubernetes.default.svc.cluster.local") == [api["spec"]["clusterIP"]]

        own = await client.get(SERVICES, "kube-dns", "kube-system")
        assert own["spec"]["clusterIP"] == "10.96.0.10"
        assert await asker.texts("kube-dns.kube-system.svc.cluster.local") == ["10.96.0.10"]
        target = (await client.get(ENDPOINT_SLICES, "kube-dns", "kube-system"))["endpoints"][0]["addresses"][0]
        assert target == asker.where

        missing = await asker.ask("web.default.svc.cluster.local")
        assert missing.rcode() == dns.rcode.NXDOMAIN
        web = await _service(client, "web")
        assert await asker.texts("web.default.svc.cluster.local") == [web["spec"]["clusterIP"]]
        assert await asker.texts("_http._tcp.web.default.svc.cluster.local", "SRV") == [
            "0 100 80 web.default.svc.cluster.local."
        ]
        reverse = ".".join(reversed(web["spec"]["clusterIP"].split("."))) + ".in-addr.arpa"
        assert await asker.texts(reverse, "PTR") == ["web.default.svc.cluster.local."]

        await _service(client, "db", clusterIP="None")
        assert await asker.texts("db.default.svc.cluster.local") == []
        await client.create(ENDPOINT_SLICES, _endpoints("db", 2), "default")
        assert await asker.texts("db.default.svc.cluster.local") == ["10.244.0.2", "10.244.0.3"]
        assert await asker.texts("db-1.db.default.svc.cluster.local") == ["10.244.0.3"]
        await client.delete(ENDPOINT_SLICES, "db-1", "default")
        assert await asker.texts("db.default.svc.cluster.local") == []
        await client.delete(SERVICES, "web", "default")
        assert (await asker.ask("web.default.svc.cluster.local")).rcode() == dns.rcode.NXDOMAIN

        # others' names, directly and behind an alias
        assert await asker.texts("www.example.com") == ["192.0.2.1"]
        await _service(client, "far", type="ExternalName", externalName="api.example.com")
        assert await asker.texts("far.default.svc.cluster.local") == ["api.example.com.", "192.0.2.1"]
        assert (await asker.ask("absent.example.org")).rcode() == dns.rcode.NXDOMAIN


async def test_a_long_answer_is_cut_for_udp_and_whole_over_tcp() -> None:
    async with (
        sampan.testing.Platform(only=ONLY, settings={"kubernetes.store": "memory"}) as platform,
        platform.client() as client,
    ):
        await _service(client, "many", clusterIP="None")
        await client.create(ENDPOINT_SLICES, _endpoints("many", 100), "default")
        asker = Asker(platform)
        cut = await asker.ask("many.default.svc.cluster.local")
        assert cut.flags & dns.flags.TC
        assert len(cut.to_wire()) <= 512
        wider = await asker.ask("many.default.svc.cluster.local", use_edns=0, payload=4096)
        assert len(wider.to_wire()) <= 1232
        assert len(wider.answer[0]) > len(cut.answer[0])
        assert len(await asker.texts("many.default.svc.cluster.local", tcp=True)) == 100


async def test_what_cannot_be_answered_says_why() -> None:
    settings = {"kubernetes.store": "memory", "network.upstream": ["127.0.0.1:1"]}
    async with sampan.testing.Platform(only=ONLY, settings=settings) as platform:
        asker = Asker(platform)
        assert (await asker.ask("www.example.com")).rcode() == dns.rcode.SERVFAIL
        update = dns.message.make_query("a.cluster.local", "A")
        update.set_opcode(dns.opcode.UPDATE)
        answer = await dns.asyncquery.udp(update, asker.where, port=asker.port, timeout=10)
        assert answer.rcode() == dns.rcode.NOTIMP
        assert (await asker.ask("a.cluster.local", use_edns=1)).rcode() == dns.rcode.BADVERS
        # UDP and TCP live on after nonsense
        reader, writer = await asyncio.open_connection(asker.where, asker.port)
        writer.write(b"\0\x05abcde" + b"\0\x0c" + b"\0\7\1\0" + b"\0\5" + bytes(6))
        assert (await reader.readexactly(6))[2:4] == b"\0\7"
        writer.close()
        assert (await asker.ask("kubernetes.default.svc.cluster.local", tcp=True)).rcode() == dns.rcode.NOERROR
