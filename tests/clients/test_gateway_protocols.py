"""What is not plain request and response: HTTP/1.0, HTTP/2, gRPC, WebSocket, events, uploads, TCP and UDP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import httpx
import psutil
import pytest
from websockets.sync.client import connect

from sampan.kube.objects import Object
from tests.clients.gateway_harness import Bench, bench, endpoint_slice, http_listener, reasons, route, to


@pytest.fixture(scope="module")
def gw() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(scope="module")
def web(gw: Bench) -> str:
    """The address of a Gateway with everything going to one echo backend."""
    ns = gw.namespace("protocols")
    gw.service(ns, "v1")
    gw.service(ns, "ws", app_protocol="kubernetes.io/ws")
    address = gw.gateway(ns, "gw")
    rules: list[Object] = [
        {"backendRefs": to("v1")},
        {"matches": [{"path": {"value": "/ws"}}], "backendRefs": to("ws")},
    ]
    gw.route(route(ns, "r", "gw", rules))
    return address


def talk(address: str, text: str, port: int = 80) -> bytes:
    """What comes back for these bytes until the server closes."""
    with socket.create_connection((address, port), timeout=10) as connection:
        connection.sendall(text.encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_http_1_0(gw: Bench, web: str) -> None:
    answer = talk(web, "GET /old HTTP/1.0\r\nHost: example.com\r\n\r\n")
    assert b" 200 OK" in answer.split(b"\r\n")[0]
    assert b'"/old"' in answer


def test_requests_that_are_no_http_get_400_and_hurt_nobody(gw: Bench, web: str) -> None:
    for text in (
        "GET / HTTP/1.1\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    ):
        assert b" 400 " in talk(web, text).split(b"\r\n")[0]
    assert gw.ask(web).status == 200


def test_http_2_with_prior_knowledge(gw: Bench, web: str) -> None:
    with httpx.Client(http1=False, http2=True) as client:
        answers = [client.get(f"http://{web}/{number}", headers={"Host": "h2.com"}) for number in range(3)]
    assert [one.http_version for one in answers] == ["HTTP/2"] * 3
    assert [one.json()["path"] for one in answers] == ["/0", "/1", "/2"]
    assert answers[0].json()["host"] == "h2.com"


def test_websockets_on_any_backend(gw: Bench, web: str) -> None:
    for path in ("/any", "/ws"):
        with connect(f"ws://{web}{path}") as client:
            for text in ("one", "two"):
                client.send(text)
                assert client.recv(timeout=10) == f"echo {text}"


def test_events_arrive_as_they_are_sent(gw: Bench, web: str) -> None:
    arrivals = []
    with httpx.stream("GET", f"http://{web}/events") as response:
        for line in response.iter_lines():
            if line:
                arrivals.append((line, time.monotonic()))
    assert [line for line, _ in arrivals] == ["data: 0", "data: 1", "data: 2"]
    assert arrivals[-1][1] - arrivals[0][1] > 0.05, "they came in one piece"


def test_a_large_upload_streams_through(gw: Bench, web: str) -> None:
    size, piece = 32 << 20, b"x" * 65536

    def pieces() -> Iterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    answer = httpx.post(f"http://{web}/upload", content=pieces(), timeout=30)
    assert answer.json()["length"] == size


def test_forwarding_headers_are_ours_to_say(gw: Bench, web: str) -> None:
    seen = gw.ask(web, headers={"X-Forwarded-Proto": "https", "X-Envoy-Internal": "true"}).seen["headers"]
    assert seen["x-forwarded-for"]
    assert seen["x-forwarded-proto"] == "http"
    assert "x-request-id" in seen
    assert "x-envoy-expected-rq-timeout-ms" not in seen


def test_clients_with_affinity_stay_with_one_backend(gw: Bench) -> None:
    ns = gw.namespace("affinity")
    address = gw.gateway(ns, "gw")
    ports = [gw.backends.port(f"sticky-{number}") for number in range(3)]
    gw.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "sticky", "namespace": ns},
            "spec": {"sessionAffinity": "ClientIP", "ports": [{"name": "main", "port": 8080}]},
        },
        *(endpoint_slice(ns, "sticky", [("127.0.0.1", port)], suffix=str(number)) for number, port in enumerate(ports)),
    )
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("sticky")}]))
    assert len({gw.ask(address).backend for _ in range(20)}) == 1


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers any unary method with its own name and any stream with what it receives."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = details.method
        if method.endswith("/Stream"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: (one for one in requests))
        return grpc.unary_unary_rpc_method_handler(lambda request, _: method.encode() + b":" + request)


def test_grpc_routes(gw: Bench) -> None:
    ns = gw.namespace("grpc")
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        gw.service(ns, "grpc", port=9000, target=port)
        address = gw.gateway(ns, "gw")
        rules = [
            {"matches": [{"method": {"service": "shop.Cart"}}], "backendRefs": to("grpc", port=9000)},
            {"matches": [{"method": {"service": "shop.Bill", "method": "Pay"}}], "backendRefs": to("grpc", port=9000)},
            {
                "matches": [{"method": {"service": "shop.Any"}, "headers": [{"name": "gate", "value": "open"}]}],
                "backendRefs": to("grpc", port=9000),
            },
        ]
        made = {**route(ns, "g", "gw", rules), "kind": "GRPCRoute"}
        assert reasons(gw.route(made)["parents"][0])["Accepted"] == "True Accepted"
        with grpc.insecure_channel(f"{address}:80") as channel:
            for method, metadata, code in (
                ("/shop.Cart/Add", (), None),
                ("/shop.Bill/Pay", (), None),
                ("/shop.Bill/Refund", (), grpc.StatusCode.UNIMPLEMENTED),
                ("/shop.CartX/Add", (), grpc.StatusCode.UNIMPLEMENTED),
                ("/shop.Any/Go", (("gate", "open"),), None),
                ("/shop.Any/Go", (), grpc.StatusCode.UNIMPLEMENTED),
            ):
                call = channel.unary_unary(method, None, None)
                if code is None:
                    assert call(b"x", metadata=metadata, timeout=10) == method.encode() + b":x"
                else:
                    with pytest.raises(grpc.RpcError) as failed:
                        call(b"x", metadata=metadata, timeout=10)
                    assert failed.value.code() == code, method
            stream = channel.stream_stream("/shop.Cart/Stream", None, None)
            assert list(stream(iter([b"1", b"2", b"3"]), timeout=10)) == [b"1", b"2", b"3"]
    finally:
        server.stop(None)


def test_tcp_and_udp_routes(gw: Bench) -> None:
    ns = gw.namespace("streams")
    gw.service(ns, "tcp")
    with udp_echo() as port:
        gw.service(ns, "udp", port=5300, target=port, protocol="UDP")
        address = gw.gateway(
            ns,
            "gw",
            {"name": "tcp", "port": 7777, "protocol": "TCP"},
            {"name": "udp", "port": 7777, "protocol": "UDP"},
            http_listener(),
        )
        for kind, backend, number in (("TCPRoute", "tcp", 8080), ("UDPRoute", "udp", 5300)):
            made = route(ns, backend, "gw", [{"backendRefs": to(backend, port=number)}])
            made["spec"]["parentRefs"][0]["sectionName"] = backend
            status = gw.route({**made, "kind": kind})
            assert reasons(status["parents"][0]) == {"Accepted": "True Accepted", "ResolvedRefs": "True ResolvedRefs"}
        assert gw.ask(address, port=7777).backend == "tcp"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"ping", (address, 7777))
            assert client.recv(100) == b"ping"


@contextlib.contextmanager
def udp_echo() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, peer = server.recvfrom(1000)
                if data == b"stop":
                    return
                server.sendto(data, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = server.getsockname()[1]
        yield port
        server.sendto(b"stop", ("127.0.0.1", port))
        thread.join()


def test_a_request_is_tried_again_only_where_no_backend_has_begun(gw: Bench) -> None:
    ns = gw.namespace("retries")
    address = gw.gateway(ns, "gw")
    hits: list[str] = []

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hits.append((await reader.readline()).decode())
        writer.transport.abort()

    async def listen() -> tuple[asyncio.Server, int]:
        server = await asyncio.start_server(rude, "127.0.0.1", 0)
        return server, int(server.sockets[0].getsockname()[1])

    server, port = gw.backends.run(listen())
    try:
        gw.service(ns, "rude", target=port)
        # one endpoint refuses connections, the other works: nobody notices
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            gw.service(ns, "half")
            gw.apply(endpoint_slice(ns, "half", [("127.0.0.1", closed.getsockname()[1])], suffix="dead"))
            rules: list[Object] = [
                {"matches": [{"path": {"value": "/rude"}}], "backendRefs": to("rude")},
                {"matches": [{"path": {"value": "/half"}}], "backendRefs": to("half")},
            ]
            gw.route(route(ns, "r", "gw", rules))
            assert {gw.ask(address, path="/half").status for _ in range(20)} == {200}
        assert gw.ask(address, path="/rude", method="POST", body=b"charge me").status == 503
        assert len(hits) == 1, "a request that a backend had read was sent twice"
    finally:
        gw.backends.run(stop(server))


async def stop(server: asyncio.Server) -> None:
    server.close()


def test_a_terminating_endpoint_serves_while_it_is_the_last(gw: Bench) -> None:
    ns = gw.namespace("terminating")
    address = gw.gateway(ns, "gw")
    gw.service(ns, "v1")
    gw.route(route(ns, "r", "gw", [{"backendRefs": to("v1")}]))
    assert gw.ask(address).backend == "v1"
    slice_ = endpoint_slice(ns, "v1", [("127.0.0.1", gw.backends.port("v1"))])
    slice_["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    gw.apply(slice_)
    other = endpoint_slice(ns, "v1", [("127.0.0.1", gw.backends.port("v2"))], suffix="new")
    assert gw.ask(address).backend == "v1"
    gw.apply(other)
    gw.until(lambda: gw.ask(address).backend == "v2")
    assert {gw.ask(address).backend for _ in range(5)} == {"v2"}


def test_metrics_have_envoys_names_and_the_admin_interface_stays_closed(gw: Bench, web: str) -> None:
    gw.ask(web)
    host, _, port = gw.platform.address("gateway.metrics").partition(":")
    answer = gw.ask(host, path="/metrics", port=int(port))
    assert answer.status == 200
    assert b"envoy_http_downstream_rq_total" in answer.body
    assert b'envoy_cluster_upstream_rq_xx{envoy_response_code_class="2"' in answer.body
    for path in ("/quitquitquit", "/config_dump", "/stats"):
        assert gw.ask(host, path=path, port=int(port)).status == 404


def test_requests_are_in_the_platforms_log(gw: Bench, web: str) -> None:
    gw.ask(web, "logged.com", "/seen?a=b")

    def look() -> dict[str, Any] | None:
        lines = (gw.platform.data_dir / "logs" / "gateway.jsonl").read_text().splitlines()
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return next((one for one in found if one["host"] == "logged.com"), None)

    seen = gw.until(look)
    assert (seen["method"], seen["path"], seen["status"]) == ("GET", "/seen?a=b", 200)
    assert (seen["route"], seen["cluster"]) == ("httproute/protocols/r", "protocols/v1/8080")


def test_a_full_log_is_set_aside_and_no_line_is_lost(gw: Bench, web: str) -> None:
    part = gw.platform.kernel._runs["traffic"].part  # type: ignore[attr-defined]
    folder = gw.platform.data_dir / "logs"

    def logged() -> list[str]:
        found = []
        for name in ("gateway.1.jsonl", "gateway.jsonl"):
            if (folder / name).exists():
                found += [json.loads(line) for line in (folder / name).read_text().splitlines()]
        return [one["path"] for one in found if one["host"] == "rotated.com"]

    wanted = [f"/{number}" for number in range(20)]
    for path in wanted:
        if path == "/10":
            gw.until(lambda: len(logged()) == 10)
            part._access_log._limit = 0
            gw.platform.run(part._access_log.look())
            part._access_log._limit = 1 << 30
            gw.until(lambda: (folder / "gateway.jsonl").exists())
        gw.ask(web, "rotated.com", path)
    gw.until(lambda: logged() == wanted)
    assert (folder / "gateway.1.jsonl").exists()


def test_the_status_tells_of_envoy_and_where_ingresses_are(gw: Bench, web: str) -> None:
    backend = {"service": {"name": "v1", "port": {"number": 8080}}}
    spec = {
        "rules": [{"host": "shown.com", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    }
    metadata = {"name": "shown", "namespace": "protocols"}
    gw.apply({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec})

    async def facts() -> dict[str, Any]:
        status = await gw.platform.kernel.status()
        return next(part.facts for part in status.parts if part.name == "traffic")

    _, _, port = gw.platform.address("gateway").rpartition(":")
    told = gw.until(lambda: "urls" in (found := gw.platform.run(facts())) and found)
    assert told["urls"] == {"protocols/shown": f"http://shown.com:{port}"}
    assert psutil.Process(told["envoy"]).is_running()
    assert told["published"] > 0
    assert not {"connected", "envoy_restarts"} & told.keys()
    gw.delete("Ingress", "shown", "protocols")
