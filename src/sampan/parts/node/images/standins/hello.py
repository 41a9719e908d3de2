"""Hello-world servers: Knative's samples, the autoscaling samples, http-echo, echo-server, whoami, hello-app.

The first argument names which one; the rest is the original's command line.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import platform
import socket
import sys

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.parts.node.images.standins.serve import run


def helloworld(language: str) -> None:
    """Knative's hello-world samples: ``$TARGET`` on ``$PORT``."""
    target = os.environ.get("TARGET", "World")
    ends = {"go": "!\n", "python": "!\n", "nodejs": "!", "java": "!\n", "csharp": "!\n"}

    async def hello(_: web.Request) -> web.StreamResponse:
        return web.Response(text=f"Hello {target}{ends.get(language, '!')}")

    port = int(os.environ.get("PORT", "8080"))
    sys.stderr.write(f"helloworld: starting server...\nhelloworld: listening on port {port}\n")
    sys.stderr.flush()
    run(hello, [port])


def autoscale() -> None:
    """Knative's autoscaling sample: ``?sleep=ms&prime=n&bloat=MB`` keep a request busy in three ways."""
    clock = Clock()

    def largest_prime(limit: int) -> int:
        sieve = bytearray([1]) * (limit + 1)
        best = 2
        for number in range(2, limit + 1):
            if sieve[number]:
                best = number
                sieve[number * number :: number] = bytes(len(range(number * number, limit + 1, number)))
        return best

    async def work(request: web.Request) -> web.StreamResponse:
        lines = []
        milliseconds = int(request.query.get("sleep", "0") or 0)
        prime = min(int(request.query.get("prime", "0") or 0), 50_000_000)
        bloat = min(int(request.query.get("bloat", "0") or 0), 2048)
        if bloat:
            block = bytearray(os.urandom(1 << 16)) * (16 * bloat)
            lines.append(f"Allocated {bloat} Mb of memory.")
            del block
        if prime:
            found = await asyncio.to_thread(largest_prime, prime)
            lines.append(f"The largest prime less than {prime} is {found}.")
        if milliseconds:
            began = clock.monotonic()
            await clock.sleep(milliseconds / 1000)
            lines.append(f"Slept for {(clock.monotonic() - began) * 1000:.2f} milliseconds.")
        return web.Response(text="\n".join(lines) + "\n")

    run(work, [int(os.environ.get("PORT", "8080"))])


def busy() -> None:
    """The autoscaling walk-through's server: some arithmetic for every request, then ``OK!``."""

    async def work(_: web.Request) -> web.StreamResponse:
        total = 0.0001
        for number in range(100_000):
            total += math.sqrt(number)
        return web.Response(text="OK!")

    run(work, [80])


def http_echo(arguments: list[str]) -> None:
    """hashicorp/http-echo: one text for every request."""
    parser = argparse.ArgumentParser(prog="http-echo", add_help=False)
    parser.add_argument("-text", "--text", default=os.environ.get("ECHO_TEXT", "hello-world"))
    parser.add_argument("-listen", "--listen", default=":5678")
    parser.add_argument("-status-code", "--status-code", type=int, default=200)
    options, _ = parser.parse_known_args(arguments)

    async def echo(_: web.Request) -> web.StreamResponse:
        headers = {"X-App-Name": "http-echo", "X-App-Version": "1.0.0"}
        return web.Response(text=f"{options.text}\n", status=options.status_code, headers=headers)

    print(f"[INFO] server is listening on {options.listen}", flush=True)  # noqa: T201 - what the original prints
    run(echo, [int(options.listen.rpartition(":")[2])])


def echo_server() -> None:
    """ealen/echo-server: what it received, as JSON."""

    async def echo(request: web.Request) -> web.StreamResponse:
        status = int(request.query.get("echo_code", "200").split("-")[0] or 200)
        told = {
            "host": {"hostname": request.host, "ip": request.remote, "ips": []},
            "http": {"method": request.method, "baseUrl": "", "originalUrl": str(request.rel_url), "protocol": "http"},
            "request": {
                "params": {"0": request.path},
                "query": dict(request.query),
                "cookies": dict(request.cookies),
                "body": (await request.text()) if request.can_read_body else {},
                "headers": {name.lower(): value for name, value in request.headers.items()},
            },
            "environment": dict(os.environ),
        }
        return web.json_response(told, status=status)

    run(echo, [int(os.environ.get("PORT", "80"))])


def whoami(arguments: list[str]) -> None:
    """traefik/whoami, k8s echoserver and their like: the request as plain text."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-port", "--port", type=int, default=int(os.environ.get("WHOAMI_PORT_NUMBER", "80")))
    options, _ = parser.parse_known_args(arguments)

    async def tell(request: web.Request) -> web.StreamResponse:
        lines = [f"Hostname: {socket.gethostname()}", f"RemoteAddr: {request.remote}"]
        lines += [f"{request.method} {request.rel_url} HTTP/1.1", f"Host: {request.host}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() != "host"]
        return web.Response(text="\n".join(lines) + "\n")

    run(tell, [options.port])


def hello_app(version: str) -> None:
    """google-samples/hello-app: a greeting, its version and the host name."""

    async def hello(_: web.Request) -> web.StreamResponse:
        text = f"Hello, world!\nVersion: {version}\nHostname: {socket.gethostname()}\n"
        return web.Response(text=text)

    run(hello, [int(os.environ.get("PORT", "8080"))])


def main() -> None:
    which, *arguments = sys.argv[1:]
    if which == "helloworld":
        helloworld(arguments[0] if arguments else "go")
    elif which == "autoscale":
        autoscale()
    elif which == "busy":
        busy()
    elif which == "http-echo":
        http_echo(arguments)
    elif which == "echo-server":
        echo_server()
    elif which == "whoami":
        whoami(arguments)
    elif which == "hello-app":
        hello_app(arguments[0] if arguments else "1.0.0")
    else:
        raise SystemExit(f"no such server: {which} (on {platform.node()})")


if __name__ == "__main__":
    main()
