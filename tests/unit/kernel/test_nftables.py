"""Batches of nf_tables changes, read back by a reader of their own and compared with the kernel's numbers."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.kernel import nft_decoder as decoder
from tests.unit.kernel.nft_decoder import Kernel, number, text

from sampan.kernel import nftables
from sampan.kernel.netlink import attributes
from sampan.kernel.nftables import Batch, Element


def _one(batch: Batch) -> decoder.Message:
    [message] = decoder.messages(batch.encoded())
    return message


def test_a_whole_message_byte_by_byte() -> None:
    batch = Batch("t")
    batch.add_table()
    begin = bytes.fromhex("14000000 1000 0100 00000000 00000000 00 00 000a")
    table = bytes.fromhex("24000000 000a 0104 01000000 00000000 02 00 00000600 0100 7400 00000800 0200 00000000")
    end = bytes.fromhex("14000000 1100 0100 02000000 00000000 00 00 000a")
    assert batch.encoded() == begin + table + end


def test_a_chain_that_packets_come_to_names_hook_priority_and_kind() -> None:
    batch = Batch("t")
    batch.add_chain("c", "nat", nftables.PREROUTING, nftables.DESTINATION)
    message = _one(batch)
    assert (message.kind, message.family) == ("chain", 2)
    hook = decoder.fields(message.fields[4])
    assert (number(hook[1]), number(hook[2])) == (0, 2**32 - 100)
    assert (text(message.fields[3]), text(message.fields[7]), number(message.fields[5])) == ("c", "nat", 1)


def test_rules_are_appended_with_their_expressions_in_order() -> None:
    batch = Batch("t")
    batch.add_rule(
        "c",
        nftables.destination_address(0) + nftables.meta(nftables.PROTOCOL_OF_PACKET, 1),
        nftables.destination_port(2),
        nftables.random_number(3, 3),
        nftables.looked_up("backends", 0, 4),
        nftables.redirected(4, 5),
    )
    message = _one(batch)
    assert message.flags == 0xC00
    told = [
        (name, {key: value if key == 1 and name == "lookup" else number(value) for key, value in data.items()})
        for name, data in decoder.expressions(message)
    ]
    assert told == [
        ("payload", {1: 8, 2: 1, 3: 16, 4: 4}),
        ("meta", {2: 16, 1: 9}),
        ("payload", {1: 10, 2: 2, 3: 2, 4: 2}),
        ("numgen", {1: 11, 2: 3, 3: 1, 4: 0}),
        ("lookup", {1: b"backends\0", 2: 8, 3: 12}),
        ("nat", {1: 1, 2: 2, 3: 12, 5: 13}),
    ]


def test_what_is_remembered_has_a_timeout_in_milliseconds() -> None:
    batch = Batch("t")
    batch.add_rule("c", nftables.remembered("clients", 0, 4, 10800), nftables.forgotten("clients", 0, 4))
    (first, update), (second, delete) = decoder.expressions(_one(batch))
    assert (first, second) == ("dynset", "dynset")
    assert struct.unpack(">Q", update[6]) == (10_800_000,)
    assert [number(update[key]) for key in (3, 4, 5)] == [1, 8, 12]
    assert [number(delete[key]) for key in (3, 4, 5)] == [2, 8, 12]


def test_refusals_and_verdicts() -> None:
    batch = Batch("t")
    batch.add_rule("c", nftables.refused_by_reset(), nftables.refused_as_unreachable())
    assert [(name, number(data[1]), data[2]) for name, data in decoder.expressions(_one(batch))] == [
        ("reject", 1, b"\0"),
        ("reject", 0, b"\3"),
    ]
    batch = Batch("t")
    batch.add_rule("c", nftables.verdict(nftables.JUMP, "d"), nftables.verdict(nftables.DROP))
    jump, drop = (decoder.fields(decoder.fields(data[2])[2]) for _, data in decoder.expressions(_one(batch)))
    assert (number(jump[1]), text(jump[2])) == (2**32 - 3, "d")
    assert (number(drop[1]), 2 in drop) == (0, False)


def test_sets_and_maps_tell_lengths_of_whole_registers() -> None:
    key = (nftables.ADDRESS, nftables.PROTOCOL, nftables.PORT)
    batch = Batch("t")
    batch.add_set("plain", key)
    batch.add_set("verdicts", key, data=())
    batch.add_set("map", key, nftables.TIMEOUT | nftables.DYNAMIC, data=(nftables.ADDRESS, nftables.PORT))
    batch.add_set("ranges", key, nftables.INTERVAL)
    plain, verdicts, mapped, ranges = (one.fields for one in decoder.messages(batch.encoded()))
    assert [number(one[5]) for one in (plain, verdicts, mapped, ranges)] == [12] * 4
    assert number(plain[4]) == (7 << 6 | 12) << 6 | 13
    assert [number(one[3]) for one in (plain, verdicts, mapped, ranges)] == [0, 8, 0x38, 0x84]
    assert (number(verdicts[6]), number(verdicts[7])) == (0xFFFFFF00, 0)
    assert (number(mapped[6]), number(mapped[7])) == (7 << 6 | 13, 8)
    sizes = [number(decoder.fields(one)[1]) for _, one in decoder.attributes(decoder.fields(ranges[9])[2])]
    assert sizes == [4, 1, 2]
    assert len({number(one[10]) for one in (plain, verdicts, mapped, ranges)}) == 4, "each has a number in the batch"


@given(st.sets(st.integers(0, 2**32 - 1), max_size=4000), st.booleans())
def test_any_number_of_elements_comes_whole(keys: set[int], last: bool) -> None:
    kernel = Kernel()
    batch = Batch("t")
    batch.add_table()
    batch.add_set("s", (nftables.ADDRESS,), data=(nftables.ADDRESS,))
    made = [
        Element(struct.pack(">I", key), struct.pack(">I", key ^ 7), last=struct.pack(">I", key) if last else b"")
        for key in keys
    ]
    batch.add_elements("s", made)
    kernel.take(batch.encoded())
    held = kernel.tables["t"]["sets"]["s"]["elements"]
    assert held == {one.key + one.last: one.data for one in made}
    batch = Batch("t")
    batch.delete_elements("s", made)
    kernel.take(batch.encoded())
    assert not held


def test_attributes_are_read_back_and_torn_ones_end_the_reading() -> None:
    data = nftables.attribute(1, b"abc") + nftables.attribute(2, b"")
    assert attributes(data) == {1: b"abc", 2: b""}
    assert attributes(data + b"\0\0\0\0") == {1: b"abc", 2: b""}
    assert attributes(data[:6]) == {1: b"ab"}
