"""The web service: serves the page, takes comments, and pushes approved ones to every open page.

    GET  /          the page
    GET  /live      the live flow (server-sent events); ?after=ID or Last-Event-ID: what was missed first
    POST /comments  {"user", "text", "colour"}: sent on as an event to $K_SINK, which SinkBinding sets
    POST /events    approved comments, delivered by the Trigger

Only Python's standard library: asyncio streams and a few lines of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAGE = (Path(__file__).parent / "index.html").read_bytes()
LARGEST = 16 * 1024
RECENT = 12
"""Comments a newly opened page gets to see at once."""
KEPT = 500
"""Comments kept for pages whose connection broke, and to know one that is delivered twice."""
FIELDS = ("user", "text", "colour", "sent", "key")
"""What a page says of a comment; by ``key`` it knows its own again."""
PASSED = ("traceparent", "tracestate", "x-request-id")
"""Headers that a request hands on, so that its way can be followed."""
SLOW = 256
"""Comments a page may be behind before it loses the oldest."""
GUARD = (
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
)
"""What the page may do: speak to us, and nothing else."""
REASONS = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    503: "Unavailable",
}


class Audience:
    """Every open page."""

    def __init__(self) -> None:
        self.pages: set[asyncio.Queue[bytes]] = set()
        self.kept: dict[str, bytes] = {}
        """The latest comments as lines of the live flow, by id."""

    def show(self, comment: dict[str, str]) -> None:
        """To all of them, once: events are delivered at least once."""
        name = str(comment.get("id", ""))
        if name in self.kept:
            return
        lines = f"id: {name}\ndata: {json.dumps(comment, ensure_ascii=False)}\n\n".encode()
        self.kept[name] = lines
        if len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        for page in self.pages:
            if page.qsize() >= SLOW:
                page.get_nowait()
            page.put_nowait(lines)

    def missed(self, after: str) -> list[bytes]:
        """What a page did not see whose last comment was ``after`` (empty, or too old: the latest few)."""
        names = list(self.kept)
        first = names.index(after) + 1 if after in self.kept else max(0, len(names) - RECENT)
        return [self.kept[name] for name in names[first:]]


class Sink:
    """Where comments go: connections to $K_SINK, kept open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname or "", parts.port or 80, parts.path or "/"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, comment: dict[str, str], passed: dict[str, str]) -> int:
        """The sink's status for one comment; ``passed`` are headers of the request that it came with."""
        body = json.dumps(comment, ensure_ascii=False).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nce-specversion: 1.0\r\nce-id: {comment['id']}\r\n"
            "ce-type: danmaku.comment.said\r\nce-source: /danmaku/web\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in passed.items())
            + "\r\n"
        )
        while True:
            kept = bool(self._idle)
            reader, writer = self._idle.pop() if kept else await asyncio.open_connection(self.host, self.port)
            try:
                writer.write(head.encode() + body)
                status, headers = await read_head(reader)
                await reader.readexactly(int(headers.get("content-length", "0")))
            except (OSError, asyncio.IncompleteReadError, ValueError):
                writer.close()
                if kept:  # the other side had closed it meanwhile
                    continue
                raise
            self._idle.append((reader, writer))
            return int(status.split()[1])


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """The first line and the headers of a message."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return lines[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


class Web:
    """The HTTP server."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self._audience = Audience()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                line, headers = await read_head(reader)
                method, target, _ = line.split(" ", 2)
                length = int(headers.get("content-length", "0"))
                if length > LARGEST:
                    answer(writer, 413)
                    break
                body = await reader.readexactly(length)
                if method == "GET" and urlsplit(target).path == "/live":
                    asked = parse_qs(urlsplit(target).query).get("after", [""])[0]
                    await self._live(reader, writer, headers.get("last-event-id") or asked)
                    break
                await self._answer(writer, method, urlsplit(target).path, headers, body)
                await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client left, or never spoke HTTP
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        match method, path:
            case "GET", "/":
                answer(writer, 200, PAGE, "text/html; charset=utf-8")
            case "GET", "/healthz":
                answer(writer, 200 if self._sink else 503)
            case "POST", "/comments":
                answer(writer, await self._said(headers, body))
            case "POST", "/events":
                answer(writer, self._approved(body))
            case _:
                answer(writer, 404)

    async def _said(self, headers: dict[str, str], body: bytes) -> int:
        try:
            given = json.loads(body)
            comment = {name: str(given.get(name, ""))[:200] for name in FIELDS}
        except (ValueError, AttributeError):
            return 400
        if not comment["text"].strip() or self._sink is None:
            return 400 if self._sink else 503
        try:
            passed = {name: headers[name] for name in PASSED if name in headers}
            return await self._sink.send({**comment, "id": uuid.uuid4().hex}, passed)
        except OSError:
            return 503

    def _approved(self, body: bytes) -> int:
        try:
            comment = json.loads(body)
            self._audience.show({name: str(value) for name, value in comment.items()})
        except (ValueError, AttributeError):
            return 400
        return 202

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after: str) -> None:
        page: asyncio.Queue[bytes] = asyncio.Queue()
        missed = self._audience.missed(after)
        self._audience.pages.add(page)
        gone = asyncio.ensure_future(reader.read())
        try:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                b"X-Accel-Buffering: no\r\nConnection: close\r\n\r\nretry: 300\n\n"
            )
            for lines in missed:
                writer.write(b"event: earlier\n" + lines)
            told = 0
            while not gone.done():
                if told != (told := len(self._audience.pages)):
                    writer.write(f"event: viewers\ndata: {told}\n\n".encode())
                await writer.drain()
                waiting = asyncio.ensure_future(page.get())
                await asyncio.wait({waiting, gone}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    writer.write(waiting.result())
                    while not page.empty():
                        writer.write(page.get_nowait())
                else:
                    waiting.cancel()
                    writer.write(b": still here\n\n")
        finally:
            gone.cancel()
            self._audience.pages.discard(page)


def answer(writer: asyncio.StreamWriter, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
    """Write a whole response."""
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'OK')}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}{GUARD}\r\n".encode() + body)


async def main() -> None:
    """Serve until the end."""
    url = os.environ.get("K_SINK", "")
    web = Web(Sink(url) if url else None)
    server = await asyncio.start_server(web.serve, "", int(os.environ.get("PORT", "8080")), backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
