"""A static web server in the place of nginx and httpd.

It serves the document root and reads as much of a mounted nginx configuration as simple sites use: ``listen``, ``root``,
``index``, ``location``, ``return``, ``add_header``, ``try_files`` to a fallback file. Anything else is named in the log and
left out: a configuration with ``proxy_pass`` needs the real server.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.parts.node.images.standins.serve import serve

NGINX_ROOT = "/usr/share/nginx/html"
HTTPD_ROOT = "/usr/local/apache2/htdocs"
_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[{};]|[^\s{};]+")
_KNOWN = {
    "listen", "root", "index", "location", "return", "add_header", "try_files", "server_name", "error_page", "default_type",
    "access_log", "error_log", "charset", "expires", "autoindex",
}  # fmt: skip


@dataclass
class Location:
    """What a location says."""

    prefix: str = "/"
    exact: bool = False
    root: str = ""
    answer: tuple[int, str] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fallback: str = ""
    default_type: str = ""


@dataclass
class Site:
    """One server block."""

    ports: list[int] = field(default_factory=list)
    root: str = NGINX_ROOT
    index: list[str] = field(default_factory=lambda: ["index.html", "index.htm"])
    locations: list[Location] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def parse(text: str) -> list[Site]:
    """The server blocks of an nginx configuration."""
    text = re.sub(r"(^|\s)#[^\n]*", r"\1", text)
    tokens = [token[1:-1] if token[0] in "\"'" else token for token in _TOKEN.findall(text)]
    sites: list[Site] = []
    words: list[str] = []
    stack: list[Site | Location | None] = []
    for word in tokens:
        if word == "{":
            if words[:1] == ["server"]:
                sites.append(Site())
                stack.append(sites[-1])
            elif words[:1] == ["location"] and sites:
                location = Location(prefix=words[-1], exact="=" in words[1:-1])
                sites[-1].locations.append(location)
                stack.append(location)
            else:
                stack.append(None)
            words = []
        elif word == "}":
            if stack:
                stack.pop()
            words = []
        elif word == ";":
            scope = next((place for place in reversed(stack) if place is not None), None)
            if words and scope is not None:
                _directive(scope, sites[-1], words)
            words = []
        else:
            words.append(word)
    return sites


def _directive(scope: Site | Location, site: Site, words: list[str]) -> None:
    name, *values = words
    if name == "listen" and values:
        port = values[0].rpartition(":")[2]
        if port.isdecimal() and int(port) not in site.ports:
            site.ports.append(int(port))
    elif name == "root" and values:
        scope.root = values[0]
    elif name == "index":
        site.index = values
    elif name == "return" and isinstance(scope, Location) and values:
        scope.answer = (int(values[0]), values[1] if len(values) > 1 else "")
    elif name == "add_header" and isinstance(scope, Location) and len(values) > 1:
        scope.headers[values[0]] = values[1]
    elif name == "default_type" and isinstance(scope, Location) and values:
        scope.default_type = values[0]
    elif name == "try_files" and isinstance(scope, Location) and values:
        scope.fallback = values[-1]
    elif name not in _KNOWN:
        site.unknown.append(name)


class StaticSite:
    """Answers requests for one site."""

    def __init__(self, site: Site, server: str, clock: Clock) -> None:
        self._site = site
        self._server = server
        self._clock = clock

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, logged as the original logs it."""
        response = self._answer(request)
        response.headers["Server"] = self._server
        if response.status == 200:
            response.headers.setdefault("Accept-Ranges", "bytes")
        now = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
        agent, referer = request.headers.get("User-Agent", "-"), request.headers.get("Referer", "-")
        sys.stdout.write(
            f'{request.remote} - - [{now}] "{request.method} {request.rel_url} HTTP/1.1" {response.status} '
            f'{response.content_length if isinstance(response, web.Response) else "-"} "{referer}" "{agent}" "-"\n'
        )
        sys.stdout.flush()
        return response

    def _answer(self, request: web.Request) -> web.StreamResponse:
        location = self._location(request.path)
        if location.answer is not None:
            return self._returned(location, request)
        if request.method not in ("GET", "HEAD"):
            return self._error(405, "Not Allowed")
        root = own(location.root or self._site.root).resolve()
        path = root / request.path.lstrip("/")
        found = self._file(root, path)
        if found is None and location.fallback.startswith("="):
            return self._error(int(location.fallback[1:]), "Not Found")
        if found is None and location.fallback:
            found = self._file(root, root / location.fallback.lstrip("/"))
        if found is None:
            return self._error(403, "Forbidden") if path.is_dir() else self._error(404, "Not Found")
        if path.is_dir() and not request.path.endswith("/"):
            return web.Response(status=301, headers={"Location": f"{request.path}/"})
        return web.FileResponse(found, headers=location.headers)

    def _location(self, path: str) -> Location:
        for location in self._site.locations:
            if location.exact and location.prefix == path:
                return location
        fitting = [one for one in self._site.locations if not one.exact and path.startswith(one.prefix)]
        return max(fitting, key=lambda one: len(one.prefix), default=Location())

    def _returned(self, location: Location, request: web.Request) -> web.StreamResponse:
        assert location.answer is not None
        status, text = location.answer
        text = text.replace("$hostname", socket.gethostname()).replace("$request_uri", str(request.rel_url))
        text = text.replace("$host", request.host.partition(":")[0]).encode().decode("unicode_escape")
        if status in (301, 302, 303, 307, 308):
            return web.Response(status=status, headers={"Location": text, **location.headers})
        kind = location.headers.get("Content-Type") or location.default_type or "text/plain"
        headers = {name: value for name, value in location.headers.items() if name != "Content-Type"}
        return web.Response(status=status, body=text.encode(), headers={"Content-Type": kind, **headers})

    def _file(self, root: Path, path: Path) -> Path | None:
        candidates = [path / name for name in self._site.index] if path.is_dir() else [path]
        for candidate in candidates:
            resolved = candidate.resolve()
            # a mounted ConfigMap's files are links within its own directory
            if resolved.is_file() and (
                resolved.is_relative_to(root) or candidate.parent.resolve().is_relative_to(root)
            ):
                return resolved
        return None

    def _error(self, status: int, words: str) -> web.Response:
        text = (
            f"<html>\r\n<head><title>{status} {words}</title></head>\r\n<body>\r\n<center><h1>{status} {words}</h1>"
            f"</center>\r\n<hr><center>{self._server}</center>\r\n</body>\r\n</html>\r\n"
        )
        return web.Response(status=status, text=text, content_type="text/html")


def own(path: str) -> Path:
    """A path of this image: in its layer, where the container has no root of its own to show it in."""
    layer = os.environ.get("SAMPAN_LAYER", "")
    return Path(layer + path) if layer and Path(layer + path).exists() else Path(path)


def sites(flavour: str) -> list[Site]:
    """The sites to serve: of the nginx configuration in the container, or the one default site."""
    if flavour == "nginx":
        files = sorted(own("/etc/nginx/conf.d").glob("*.conf"))
        main = own("/etc/nginx/nginx.conf")
        text = main.read_text() if main.exists() else ""
        found = parse(text)
        for file in files:
            found += parse(file.read_text())
        found = [site for site in found if site.ports]
        if found:
            return found
        return [Site(ports=[80])]
    return [Site(ports=[80], root=HTTPD_ROOT)]


async def _main(flavour: str) -> None:
    clock = Clock()
    server = {"nginx": "nginx/1.27.0", "httpd": "Apache/2.4.62 (Unix)"}[flavour]
    waiting = []
    for site in sites(flavour):
        for name in dict.fromkeys(site.unknown):
            sys.stderr.write(f"[warn] directive {name!r} is not known to this stand-in and has no effect\n")
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", StaticSite(site, server, clock).handle)
        waiting.append(serve(application, site.ports))
    sys.stderr.write(f"[notice] {server}: start worker processes\n")
    sys.stderr.flush()
    await asyncio.gather(*waiting)


def main() -> None:
    if sys.argv[1:2] == ["entrypoint"]:
        # the original's is a shell script; as this program it comes from a warm interpreter like any other
        if sys.argv[2:3] not in ([], ["nginx"]):
            os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - it runs what it is given
        del sys.argv[1]
    flavour = sys.argv[1] if len(sys.argv) > 1 else "nginx"
    arguments = sys.argv[2:]
    if flavour == "nginx" and "-v" in arguments:
        sys.stderr.write("nginx version: nginx/1.27.0\n")
        return
    if flavour == "nginx" and ("-t" in arguments or "-s" in arguments):
        if "-s" in arguments and arguments[arguments.index("-s") + 1] in ("stop", "quit"):
            os.kill(1, signal.SIGTERM)
        sys.stderr.write("nginx: configuration file /etc/nginx/nginx.conf test is successful\n")
        return
    asyncio.run(_main(flavour))


if __name__ == "__main__":
    main()
