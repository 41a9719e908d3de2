"""agnhost: the Kubernetes test suite's Swiss army knife, its commonly used subcommands.

netexec, guestbook, serve-hostname, test-webserver, liveness, porter, pause, connect, entrypoint-tester, logs-generator, dns-suffix,
dns-server-list, etc-hosts, env, help. A subcommand that is not here says so and exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from sampan.kernel.clock import Clock
from sampan.parts.node.images.standins.guestbook import guestbook
from sampan.parts.node.images.standins.serve import run, serve

VERSION = "2.53"


def _parser(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"agnhost {name}", add_help=False, allow_abbrev=False)


class _Udp(asyncio.DatagramProtocol):
    """netexec's UDP side: ``echo <text>``, ``hostname``, ``clientip``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        words = data.decode(errors="replace").strip()
        if words.lower().startswith("echo "):
            self._transport.sendto(words[5:].encode(), address)
        elif words.lower() == "hostname":
            self._transport.sendto(socket.gethostname().encode(), address)
        elif words.lower() == "clientip":
            self._transport.sendto(f"{address[0]}:{address[1]}".encode(), address)
        elif words:
            self._transport.sendto(f"unknown command: {words}".encode(), address)


class NetExec:
    """The HTTP side of ``agnhost netexec``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._healthy = True

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application()
        for path, handler in {
            "/": self._now,
            "/clientip": self._client,
            "/hostname": self._hostname,
            "/hostName": self._hostname,
            "/echo": self._echo,
            "/header": self._header,
            "/healthz": self._health,
            "/readyz": self._health,
            "/shell": self._shell,
            "/exit": self._exit,
            "/redirect": self._redirect,
            "/dial": self._dial,
        }.items():
            application.router.add_route("*", path, handler)
        return application

    async def _now(self, _: web.Request) -> web.Response:
        return web.Response(text=f"NOW: {self._clock.now().isoformat()}")

    async def _client(self, request: web.Request) -> web.Response:
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        return web.Response(text=f"{peer[0]}:{peer[1]}")

    async def _hostname(self, _: web.Request) -> web.Response:
        return web.Response(text=socket.gethostname())

    async def _echo(self, request: web.Request) -> web.Response:
        message = request.query.get("msg", "")
        code = int(request.query.get("code") or 200)
        return web.Response(text=message, status=code)

    async def _header(self, request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get(request.query.get("key", ""), ""))

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._healthy else 412)

    async def _shell(self, request: web.Request) -> web.Response:
        command = request.query.get("shellCommand") or request.query.get("cmd") or ""
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        told = {"output": output.decode(errors="replace")}
        if process.returncode:
            told["error"] = f"exit status {process.returncode}"
        return web.json_response(told)

    async def _exit(self, request: web.Request) -> web.Response:
        code = int(request.query.get("code") or 0)
        await self._clock.sleep(float((request.query.get("wait") or "0").rstrip("s")))
        os._exit(code)

    async def _redirect(self, request: web.Request) -> web.Response:
        return web.Response(
            status=int(request.query.get("code") or 302), headers={"Location": request.query.get("location", "/")}
        )

    async def _dial(self, request: web.Request) -> web.Response:
        """Call another netexec a few times and tell what it answered."""
        query = request.query
        host, port, tries = query.get("host", ""), query.get("port", "8080"), int(query.get("tries") or 1)
        path = query.get("request", "hostname")
        responses: list[str] = []
        errors: list[str] = []
        async with ClientSession(timeout=ClientTimeout(total=10)) as session:
            for _ in range(tries):
                try:
                    async with session.get(f"http://{host}:{port}/{path}") as response:
                        responses.append((await response.text()).strip())
                except (ClientError, OSError, TimeoutError) as error:
                    errors.append(str(error))
        told: dict[str, list[str]] = {"responses": responses}
        if errors:
            told["errors"] = errors
        return web.json_response(told)


def netexec(arguments: list[str]) -> None:
    parser = _parser("netexec")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--udp-port", type=int, default=8081)
    parser.add_argument("--delay-shutdown", type=int, default=0)
    options, _ = parser.parse_known_args(arguments)

    async def both() -> None:
        loop = asyncio.get_running_loop()
        if options.udp_port > 0:
            await loop.create_datagram_endpoint(_Udp, local_addr=("0.0.0.0", options.udp_port))  # noqa: S104
        print(f"Started HTTP server on port {options.http_port}", flush=True)  # noqa: T201 - as the original
        await serve(NetExec(Clock()).application(), [options.http_port])
        await Clock().sleep(options.delay_shutdown)

    asyncio.run(both())


def serve_hostname(arguments: list[str]) -> None:
    parser = _parser("serve-hostname")
    parser.add_argument("--port", type=int, default=9376)
    options, _ = parser.parse_known_args(arguments)

    async def hostname(_: web.Request) -> web.StreamResponse:
        return web.Response(text=socket.gethostname())

    run(hostname, [options.port])


def test_webserver(arguments: list[str]) -> None:
    parser = _parser("test-webserver")
    parser.add_argument("--port", type=int, default=80)
    options, _ = parser.parse_known_args(arguments)

    async def file(request: web.Request) -> web.StreamResponse:
        return _file(Path(request.path))

    run(file, [options.port])


def _file(path: Path) -> web.StreamResponse:
    if path.is_file():
        return web.FileResponse(path)
    if path.is_dir():
        return web.Response(text="\n".join(sorted(entry.name for entry in path.iterdir())))
    return web.Response(status=404, text="404 page not found\n")


def liveness(_: list[str]) -> None:
    """Healthy for ten seconds, then failing: the documentation's probe example."""
    clock = Clock()
    began = clock.monotonic()

    async def health(request: web.Request) -> web.StreamResponse:
        age = clock.monotonic() - began
        if request.path == "/healthz" and age > 10:
            return web.Response(status=500, text=f"error: {age:f}")
        return web.Response(text="ok")

    run(health, [8080])


def porter(_: list[str]) -> None:
    """Serves the text of each ``SERVE_PORT_<n>`` variable on port n."""
    ports = {
        int(name.removeprefix("SERVE_PORT_")): text
        for name, text in os.environ.items()
        if name.startswith("SERVE_PORT_")
    }

    async def text(request: web.Request) -> web.StreamResponse:
        address = request.transport.get_extra_info("sockname") if request.transport else ("", 0)
        return web.Response(text=ports[address[1]])

    run(text, sorted(ports))


def connect(arguments: list[str]) -> None:
    parser = _parser("connect")
    parser.add_argument("target")
    parser.add_argument("--timeout", default="0")
    parser.add_argument("--protocol", default="tcp")
    options, _ = parser.parse_known_args(arguments)
    host, _, port = options.target.rpartition(":")
    limit = float(options.timeout.removesuffix("s") or 0) or None
    try:
        if options.protocol == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(limit)
                client.sendto(b"hostname", (host, int(port)))
                client.recv(1024)
            return
        socket.create_connection((host, int(port)), timeout=limit).close()
    except TimeoutError:
        raise SystemExit("TIMEOUT") from None
    except ConnectionRefusedError:
        raise SystemExit("REFUSED") from None
    except socket.gaierror as error:
        raise SystemExit(f"DNS: {error}") from None
    except OSError as error:
        raise SystemExit(f"OTHER: {error}") from None


def logs_generator(arguments: list[str]) -> None:
    parser = _parser("logs-generator")
    parser.add_argument("--log-lines-total", "-t", type=int, default=0)
    parser.add_argument("--run-duration", "-d", default="1s")
    options, _ = parser.parse_known_args(arguments)
    seconds = float(options.run_duration.rstrip("s"))
    clock = Clock()

    async def generate() -> None:
        for number in range(options.log_lines_total):
            print(f"{number} GET /api/v1/namespaces/default/pods/{number:04x} {200 + number % 300}", flush=True)  # noqa: T201
            await clock.sleep(seconds / max(1, options.log_lines_total))

    asyncio.run(generate())


def pause(_: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("Paused", flush=True)  # noqa: T201
    while True:
        signal.pause()


def entrypoint_tester(_: list[str]) -> None:
    print(sys.argv)  # noqa: T201


def dns_suffix(_: list[str]) -> None:
    print(",".join(_resolver("search")))  # noqa: T201


def dns_servers(_: list[str]) -> None:
    print(",".join(_resolver("nameserver")))  # noqa: T201


def etc_hosts(_: list[str]) -> None:
    print(Path("/etc/hosts").read_text(), end="")  # noqa: T201


def env(_: list[str]) -> None:
    for name, value in os.environ.items():
        print(f"{name}={value}")  # noqa: T201


def shell(arguments: list[str]) -> None:
    raise SystemExit(subprocess.run(["/bin/sh", *arguments], check=False).returncode)


def _resolver(word: str) -> list[str]:
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return [value for line in lines if line and line[0] == word for value in line[1:]]


COMMANDS = {
    "netexec": netexec,
    "guestbook": guestbook,
    "serve-hostname": serve_hostname,
    "test-webserver": test_webserver,
    "liveness": liveness,
    "porter": porter,
    "connect": connect,
    "logs-generator": logs_generator,
    "pause": pause,
    "entrypoint-tester": entrypoint_tester,
    "dns-suffix": dns_suffix,
    "dns-server-list": dns_servers,
    "etc-hosts": etc_hosts,
    "env": env,
}


def main() -> None:
    name, *arguments = sys.argv[1:] or ["pause"]
    if name in ("--version", "version"):
        print(f"agnhost version {VERSION} (stand-in)")  # noqa: T201
        return
    command = COMMANDS.get(name)
    if command is None:
        raise SystemExit(f"Error: unknown command {name!r} for this agnhost stand-in; it has: {', '.join(COMMANDS)}")
    command(arguments)


if __name__ == "__main__":
    main()
