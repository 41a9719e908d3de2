"""A node's certificates: kept in files, renewed by the clock, served to the next handshake."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from sampan.kernel.certificates import Authority
from sampan.kernel.clock import Clock, machine_time
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client, WatchEvent
from sampan.kube.joining.credentials import (
    Credential,
    Folder,
    Membership,
    due,
    make_request,
    obtain,
    of_client,
    of_kubelet,
    read_pair,
)
from sampan.kube.joining.membership import base_url, parse_taint
from sampan.kube.joining.tokens import JoinError
from sampan.kube.objects import Object, Resource, copy


class Signing:
    """An API that decides every certificate request at once; ``decision`` is a condition instead of a certificate."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.decision: dict[str, str] | None = None
        self.seconds = 3600.0
        self.made: list[Object] = []

    async def create(self, resource: Resource, obj: Object, namespace: str | None = None) -> Object:
        made: Object = copy(obj)
        made["metadata"]["name"] = f"csr-{len(self.made)}"
        self.made.append(made)
        return made

    @asynccontextmanager
    async def watch(self, resource: Resource, *, field_selector: str) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        made = copy(self.made[-1])
        assert field_selector == f"metadata.name={made['metadata']['name']}"

        async def events() -> AsyncIterator[WatchEvent]:
            yield WatchEvent("ADDED", copy(made))
            if self.decision is not None:
                made["status"] = {"conditions": [self.decision]}
            else:
                spec = made["spec"]
                signed = await asyncio.to_thread(
                    self.authority.sign_csr,
                    base64.b64decode(spec["request"]),
                    seconds=self.seconds,
                    usages=spec["usages"],
                )
                made["status"] = {"certificate": base64.b64encode(signed).decode()}
            yield WatchEvent("MODIFIED", made)

        yield events()


@pytest.fixture
def api(tmp_path: Path) -> Signing:
    return Signing(Authority(tmp_path / "pki"))


def as_client(api: Signing) -> Client:
    return cast(Client, api)


async def test_a_request_says_who_and_for_what(api: Signing) -> None:
    pem = await obtain(as_client(api), of_kubelet("a", ["10.0.0.2"]), Clock())
    pair = read_pair(pem)
    assert (pair.common_name, pair.names) == ("system:node:a", frozenset({"a", "10.0.0.2"}))
    assert b"PRIVATE KEY" in pem
    spec = api.made[0]["spec"]
    assert (spec["signerName"], spec["usages"]) == (
        "kubernetes.io/kubelet-serving",
        ["digital signature", "server auth"],
    )


@pytest.mark.parametrize("type", ["Denied", "Failed"])
async def test_a_request_that_is_turned_down_says_why(api: Signing, type: str) -> None:
    api.decision = {"type": type, "status": "True", "message": "not on my ship"}
    with pytest.raises(JoinError, match=f"{type.lower()}: not on my ship"):
        await obtain(as_client(api), of_client("a"), Clock())


async def test_a_file_is_used_for_as_long_as_it_fits(api: Signing, tmp_path: Path) -> None:
    file, clock = tmp_path / "client.pem", Clock()
    await Credential(file, of_client("a"), clock).ensure(as_client(api))
    await Credential(file, of_client("a"), clock).ensure(as_client(api))
    assert len(api.made) == 1
    assert file.stat().st_mode & 0o777 == 0o600
    await Credential(file, of_client("b"), clock).ensure(as_client(api))
    assert len(api.made) == 2
    file.write_text("damaged")
    assert not Credential(file, of_client("b"), clock).load()
    file.unlink()
    assert not Credential(file, of_client("b"), clock).load()


async def test_a_serving_certificate_of_the_clusters_own_authority_is_asked_for_anew(
    api: Signing, tmp_path: Path
) -> None:
    file, clock, wanted = tmp_path / "serving.pem", Clock(), of_kubelet("a", ["10.0.0.2"])
    cluster = api.authority
    await Credential(file, wanted, clock).ensure(as_client(api))
    api.authority = cluster.apart("kubelet-serving")
    for _ in range(2):
        await Credential(file, wanted, clock, not_of=cluster.certificate_path).ensure(as_client(api))
    assert len(api.made) == 2, "the one of the authority apart is kept"


async def test_a_certificate_that_has_ended_is_none(api: Signing, tmp_path: Path) -> None:
    file = tmp_path / "client.pem"
    api.seconds = -60.0
    credential = Credential(file, of_client("a"), Clock())
    await credential.ensure(as_client(api))
    assert not credential.load()


async def test_it_is_renewed_by_the_clock_and_served_to_the_next_handshake(api: Signing, tmp_path: Path) -> None:
    clock = Clock()
    credential = Credential(tmp_path / "serving.pem", of_kubelet("localhost", []), clock)
    await credential.ensure(as_client(api))
    context = credential.serve(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    before = served(context, api.authority)
    async with Tasks(clock) as tasks:
        tasks.keep("renew", lambda: credential.keep(as_client(api)))
        await clock.sleep(0)
        clock.jump(0.6 * 3600)
        await asyncio.sleep(0.05)
        assert credential.renewals == 0
        clock.jump(0.35 * 3600)
        async with asyncio.timeout(10):
            while credential.renewals == 0:
                await asyncio.sleep(0.01)
        await tasks.cancel()
    assert served(context, api.authority) != before


def served(server: ssl.SSLContext, authority: Authority) -> bytes:
    """The certificate that a handshake shows."""
    client = ssl.create_default_context(cafile=str(authority.certificate_path))
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    here, there = client.wrap_bio(a, b, server_hostname="localhost"), server.wrap_bio(b, a, server_side=True)
    for _ in range(6):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = here.getpeercert(binary_form=True)
    assert shown is not None
    return shown


async def test_a_failed_renewal_is_tried_again(api: Signing, tmp_path: Path) -> None:
    clock = Clock()
    credential = Credential(tmp_path / "client.pem", of_client("a"), clock)
    await credential.ensure(as_client(api))
    api.decision = {"type": "Denied", "status": "True"}
    async with Tasks(clock) as tasks:
        tasks.keep("renew", lambda: credential.keep(as_client(api)))
        await clock.sleep(0)
        clock.jump(3600)
        async with asyncio.timeout(10):
            while len(api.made) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        api.decision = None
        clock.jump(31)
        async with asyncio.timeout(10):
            while credential.renewals == 0:
                await asyncio.sleep(0.01)
        await tasks.cancel()


def test_renewal_is_due_late_in_a_certificates_life(api: Signing) -> None:
    _, request = make_request(of_client("a"))
    pair = read_pair(api.authority.sign_csr(request, seconds=1000.0))
    now = machine_time()
    moments = {due(pair) - now for _ in range(50)}
    assert len(moments) > 10
    assert all(690 <= moment <= 910 for moment in moments)


def test_a_folder_remembers_what_the_node_is(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "joined")
    assert folder.membership is None
    folder.begin("PEM")
    made = Membership(node="a", server="https://10.0.0.1:6443", address="10.0.0.2", labels={"k": "v"})
    folder.keep(made)
    assert Folder(tmp_path / "joined").membership == made
    (tmp_path / "joined" / "node.json").write_text("{")
    with pytest.raises(JoinError, match="cannot be read"):
        _ = folder.membership
    folder.forget()
    assert folder.membership is None


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.1", "https://10.0.0.1:6443"),
        ("10.0.0.1:7443", "https://10.0.0.1:7443"),
        ("https://ship.example:443", "https://ship.example:443"),
        ("[fd00::1]:6443", "https://[fd00::1]:6443"),
    ],
)
def test_a_server_is_named_in_several_ways(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize("text", ["", "http://10.0.0.1", "host:port", ":6443"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(JoinError, match="is not the address"):
        base_url(text)


def test_taints_are_read_as_kubectl_writes_them() -> None:
    assert parse_taint("a=b:NoSchedule") == {"key": "a", "value": "b", "effect": "NoSchedule"}
    assert parse_taint("a:NoExecute") == {"key": "a", "effect": "NoExecute"}
    wrong: Any
    for wrong in ("a", "a=b", ":NoSchedule", "a:Sometimes"):
        with pytest.raises(JoinError, match="not a taint"):
            parse_taint(wrong)
