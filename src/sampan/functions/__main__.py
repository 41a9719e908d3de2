"""``python -m sampan.functions [MODULE]``: serve the functions of a module (default ``app``) on ``$PORT`` (of ``$HOST``, default every address: in a pod those
are the pod's own).

The server speaks HTTP/1.1 with keep-alive. On SIGTERM it takes no new connections, finishes what it has begun, and ends.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
from pathlib import Path

from sampan.functions.application import APPLICATION
from sampan.functions.messages import Request, Response

LONGEST_HEAD = 64 * 1024
LONGEST_BODY = 64 * 1024 * 1024
_PHRASES = {
    200: "OK",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
}


class BadRequestError(Exception):
    """What came is no HTTP request that can be served; ``status`` tells why."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Server:
    """Connections and what they are busy with."""

    def __init__(self) -> None:
        self._idle: set[asyncio.StreamWriter] = set()
        self._busy: set[asyncio.StreamWriter] = set()
        self._stopping = asyncio.Event()

    async def run(self, host: str, port: int) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        server = await asyncio.start_server(self._serve, host or None, port, limit=LONGEST_HEAD, backlog=1024)
        await self._stopping.wait()
        server.close()
        for writer in list(self._idle):
            writer.close()
        for writer in list(self._busy):
            await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self._stopping.is_set():
                self._idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self._idle.discard(writer)
                self._busy.add(writer)
                request = await self._read(head, reader, writer)
                response = await APPLICATION.answer(request)
                keep = request.headers.get("connection", "").lower() != "close" and not self._stopping.is_set()
                writer.write(_head(response, keep=keep) + (b"" if request.method == "HEAD" else response.body))
                await writer.drain()
                self._busy.discard(writer)
                if not keep:
                    break
        except BadRequestError as error:
            writer.write(_head(Response(status=error.status), keep=False))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client is gone, or speaks something else
        finally:
            self._idle.discard(writer)
            self._busy.discard(writer)
            writer.close()

    async def _read(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise BadRequestError(400)
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadRequestError(400)
            key = name.strip().lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return Request(words[0], words[1], headers, await self._body(headers, reader))

    async def _body(self, headers: dict[str, str], reader: asyncio.StreamReader) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts = bytearray()
            while True:
                size_text = (await reader.readuntil(b"\r\n")).split(b";")[0].strip()
                try:
                    size = int(size_text, 16)
                except ValueError:
                    raise BadRequestError(400) from None
                if len(parts) + size > LONGEST_BODY:
                    raise BadRequestError(413)
                parts += await reader.readexactly(size)
                line = await reader.readuntil(b"\r\n")
                if size == 0:
                    while line != b"\r\n":
                        line = await reader.readuntil(b"\r\n")
                    return bytes(parts)
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise BadRequestError(400)
        if int(length) > LONGEST_BODY:
            raise BadRequestError(413)
        return await reader.readexactly(int(length))


def _head(response: Response, *, keep: bool) -> bytes:
    phrase = _PHRASES.get(response.status, "Status")
    lines = [f"HTTP/1.1 {response.status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if response.status != 204:
        lines.append(f"content-length: {len(response.body)}")
    lines.append("connection: keep-alive" if keep else "connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def main() -> None:
    """Load the module and serve."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    sys.path.insert(0, str(Path.cwd()))
    module = sys.argv[1] if len(sys.argv) > 1 else "app"
    importlib.import_module(module)
    if not (APPLICATION.by_path or APPLICATION.by_type):
        sys.exit(f"{module} has no function: decorate one with @http or @event from sampan.functions")
    asyncio.run(Server().run(os.environ.get("HOST", ""), int(os.environ.get("PORT", "8080"))))


if __name__ == "__main__":
    main()
