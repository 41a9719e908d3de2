"""Protobuf bodies: what kubectl 1.37 really sent, every table by an encoder of our own, and garbage.

``kubectl_bodies.json`` holds request bodies captured from kubectl 1.37.1 together with the object that the same command prints
with ``--dry-run=client -o json`` (null for commands that print none).
"""

import base64
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampan.kube.objects import Object
from sampan.kube.status import ApiError
from sampan.kube.types import protobuf

CAPTURED = json.loads((Path(__file__).parent / "kubectl_bodies.json").read_text())
BODIES = {entry["command"].split(" --")[0]: base64.b64decode(entry["body"]) for entry in CAPTURED}


def without_empty(value: Any) -> Any:
    """An object without nulls, empty maps, empty lists and empty strings, which clients print but do not send."""
    if isinstance(value, dict):
        kept = {key: without_empty(child) for key, child in value.items()}
        return {key: child for key, child in kept.items() if child not in (None, {}, [], "")}
    if isinstance(value, list):
        return [without_empty(child) for child in value]
    return value


@pytest.mark.parametrize("entry", [e for e in CAPTURED if e["object"]], ids=lambda e: e["command"].split(" --")[0])
def test_kubectls_bodies_decode_to_what_kubectl_prints(entry: dict[str, Any]) -> None:
    decoded, printed = without_empty(protobuf.decode(base64.b64decode(entry["body"]))), without_empty(entry["object"])
    # Client-go's typed requests fill these in; a dry run prints them or does not.
    for obj in (decoded, printed):
        obj["metadata"].pop("namespace", None)
        for subject in obj.get("subjects", ()):
            subject.pop("apiGroup", None)
    assert decoded == printed


def test_reviews_and_tokens_decode() -> None:
    token = protobuf.decode(BODIES["kubectl create token robot"])
    assert token["kind"] == "TokenRequest"
    assert token["apiVersion"] == "authentication.k8s.io/v1"
    assert token["spec"] == {"audiences": ["x"], "expirationSeconds": 3600}
    review = protobuf.decode(BODIES["kubectl auth can-i create pods"])
    attributes = review["spec"]["resourceAttributes"]
    assert (attributes["verb"], attributes["resource"], attributes["subresource"]) == ("create", "pods", "log")
    assert protobuf.decode(BODIES["kubectl auth whoami"])["kind"] == "SelfSubjectReview"
    scaler = protobuf.decode(BODIES["kubectl autoscale deployment web"])
    assert scaler["spec"]["minReplicas"] == 1
    assert scaler["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}


# --- an encoder for tests: values of every field type to the wire ---


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def chunk(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return b"k8s\0" + chunk(1, chunk(1, api_version.encode()) + chunk(2, kind.encode())) + chunk(2, raw)


def sample(source: st.DataObject, message: str, depth: int) -> tuple[bytes, Object]:
    """A message's wire bytes and the JSON it should give."""
    wire = b""
    expected: Object = {}
    for number, (label, kind, keep, shape, nested) in protobuf._fields(message).items():
        if not source.draw(st.booleans()) or (nested and depth > 2) or nested.startswith("apiextensions.v1.JSON"):
            continue

        def one(kind: str = kind, nested: str = nested) -> tuple[Any, Any]:
            if nested:
                return sample(source, nested, depth + 1)
            return SCALARS[kind](source)

        if shape == "":
            data, value = one()
            if nested and not label:
                wire, expected = wire + chunk(number, data), expected | value
                continue
            wire += wired(number, kind, data)
            # a port or percentage is told even where it is 0, as upstream's JSON does
            if value is not None and (keep or value or kind == "IS" or (not nested and value not in ("", 0, False))):
                expected[label] = value
        elif shape == "[]":
            pairs = [one() for _ in range(source.draw(st.integers(1, 2)))]
            wire += b"".join(wired(number, kind, data) for data, _ in pairs)
            expected[label] = [value for _, value in pairs]
        elif shape == "M:":
            data, value = one()
            wire += chunk(number, chunk(1, b"key") + wired(2, kind, data))
            expected[label] = {"key": "" if value is None else value}
        elif shape == "M:W[]":
            wire += chunk(number, chunk(1, b"key") + chunk(2, chunk(1, b"a") + chunk(1, b"b")))
            expected[label] = {"key": ["a", "b"]}
        else:
            wire += chunk(number, chunk(1, b"a"))
            expected[label] = ["a"]
    return wire, expected


def wired(number: int, kind: str, data: int | bytes) -> bytes:
    if isinstance(data, int):
        return integer(number, data)
    if kind == "d":
        return varint(number << 3 | 1) + data
    return chunk(number, data)


def scalar_string(source: st.DataObject) -> tuple[bytes, str]:
    text = source.draw(st.text(max_size=8))
    return text.encode(), text


def scalar_integer(source: st.DataObject) -> tuple[int, int]:
    value = source.draw(st.integers(-(2**63), 2**63 - 1))
    return value, value


def scalar_int_or_string(source: st.DataObject) -> tuple[bytes, int | str]:
    if source.draw(st.booleans()):
        value = source.draw(st.integers(-(2**31), 2**31 - 1))
        return integer(1, 0) + integer(2, value) + chunk(3, b""), value
    return integer(1, 1) + integer(2, 0) + chunk(3, b"50%"), "50%"


def scalar_bytes(source: st.DataObject) -> tuple[bytes, str]:
    data = source.draw(st.binary(max_size=8))
    return data, base64.b64encode(data).decode()


def scalar_time(source: st.DataObject) -> tuple[bytes, str]:
    seconds = source.draw(st.integers(0, 4102444800))
    return integer(1, seconds) + integer(2, 0), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def scalar_micro_time(source: st.DataObject) -> tuple[bytes, str]:
    wire, text = scalar_time(source)
    return wire, text[:-1] + ".000000Z"


SCALARS: dict[str, Callable[[st.DataObject], tuple[int | bytes, Any]]] = {
    "s": scalar_string,
    "i": scalar_integer,
    "b": lambda source: (value := source.draw(st.booleans()), value),
    "d": lambda source: (struct.pack("<d", 1.5), 1.5),
    "B": scalar_bytes,
    "Q": lambda source: (chunk(1, b"10m"), "10m"),
    "IS": scalar_int_or_string,
    "T": scalar_time,
    "MT": scalar_micro_time,
    "RX": lambda source: (chunk(1, b'{"a":1}'), {"a": 1}),
    "F1": lambda source: (chunk(1, b'{"f:a":{}}'), {"f:a": {}}),
}


@given(
    st.data(),
    st.sampled_from(
        [
            ("v1", "Pod", "core.v1.Pod"),
            ("v1", "Service", "core.v1.Service"),
            ("v1", "PersistentVolume", "core.v1.PersistentVolume"),
            ("v1", "Secret", "core.v1.Secret"),
            ("apps/v1", "StatefulSet", "apps.v1.StatefulSet"),
            ("autoscaling/v2", "HorizontalPodAutoscaler", "autoscaling.v2.HorizontalPodAutoscaler"),
            ("networking.k8s.io/v1", "Ingress", "networking.v1.Ingress"),
            ("authorization.k8s.io/v1", "SubjectAccessReview", "authorization.v1.SubjectAccessReview"),
            ("coordination.k8s.io/v1", "Lease", "coordination.v1.Lease"),
            (
                "admissionregistration.k8s.io/v1",
                "ValidatingWebhookConfiguration",
                "admissionregistration.v1.ValidatingWebhookConfiguration",
            ),
        ]
    ),
)
@settings(max_examples=60, deadline=None)
def test_every_field_of_the_table_decodes(data: st.DataObject, kind: tuple[str, str, str]) -> None:
    api_version, name, message = kind
    wire, expected = sample(data, message, 0)
    decoded = protobuf.decode(envelope(api_version, name, wire))
    assert decoded == {"apiVersion": api_version, "kind": name} | expected


def test_crd_schemas_decode_with_their_unions() -> None:
    def prop(name: bytes, schema: bytes) -> bytes:
        return chunk(29, chunk(1, name) + chunk(2, schema))

    item = chunk(5, b"string") + chunk(8, chunk(1, b'"x"')) + chunk(20, chunk(1, b'"x"')) + chunk(20, chunk(1, b"1"))
    schema = (
        chunk(5, b"object")
        + prop(b"list", chunk(5, b"array") + chunk(24, chunk(1, item)))
        + prop(b"open", chunk(5, b"object") + chunk(30, integer(1, 1)))
        + prop(b"map", chunk(5, b"object") + chunk(30, integer(1, 0) + chunk(2, chunk(5, b"integer"))))
        + prop(b"least", chunk(5, b"number") + varint(11 << 3 | 1) + struct.pack("<d", 0.0) + integer(38, 1))
    )
    version = chunk(1, b"v1") + integer(2, 1) + integer(3, 1) + chunk(4, chunk(1, schema))
    body = chunk(1, chunk(1, b"a.b")) + chunk(2, chunk(1, b"b") + chunk(7, version))
    crd = protobuf.decode(envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", body))
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert properties == {
        "list": {"type": "array", "items": {"type": "string", "default": "x", "enum": ["x", 1]}},
        "open": {"type": "object", "additionalProperties": True},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "least": {"type": "number", "minimum": 0, "x-kubernetes-preserve-unknown-fields": True},
    }


def test_delete_options_are_meta_kinds_whatever_group_they_name() -> None:
    body = envelope("apps/v1", "DeleteOptions", integer(1, 0) + chunk(4, b"Foreground"))
    assert protobuf.decode(body) == {
        "apiVersion": "apps/v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "propagationPolicy": "Foreground",
    }


def test_fields_of_newer_clients_are_skipped() -> None:
    unknown = (
        integer(1000, 7) + chunk(1001, b"x") + varint(1002 << 3 | 5) + b"1234" + varint(1003 << 3 | 1) + b"12345678"
    )
    assert protobuf.decode(envelope("v1", "Namespace", unknown)) == {"apiVersion": "v1", "kind": "Namespace"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected prefix"),
        (b"{}", "expected prefix"),
        (b"k8s\0", "Object 'Kind' is missing"),
        (envelope("v1", "Nothing", b""), 'no kind "Nothing" is registered'),
        (envelope("v9", "Pod", b""), 'no kind "Pod" is registered for version "v9"'),
        (envelope("v1", "Pod", b"\x0a\x05ab"), "unexpected EOF"),
        (envelope("v1", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "integer overflow"),
        (envelope("v1", "Pod", b"\x08\x01"), "wrong wireType = 0 for field metadata"),
        (envelope("v1", "Pod", b"\x00"), "illegal tag"),
        (envelope("apps/v1", "ControllerRevision", chunk(2, chunk(1, b"{"))), "embedded JSON"),
    ],
)  # fmt: skip
def test_malformed_bodies_are_bad_requests(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.decode(body)
    assert caught.value.code == 400
    assert message in caught.value.message


def test_nesting_is_bounded() -> None:
    schema = chunk(5, b"object")
    for _ in range(200):
        schema = chunk(28, schema)
    body = envelope(
        "apiextensions.k8s.io/v1", "CustomResourceDefinition", chunk(2, chunk(7, chunk(4, chunk(1, schema))))
    )
    with pytest.raises(ApiError, match="nested deeper"):
        protobuf.decode(body)


@given(st.sampled_from(sorted(BODIES)), st.integers(0, 250), st.binary(min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_damaged_bodies_decode_or_are_bad_requests(name: str, at: int, damage: bytes) -> None:
    body = bytearray(BODIES[name])
    at %= len(body)
    body[at : at + len(damage)] = damage
    try:
        obj = protobuf.decode(bytes(body))
    except ApiError as error:
        assert error.code == 400
    else:
        json.dumps(obj, allow_nan=False)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_decode_or_are_bad_requests(raw: bytes) -> None:
    try:
        json.dumps(protobuf.decode(envelope("apps/v1", "Deployment", raw)), allow_nan=False)
    except ApiError as error:
        assert error.code == 400
