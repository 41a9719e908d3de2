"""Names as programs inside pods resolve them: glibc, musl, Java, Node, and a resolver that asks as ``dig`` does.

Every judge runs as a process of a pod with nothing but the pod's own /etc/resolv.conf, is given the same names and says which
addresses it found. What the platform must get right differs from one to the next: glibc and musl walk the search list (musl
asks for A and AAAA at once and gives up where the two disagree), Java caches and wants reverse names, Node has two resolvers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socketserver
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeGuard

import dns
import pytest

import sampan.testing
from sampan.kube.client.http import HttpClient
from sampan.kube.objects import Object
from sampan.kube.resources import ENDPOINT_SLICES, PODS, SERVICES
from tests.clients.test_network_dns import _Outside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: pods with a resolv.conf of their own"),
    pytest.mark.xdist_group("network-dns-pods"),
]

C = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int count, char **names) {
  FILE *out = fopen("/dev/termination-log", "w");
  fprintf(out, "{");
  for (int i = 1; i < count; i++) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    fprintf(out, "%s\"%s\": [", i > 1 ? ", " : "", names[i]);
    if (getaddrinfo(names[i], "80", &hints, &found) == 0)
      for (struct addrinfo *one = found; one; one = one->ai_next) {
        char text[64];
        getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
        fprintf(out, "%s\"%s\"", one == found ? "" : ", ", text);
      }
    fprintf(out, "]");
  }
  fprintf(out, "}");
  return fclose(out);
}
"""
JAVA = r"""
import java.io.PrintWriter;
import java.net.InetAddress;
public class Resolve {
  public static void main(String[] names) throws Exception {
    try (PrintWriter out = new PrintWriter("/dev/termination-log")) {
      out.print("{");
      for (int i = 0; i < names.length; i++) {
        out.print((i > 0 ? ", " : "") + "\"" + names[i] + "\": [");
        try {
          InetAddress[] found = InetAddress.getAllByName(names[i]);
          for (int n = 0; n < found.length; n++) out.print((n > 0 ? ", " : "") + "\"" + found[n].getHostAddress() + "\"");
        } catch (java.net.UnknownHostException unknown) { }
        out.print("]");
      }
      out.print("}");
    }
  }
}
"""
NODE = """
const dns = require('dns').promises, fs = require('fs');
(async () => {
  const found = {};
  for (const name of process.argv.slice(1)) {
    try { found[name] = (await dns.lookup(name, {all: true})).map(one => one.address); } catch { found[name] = []; }
  }
  fs.writeFileSync('/dev/termination-log', JSON.stringify(found));
})();
"""
NODE_CARES = """
const dns = require('dns').promises, fs = require('fs');
(async () => {
  const found = {};
  for (const name of process.argv.slice(1)) {
    try { found[name] = await dns.resolve4(name); } catch { found[name] = []; }
  }
  found.srv = await dns.resolveSrv('_http._tcp.db.default.svc.cluster.local');
  fs.writeFileSync('/dev/termination-log', JSON.stringify(found));
})();
"""
DIG = """
import json, sys
sys.path.insert(0, "/judge")
import dns.resolver, dns.reversename
resolver = dns.resolver.Resolver()
def ask(name, kind):
    try:
        return sorted(str(one) for one in resolver.resolve(name, kind, search=False))
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
        return type(error).__name__
found = {f"{name} {kind}": ask(name, kind) for name, kind in (one.rsplit(" ", 1) for one in sys.argv[1:])}
found["search"] = [one.to_text() for one in resolver.search]
found["ndots"] = resolver.ndots
json.dump(found, open("/dev/termination-log", "w"))
"""
SHORT = ("web", "web.default", "web.default.svc", "web.default.svc.cluster.local")
CLUSTER = "default.svc.cluster.local"


class World:
    """A platform with Services to be asked for."""

    def __init__(self, client: HttpClient, web: str, folder: Path) -> None:
        self.client = client
        self.web = web
        self.folder = folder
        """What pods see at ``/judge``."""
        self._count = 0

    async def found(self, command: list[str], *names: str, patience: float = 40) -> dict[str, object]:
        """What a program in a pod of its own found."""
        self._count += 1
        name = f"judge-{self._count}"
        container = {
            "name": "c",
            "image": "python",
            "command": [*command, *names],
            "volumeMounts": [{"name": "judge", "mountPath": "/judge"}],
        }
        pod: Object = {
            "metadata": {"name": name},
            "spec": {
                "containers": [container],
                "restartPolicy": "Never",
                "volumes": [{"name": "judge", "hostPath": {"path": str(self.folder)}}],
            },
        }
        await self.client.create(PODS, pod, "default")
        async with asyncio.timeout(patience):
            while (state := (await self.client.get(PODS, name, "default"))["status"]).get("phase") not in (
                "Succeeded",
                "Failed",
            ):
                await asyncio.sleep(0.02)
        message = state["containerStatuses"][0]["state"]["terminated"].get("message", "")
        assert state["phase"] == "Succeeded", message
        told: dict[str, object] = json.loads(message)
        return {key: sorted(set(value)) if _texts(value) else value for key, value in told.items()}

    def expected(self, *, trailing: bool = True) -> dict[str, list[str]]:
        """What every judge must find, by name."""
        return {
            **{name: [self.web] for name in SHORT},
            "db": ["10.244.7.1", "10.244.7.2"],
            "db-1.db": ["10.244.7.2"],
            "alias": [self.web],
            "far": ["192.0.2.1"],
            "www.example.com": ["192.0.2.1"],
            "10-244-7-9.default.pod": ["10.244.7.9"],
            "absent": [],
            "absent.db": [],
            "web.elsewhere": [],
            **({"web.default.svc.cluster.local.": [self.web], "web.": []} if trailing else {}),
        }


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), _Outside) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
async def world(outside: str, tmp_path: Path) -> AsyncIterator[World]:
    settings = {"kubernetes.store": "memory", "network.upstream": [outside]}
    only = ["kubernetes", "workloads", "node", "network"]
    async with sampan.testing.Platform(only=only, settings=settings) as platform, platform.client() as client:
        ports = [{"name": "http", "port": 80}]
        services: dict[str, Object] = {
            "web": {"ports": ports},
            "db": {"ports": ports, "clusterIP": "None"},
            "alias": {"type": "ExternalName", "externalName": f"web.{CLUSTER}"},
            "far": {"type": "ExternalName", "externalName": "www.example.com"},
        }
        made = {
            name: await client.create(SERVICES, {"metadata": {"name": name}, "spec": spec}, "default")
            for name, spec in services.items()
        }
        endpoints = [
            {"addresses": [f"10.244.7.{n + 1}"], "conditions": {"ready": True}, "hostname": f"db-{n}"} for n in range(2)
        ]
        slice_: Object = {
            "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        }
        await client.create(ENDPOINT_SLICES, slice_, "default")
        yield World(client, made["web"]["spec"]["clusterIP"], tmp_path)


def made(program: str, folder: Path, source: str, name: str, *command: str) -> None:
    """Compile what a judge needs; skips where there is no compiler."""
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    (folder / name).write_text(source)
    subprocess.run([program, *command, name], cwd=folder, check=True)
    folder.chmod(0o755)


def program(name: str) -> str:
    """Where a program really is; skips where it is not."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    return os.path.realpath(path)


@pytest.mark.parametrize(("compiler", "flags"), [("cc", ()), ("musl-gcc", ("-static",))])
async def test_two_c_libraries(world: World, compiler: str, flags: tuple[str, ...]) -> None:
    made(compiler, world.folder, C, "resolve.c", *flags, "-o", "resolve")
    expected = world.expected()
    assert await world.found(["/judge/resolve"], *expected) == expected


async def test_python(world: World) -> None:
    script = (
        "import json, socket, sys\n"
        "def ask(name):\n"
        "    try: return sorted({one[4][0] for one in socket.getaddrinfo(name, 80)})\n"
        "    except socket.gaierror: return []\n"
        "json.dump({name: ask(name) for name in sys.argv[1:]}, open('/dev/termination-log', 'w'))"
    )
    expected = world.expected()
    assert await world.found(["python", "-c", script], *expected) == expected


async def test_java(world: World) -> None:
    java = program("java")
    made("javac", world.folder, JAVA, "Resolve.java")
    expected = world.expected()
    assert await world.found([java, "-cp", "/judge", "Resolve"], *expected, patience=90) == expected


async def test_node_both_ways(world: World) -> None:
    node = program("node")
    expected = world.expected()
    assert await world.found([node, "-e", NODE], *expected) == expected
    # its second resolver walks no search list
    whole = [f"web.{CLUSTER}", f"db.{CLUSTER}", f"absent.{CLUSTER}"]
    told = await world.found([node, "-e", NODE_CARES], *whole)
    records = told.pop("srv")
    assert isinstance(records, list)
    assert sorted((one["name"], one["port"]) for one in records) == [(f"db-{n}.db.{CLUSTER}", 8080) for n in range(2)]
    assert told == dict(zip(whole, ([world.web], ["10.244.7.1", "10.244.7.2"], []), strict=True))


async def test_asked_as_dig_does(world: World) -> None:
    reverse = ".".join(reversed(world.web.split("."))) + ".in-addr.arpa"
    expected: dict[str, object] = {
        f"web.{CLUSTER} A": [world.web],
        f"web.{CLUSTER} AAAA": "NoAnswer",
        f"db.{CLUSTER} A": ["10.244.7.1", "10.244.7.2"],
        f"_http._tcp.web.{CLUSTER} SRV": [f"0 100 80 web.{CLUSTER}."],
        f"_http._tcp.db.{CLUSTER} SRV": [f"0 100 8080 db-{n}.db.{CLUSTER}." for n in range(2)],
        f"_nope._tcp.web.{CLUSTER} SRV": "NXDOMAIN",
        f"alias.{CLUSTER} CNAME": [f"web.{CLUSTER}."],
        f"{reverse} PTR": [f"web.{CLUSTER}."],
        "1.7.244.10.in-addr.arpa PTR": [f"db-0.db.{CLUSTER}."],
        "10-244-7-9.default.pod.cluster.local A": ["10.244.7.9"],
        "dns-version.cluster.local TXT": ['"1.1.0"'],
        f"absent.{CLUSTER} A": "NXDOMAIN",
        f"absent.{CLUSTER} AAAA": "NXDOMAIN",
        "www.example.com A": ["192.0.2.1"],
        "web A": "NXDOMAIN",
    }
    await asyncio.to_thread(shutil.copytree, Path(dns.__file__).parent, world.folder / "dns")
    told = await world.found(["python", "-c", DIG], *expected)
    search, ndots = told.pop("search"), told.pop("ndots")
    assert told == expected
    assert isinstance(search, list)
    assert {f"{CLUSTER}.", "svc.cluster.local.", "cluster.local."} <= set(search)
    assert ndots == 5
