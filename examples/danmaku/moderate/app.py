"""The moderation function: a comment comes in as an event, the approved comment goes back as the reply.

Plain Python, no framework: a CloudEvent is an HTTP request, the reply is the response. A comment that is refused gets an empty
answer, and its way ends here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RUDE = re.compile(r"\b(?:damn|crap|idiot|stupid)\b|笨蛋|傻瓜", re.IGNORECASE)
ADVERTISING = re.compile(r"https?://|www\.|加微信", re.IGNORECASE)
UNSEEN = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]|(?<=[\u0300-\u036f]{3})[\u0300-\u036f]+"
)
"""Characters that turn the direction of text or hide in it, and towers of accents that would grow over other lanes."""
LONGEST = 80
POD = socket.gethostname()


def moderate(comment: dict[str, str]) -> dict[str, str] | None:
    """The comment as everybody may see it, or None."""
    text = " ".join(UNSEEN.sub("", str(comment.get("text", ""))).split())[:LONGEST]
    if not text or ADVERTISING.search(text):
        return None
    user = " ".join(UNSEEN.sub("", str(comment.get("user", ""))).split())[:20]
    return {**comment, "user": user, "text": RUDE.sub(lambda found: "✱" * len(found.group()), text), "pod": POD}


class Function(BaseHTTPRequestHandler):
    """One request, one event."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            comment = json.loads(base64.b64decode(json.loads(body)["Body"]))
            approved = moderate(comment)
        except (KeyError, TypeError, ValueError, AttributeError):
            approved = None  # not a comment: nobody wants to see it, and sending it again would not help
        payload = b"" if approved is None else json.dumps(approved, ensure_ascii=False).encode()
        self.send_response(200)
        if approved is not None:
            self.send_header("ce-specversion", "1.0")
            self.send_header("ce-id", self.headers.get("ce-id", ""))
            self.send_header("ce-type", "danmaku.comment.approved")
            self.send_header("ce-source", "/danmaku/moderate")
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """A line a comment would be noise."""


class Server(ThreadingHTTPServer):
    """With room for a crowd at the door."""

    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    Server(("", int(os.environ.get("PORT", "8080"))), Function).serve_forever()
