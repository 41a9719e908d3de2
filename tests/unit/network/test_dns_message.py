"""DNS on the wire, judged by dnspython."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.network.dns import message
from sampan.parts.network.dns.message import Authority, MessageError, Record, Reply, Target


def _query(name: str, kind: str = "A", **options: object) -> message.Query:
    return message.parse_query(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def test_a_query_is_read_as_it_was_asked() -> None:
    query = _query("Web.Default.svc.cluster.local.", "AAAA", use_edns=0, payload=1400)
    assert (query.name, query.type, query.cls) == ("web.default.svc.cluster.local", message.AAAA, 1)
    assert (query.size, query.version, query.recursion) == (1400, 0, True)
    assert query.question.startswith(b"\x03Web\x07Default")


def test_a_client_without_edns_says_nothing_of_its_buffer() -> None:
    assert _query("a.example.").size is None


def test_every_kind_of_record_reads_back() -> None:
    query = _query("_http._tcp.web.default.svc.cluster.local.", "SRV", use_edns=0)
    authority = Authority("ns.dns.cluster.local", "hostmaster.cluster.local", 1, 7200, 1800, 86400, 5)
    reply = Reply(
        message.NO_ERROR,
        [
            Record(query.name, message.SRV, 5, Target(0, 100, 80, "web.default.svc.cluster.local")),
            Record("x.cluster.local", message.CNAME, 5, "y.example.com"),
            Record("1.0.0.10.in-addr.arpa", message.PTR, 5, "web.default.svc.cluster.local"),
            Record("dns-version.cluster.local", message.TXT, 5, b"\x051.1.0"),
        ],
        [Record("cluster.local", message.SOA, 5, authority)],
        [
            Record("web.default.svc.cluster.local", message.A, 5, bytes([10, 96, 0, 20])),
            Record("web.default.svc.cluster.local", message.AAAA, 5, bytes(15) + b"\1"),
        ],
    )
    read = dns.message.from_wire(message.write_reply(query, reply, 1232))
    assert [str(one) for one in read.answer] == [
        "_http._tcp.web.default.svc.cluster.local. 5 IN SRV 0 100 80 web.default.svc.cluster.local.",
        "x.cluster.local. 5 IN CNAME y.example.com.",
        "1.0.0.10.in-addr.arpa. 5 IN PTR web.default.svc.cluster.local.",
        'dns-version.cluster.local. 5 IN TXT "1.1.0"',
    ]
    assert str(read.authority[0]).endswith("SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5")
    assert [str(one[0]) for one in read.additional] == ["10.96.0.20", "::1"]
    assert read.flags & dns.flags.AA
    assert read.flags & dns.flags.RA
    assert read.edns == 0


def test_the_letters_case_of_the_question_comes_back() -> None:
    query = _query("WeB.dEfAuLt.svc.cluster.local.")
    reply = Reply(message.NO_ERROR, [Record(query.name, message.A, 5, b"\x0a\0\0\1")])
    wire = message.write_reply(query, reply, 512)
    assert b"\x03WeB\x07dEfAuLt" in wire
    assert str(dns.message.from_wire(wire).answer[0].name) == "WeB.dEfAuLt.svc.cluster.local."


def test_what_does_not_fit_is_cut_at_a_record_and_marked() -> None:
    query = _query("db.default.svc.cluster.local.")
    records = [Record(query.name, message.A, 5, bytes([10, 244, 0, number])) for number in range(100)]
    wire = message.write_reply(query, Reply(message.NO_ERROR, records), 512)
    read = dns.message.from_wire(wire)
    assert read.flags & dns.flags.TC
    assert len(wire) <= 512
    assert len(read.answer[0]) == (512 - 12 - len(query.question)) // 16


def test_additional_records_are_left_out_without_a_mark() -> None:
    query = _query("db.default.svc.cluster.local.", "SRV")
    reply = Reply(
        message.NO_ERROR,
        [Record(query.name, message.SRV, 5, Target(0, 100, 80, "a.example"))],
        (),
        [Record(f"host-{number}.example", message.A, 5, bytes(4)) for number in range(60)],
    )
    read = dns.message.from_wire(message.write_reply(query, reply, 512))
    assert not read.flags & dns.flags.TC
    assert len(read.answer) == 1


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (dns.message.make_response(dns.message.make_query("a.", "A")).to_wire(), None),  # a reply
        (b"\0\1\1\0\0\2\0\0\0\0\0\0" + b"\1a\0\0\1\0\1" * 2, 1),  # two questions
        (b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c\0\1\0\1", 1),  # a pointer to itself
        (b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x3fabc", 1),
        (b"\0\1\1\0\0\1\0\0\0\0\0\0" + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1", 1),
    ],
    ids=["empty", "short", "reply", "two questions", "pointer to itself", "cut label", "long name"],
)
def test_what_is_no_query_is_refused(wire: bytes, code: int | None) -> None:
    with pytest.raises(MessageError) as caught:
        message.parse_query(wire)
    assert caught.value.code == code


def _ends_well(wire: bytes) -> None:
    try:
        query = message.parse_query(wire)
    except MessageError:
        return
    message.write_reply(query, Reply(message.NO_SUCH_NAME), 512)


@given(st.binary(max_size=80))
def test_no_bytes_break_the_parser(wire: bytes) -> None:
    _ends_well(wire)


@given(st.data())
def test_no_damaged_query_breaks_the_parser(data: st.DataObject) -> None:
    wire = bytearray(dns.message.make_query("a.b.c.", "SRV", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    _ends_well(bytes(wire[: data.draw(st.integers(0, len(wire)))]))


@given(st.binary(max_size=80))
def test_no_bytes_break_the_reader_of_answers(wire: bytes) -> None:
    try:
        message.parse_reply(wire)
    except MessageError:
        return


def test_our_own_question_and_its_answer() -> None:
    asked = dns.message.from_wire(message.write_query(7, "www.example.com", message.A))
    assert (asked.id, str(asked.question[0].name), asked.edns) == (7, "www.example.com.", 0)
    answer = dns.message.make_response(asked)
    answer.answer.append(dns.rrset.from_text("www.example.com.", 60, "IN", "CNAME", "example.com."))
    answer.answer.append(dns.rrset.from_text("example.com.", 60, "IN", "A", "192.0.2.1"))
    assert message.parse_reply(answer.to_wire()) == (
        0,
        [
            Record("www.example.com", message.CNAME, 60, "example.com"),
            Record("example.com", message.A, 60, bytes([192, 0, 2, 1])),
        ],
    )
