"""Requests that are malformed, too large, too slow or plainly hostile: each gets Kubernetes' own answer, and nothing is harmed."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import ssl
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from sampan.kernel.certificates import Authority
from sampan.testing import Platform

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture(scope="module")
def kube() -> Iterator[Platform]:
    with Platform(only=["kubernetes"]) as platform:
        yield platform


@pytest.fixture
async def http(kube: Platform) -> AsyncIterator[aiohttp.ClientSession]:
    """A session to the API server as its administrator."""
    async with aiohttp.ClientSession(
        _url(kube), connector=aiohttp.TCPConnector(ssl=_context(kube), limit=0)
    ) as session:
        yield session


def _url(kube: Platform) -> str:
    return str(yaml.safe_load(kube.kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def _context(kube: Platform) -> ssl.SSLContext:
    config = yaml.safe_load(kube.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    pem = kube.data_dir / "faults.pem"
    pem.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    context.load_cert_chain(pem)
    return context


async def status(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(await answer.read())
    assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", answer.status), body
    return body


def with_deep_nesting(depth: int) -> bytes:
    return b'{"metadata":{"name":"deep"},"data":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


def yaml_bomb() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines).encode()


BODIES: list[tuple[str, bytes, str, int, str]] = [
    ("truncated JSON", b'{"metadata":{"name"', "application/json", 400, "unrecognized"),
    ("nothing", b"", "application/json", 400, "empty"),
    ("not an object", b"[1,2]", "application/json", 400, "expected a JSON object"),
    ("not UTF-8", b'{"metadata":{"name":"\xff\xfe"}}', "application/json", 400, ""),
    ("deep nesting", with_deep_nesting(100_000), "application/json", 400, ""),
    ("broken YAML", b"a: [1\nb: }", "application/yaml", 400, "error converting YAML to JSON"),
    ("a YAML bomb", yaml_bomb(), "application/yaml", 400, "excessive aliasing"),
    ("YAML that contains itself", b"&a [*a]", "application/yaml", 400, "excessive aliasing"),
    ("YAML that runs code", b"!!python/object/apply:os.system ['true']", "application/yaml", 400, "YAML"),
    ("no protobuf envelope", b"hello", "application/vnd.kubernetes.protobuf", 400, ""),
    ("a cut protobuf", b"k8s\0\x0a\x0d\x0a\x02v1\x12\x09ConfigMap\x12\xff", "application/vnd.kubernetes.protobuf", 400, ""),
    ("another media type", b"<a/>", "application/xml", 415, "accepted media types include"),
    ("a wrong type", b'{"metadata":{"name":"w"},"data":{"a":5}}', "application/json", 400, "cannot unmarshal number"),
    ("metadata that is a list", b'{"metadata":[]}', "application/json", 400, ""),
    ("another kind", b'{"kind":"Secret","metadata":{"name":"w"}}', "application/json", 400, "Secret"),
    ("no name", b'{"metadata":{}}', "application/json", 422, "name or generateName is required"),
    ("a bad name", b'{"metadata":{"name":"A b"}}', "application/json", 422, "Invalid value"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "content_type", "code", "says"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
async def test_bad_bodies_are_refused(
    http: aiohttp.ClientSession, body: bytes, content_type: str, code: int, says: str
) -> None:
    async with http.post(MAPS, data=body, headers={"Content-Type": content_type}) as answer:
        refusal = await status(answer)
    assert answer.status == code, refusal
    assert says in refusal["message"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_over_three_mebibytes_are_refused(http: aiohttp.ClientSession, chunked: bool) -> None:
    body = json.dumps({"metadata": {"name": "big"}, "data": {"a": "x" * (3 * 1024 * 1024)}}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    try:
        async with http.post(MAPS, data=pieces() if chunked else body) as answer:
            refusal = await status(answer)
            assert (answer.status, refusal["reason"]) == (413, "RequestEntityTooLarge")
            assert refusal["message"].startswith("Request entity too large: ")
    except aiohttp.ClientOSError:
        pass  # the server may close while the rest is still being sent
    async with http.get(f"{MAPS}/big") as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v1/nonsense", 404),
        ("GET", "/apis/none.example.com/v1/things", 404),
        ("GET", "/api/v1/namespaces/default/pods/p/nonsense", 404),
        ("GET", "/nonsense", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/%00", 404),
        ("GET", "/api/v1/namespaces/default/configmaps/..%2f..%2fx", 404),
        ("POST", "/api/v1/namespaces/default/configmaps/x", 405),
        ("PUT", "/api/v1/namespaces/default/configmaps", 405),
        ("TRACE", "/api/v1/pods", 405),
        ("GET", "/api/v1/pods?limit=x", 400),
        ("GET", "/api/v1/pods?labelSelector=a%20in%20(", 400),
        ("GET", "/api/v1/pods?fieldSelector=spec.nothing=1", 400),
        ("GET", "/api/v1/pods?continue=xyz", 400),
        ("GET", "/api/v1/pods?watch=1&resourceVersion=abc", 422),
        ("DELETE", "/api/v1/namespaces/default/configmaps/x?gracePeriodSeconds=y", 400),
        ("DELETE", "/api/v1/namespaces/default/configmaps/x?propagationPolicy=Z", 422),
    ],
)
async def test_bad_paths_and_parameters(http: aiohttp.ClientSession, method: str, path: str, code: int) -> None:
    from yarl import URL

    async with http.request(method, URL(_url_of(http) + path, encoded=True)) as answer:
        await answer.read()
    assert answer.status == code


def _url_of(http: aiohttp.ClientSession) -> str:
    assert http._base_url is not None
    return str(http._base_url).rstrip("/")


async def test_patches_cannot_blow_an_object_up(http: aiohttp.ClientSession) -> None:
    async with http.post(MAPS, json={"metadata": {"name": "grow"}, "data": {"a": "x" * 1000}}) as answer:
        assert answer.status == 201
    doubling = [{"op": "copy", "from": "/metadata", "path": f"/metadata/c{n}"} for n in range(64)]
    headers = {"Content-Type": "application/json-patch+json"}
    async with http.patch(f"{MAPS}/grow", data=json.dumps(doubling), headers=headers) as answer:
        assert (answer.status, (await status(answer))["reason"]) == (413, "RequestEntityTooLarge")


async def test_strictness_is_the_clients_choice(http: aiohttp.ClientSession) -> None:
    body = b'{"metadata":{"name":"v"},"data":{"a":"1","a":"2"},"extra":1}'
    headers = {"Content-Type": "application/json"}
    async with http.post(f"{MAPS}?fieldValidation=Strict", data=body, headers=headers) as answer:
        refusal = await status(answer)
    assert "strict decoding error: " in refusal["message"] and "data.a" in refusal["message"]
    async with http.post(f"{MAPS}?fieldValidation=Warn&dryRun=All", data=body, headers=headers) as answer:
        assert answer.status == 201
        warnings = answer.headers.getall("Warning")
    assert '299 - "unknown field \\"extra\\""' in warnings
    assert '299 - "duplicate field \\"data.a\\""' in warnings
    async with http.post(f"{MAPS}?fieldValidation=Ignore&dryRun=All", data=body, headers=headers) as answer:
        assert answer.status == 201 and "Warning" not in answer.headers
        assert "extra" not in await answer.json()


async def test_nobody_without_credentials(kube: Platform) -> None:
    bare = ssl.create_default_context()
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession(_url(kube), connector=aiohttp.TCPConnector(ssl=bare)) as http:
        async with http.get("/api/v1/secrets") as answer:
            refusal = await status(answer)
            assert answer.status == 403
            assert 'User "system:anonymous" cannot list resource "secrets"' in refusal["message"]
        async with http.get("/api/v1/secrets", headers={"Authorization": "Bearer nonsense"}) as answer:
            assert (await status(answer))["reason"] == "Unauthorized"
        async with http.get("/version") as answer:
            assert answer.status == 200


async def test_a_certificate_of_another_authority_is_refused_in_the_handshake(kube: Platform, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    pair = stranger.client_certificate("kubernetes-admin", ["system:masters"])
    context = ssl.create_default_context(cafile=str(kube.data_dir / "pki" / "ca.crt"))
    context.load_cert_chain(pair.certificate, pair.key)
    async with aiohttp.ClientSession(_url(kube), connector=aiohttp.TCPConnector(ssl=context)) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get("/api/v1/secrets")
    config = yaml.safe_load(kube.kubeconfig.read_text())
    for part, file in (("client-certificate-data", pair.certificate), ("client-key-data", pair.key)):
        config["users"][0]["user"][part] = base64.b64encode(file.read_bytes()).decode()
    theirs = tmp_path / "kubeconfig"
    theirs.write_text(json.dumps(config))
    command = [sysconfig.get_path("scripts") + "/kubectl", "--kubeconfig", str(theirs), "get", "--raw", "/version"]
    told = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert (told.returncode, "remote error: tls: unknown certificate authority" in told.stderr) == (1, True), (
        told.stderr
    )


async def test_tls_handshakes_that_never_end_cost_nobody_else_anything(
    kube: Platform, http: aiohttp.ClientSession
) -> None:
    host, port = _url(kube).removeprefix("https://").split(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
    for index, (_, writer) in enumerate(silent):
        if index % 2:
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the first bytes of a handshake
            await writer.drain()
    async with http.get("/readyz") as answer:
        assert await answer.text() == "ok"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")  # no TLS at all
    assert b"200" not in await reader.read()
    for _, one in [*silent, (reader, writer)]:
        one.close()


TWICE = {
    "json": (
        '{"metadata":{"name":"twice","labels":{"a":"1","a":"2"}},"data":{"k":"1","k":"2"}}',
        ['duplicate field "metadata.labels.a"', 'duplicate field "data.k"'],
    ),
    "yaml": (
        "metadata:\n  name: twice\n  labels: {a: '1', a: '2'}\ndata:\n  k: '1'\n  k: '2'\n",
        ['line 3: key "a" already set in map', 'line 6: key "k" already set in map'],
    ),
    "apply": (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twice\n  labels: {a: '1', a: '2'}\ndata:\n  k: '1'\n  k: '2'\n",
        ['line 5: key "a" already set in map', 'line 8: key "k" already set in map'],
    ),
}


@pytest.mark.parametrize("how", ["Strict", "Warn", "Ignore"])
@pytest.mark.parametrize("language", list(TWICE))
async def test_a_field_given_twice_is_told_as_the_client_asks(
    http: aiohttp.ClientSession, how: str, language: str
) -> None:
    body, texts = TWICE[language]
    if language == "apply":
        path, method, kind = f"{MAPS}/twice?fieldManager=me&", "PATCH", "application/apply-patch+yaml"
        strict = f"error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {texts[0]}"
    else:
        path, method, kind = f"{MAPS}?", "POST", f"application/{language}"
        strict = f'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: {texts[0]}'
        if language == "yaml":
            strict = strict.replace("error: ", "error: yaml: unmarshal errors:\n  ")
    async with http.request(
        method, f"{path}dryRun=All&fieldValidation={how}", data=body, headers={"Content-Type": kind}
    ) as answer:
        warnings = answer.headers.getall("Warning", [])
        told = json.loads(await answer.read())
    if how == "Strict":
        assert answer.status == 400
        assert told["message"].startswith(strict) and texts[1] in told["message"]
    else:
        assert (answer.status, told["data"], told["metadata"]["labels"]) == (201, {"k": "2"}, {"a": "2"})
        assert warnings == ([f"299 - {json.dumps(text)}" for text in texts] if how == "Warn" else [])


async def test_a_watcher_that_does_not_read_is_cut_off_and_harms_nobody(
    kube: Platform, http: aiohttp.ClientSession
) -> None:
    before = await _watches(http)
    host, port = _url(kube).removeprefix("https://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=_context(kube), limit=1024)
    writer.write(b"GET /api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0 HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    async with http.post(MAPS, json={"metadata": {"name": "large"}}) as answer:
        assert answer.status == 201
    ended = False
    for index in range(60):
        patch = json.dumps({"data": {"x": f"{index}" * 400_000}})
        headers = {"Content-Type": "application/merge-patch+json"}
        async with http.patch(f"{MAPS}/large", data=patch, headers=headers) as answer:
            assert answer.status == 200
        if await _watches(http) == before:
            ended = True
            break
    assert ended
    writer.close()


async def _watches(http: aiohttp.ClientSession) -> float:
    async with http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line for line in lines if line.startswith("apiserver_longrunning_requests{")).split()[-1])


async def test_random_bytes_never_take_it_down(kube: Platform, http: aiohttp.ClientSession) -> None:
    chance = random.Random(7)
    valid = json.dumps(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "f", "labels": {"a": "b"}}, "data": {"k": "v"}}
    ).encode()
    kinds = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", ""]

    async def one() -> int:
        body = bytearray(valid)
        for _ in range(chance.randrange(1, 12)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        async with http.post(
            f"{MAPS}?dryRun=All", data=bytes(body), headers={"Content-Type": chance.choice(kinds)}
        ) as r:
            await r.read()
            return r.status

    codes = set(await asyncio.gather(*(one() for _ in range(300))))
    assert not {code for code in codes if code >= 500}, codes
    host, port = _url(kube).removeprefix("https://").split(":")
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port), ssl=_context(kube))
        writer.write(chance.randbytes(200) + b"\r\n\r\n")
        await writer.drain()
        writer.close()
    async with http.get("/readyz") as answer:
        assert await answer.text() == "ok"
