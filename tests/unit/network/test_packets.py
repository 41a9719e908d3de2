"""The nf_tables data path, with a kernel that only counts: what is changed, and which flows are forgotten."""

from __future__ import annotations

import asyncio
import threading
import time
from ipaddress import IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sampan.kernel import nftables
from sampan.kernel.nftables import Batch
from sampan.parts.network.control.attachment import Attachment
from sampan.parts.network.datapath import conntrack
from sampan.parts.network.datapath.packets import PacketPath
from sampan.parts.network.policy import Isolation
from sampan.parts.network.services import Backends, Frontend

DNS = Frontend("10.96.0.10", 53, "UDP")
WEB = Frontend("10.96.0.11", 80, "TCP")
HERE, THERE = ("10.244.9.2", 53), ("10.244.9.3", 53)


class Kernel:
    """What was asked of it."""

    def __init__(self) -> None:
        self.batches = 0
        self.forgotten: list[dict[Any, Any]] = []

    def commit(self, batch: Batch) -> None:
        self.batches += bool(len(batch))

    def forget(self, endpoints: dict[Any, Any]) -> int:
        self.forgotten.append(endpoints)
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(Batch, "commit", lambda batch: made.commit(batch))
    monkeypatch.setattr(conntrack, "forget_stale", made.forget)
    monkeypatch.setattr(nftables, "remove", lambda table: None)
    return made


async def test_flows_that_began_before_their_service_was_known_are_forgotten(kernel: Kernel) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({}, {}, [])
    await path.put(DNS, Backends((HERE,)))
    await path.put(WEB, Backends((HERE,)))
    assert kernel.forgotten == [{(DNS.address, 53): {HERE}}]
    await path.put(DNS, Backends((HERE, THERE)))
    assert len(kernel.forgotten) == 1
    await path.put(DNS, Backends((THERE,)))
    await path.drop(DNS)
    assert kernel.forgotten[1:] == [{(DNS.address, 53): {THERE}}, {(DNS.address, 53): set()}]


async def test_flows_of_an_earlier_table_are_forgotten_where_nobody_is_any_more(kernel: Kernel) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({DNS: Backends((HERE,)), WEB: Backends((HERE,))}, {}, [])
    await path.settle()
    assert kernel.forgotten == [{(DNS.address, 53): {HERE}}]


async def test_nothing_is_put_into_a_table_that_was_taken_away(kernel: Kernel) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({}, {}, [])
    await path.end()
    before = kernel.batches
    await path.put(WEB, Backends((HERE,)))
    assert kernel.batches == before


async def test_who_leaves_waits_for_what_is_being_put(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({}, {}, [])
    begun, let = threading.Event(), threading.Event()

    def commit(batch: Batch) -> None:
        begun.set()
        assert let.wait(30)

    monkeypatch.setattr(Batch, "commit", commit)
    putting = asyncio.create_task(path.put(WEB, Backends((HERE,))))
    assert await asyncio.to_thread(begun.wait, 30)
    leaving = asyncio.create_task(path.leave())
    await asyncio.sleep(0)
    assert not leaving.done()
    let.set()
    await asyncio.gather(putting, leaving)
    assert path.frontends == {WEB}


async def test_what_the_table_began_with_and_nobody_claims_is_dropped(kernel: Kernel) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    other = Frontend("10.96.0.12", 80, "TCP")
    await path.begin(dict.fromkeys((DNS, WEB, other), Backends((HERE,))), {}, [])
    proxy = SimpleNamespace(frontends={WEB: 0}, wanted=lambda: {WEB: 0, other: 0})
    await Attachment._drop_former(cast(Attachment, SimpleNamespace(_proxy=proxy)), path)
    assert path.frontends == {WEB, other}


async def test_flows_are_looked_through_only_where_udp_endpoints_leave(kernel: Kernel) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({WEB: Backends((HERE,)), DNS: Backends((HERE,))}, {}, [])
    for frontend in (WEB, DNS):
        await path.put(frontend, Backends((HERE, THERE)))
        assert not kernel.forgotten
        await path.put(frontend, Backends((THERE,)))
    await path.drop(DNS)
    await path.drop(DNS)
    assert kernel.forgotten == [{(DNS.address, 53): {THERE}}, {(DNS.address, 53): set()}]


async def test_every_change_is_made_off_the_loop_one_at_a_time_and_in_order(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = threading.get_ident()
    seen: list[str] = []
    under_way = 0

    def commit(batch: Batch) -> None:
        nonlocal under_way
        under_way += 1
        assert threading.get_ident() != loop
        assert under_way == 1
        time.sleep(0.002)
        seen.append(str(len(batch)))
        under_way -= 1

    monkeypatch.setattr(Batch, "commit", commit)
    path = PacketPath("t", "10.244.9.0/24", host=False)
    began = asyncio.create_task(path.begin({}, {}, []))
    asked = [
        path.put(WEB, Backends((HERE,))),
        path.enforce({"10.244.9.2": Isolation(())}),
        path.know([IPv4Network("10.244.9.0/24")]),
        path.enforce({}),
        path.drop(WEB),
    ]
    await asyncio.sleep(0)
    await asyncio.gather(*asked)
    assert began.done()
    assert len(seen) == 6
    assert not path.frontends


async def test_who_is_cancelled_leaves_when_his_change_is_made_and_known(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({}, {}, [])
    begun, let = threading.Event(), threading.Event()

    def commit(batch: Batch) -> None:
        begun.set()
        assert let.wait(30)
        made.append(batch)

    made: list[Batch] = []
    monkeypatch.setattr(Batch, "commit", commit)
    putting = asyncio.create_task(path.put(WEB, Backends((HERE,))))
    assert await asyncio.to_thread(begun.wait, 30)
    after = asyncio.create_task(path.put(WEB, Backends((HERE, THERE))))
    for _ in range(3):
        putting.cancel()
        await asyncio.sleep(0)
    assert not putting.done()
    let.set()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert path.frontends == {WEB}
    await after
    assert len(made) == 2


async def test_a_refusal_reaches_who_asked_and_the_next_change_is_made(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PacketPath("t", "10.244.9.0/24", host=False)
    await path.begin({}, {}, [])

    def refuse(batch: Batch) -> None:
        raise OSError(12, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(Batch, "commit", refuse)
        with pytest.raises(OSError, match="no memory"):
            await path.enforce({"10.244.9.2": Isolation(())})
    before = kernel.batches
    await path.enforce({"10.244.9.2": Isolation(())})
    assert kernel.batches == before + 1
