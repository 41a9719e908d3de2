"""Asking a starting pod whether it takes requests, more often than a kubelet would.

While requests wait at the gate their pod is asked every few milliseconds, with the user's own readiness probe: a connection for
``tcpSocket``, a GET for ``httpGet``. What cannot be asked from here (exec, gRPC, HTTPS) or asks for patience (an initial delay) is
left to the kubelet.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, NamedTuple

from sampan.kernel.addresses import door
from sampan.kube.objects import Object, dig
from sampan.parts.serving.control.revision import serving_container, user_port

LONGEST_LINE = 4096
"""Bytes of a status line that are looked at."""
STATUS_DIGITS = 3


class Question(NamedTuple):
    """What to ask of a pod."""

    port: int
    path: str
    """Empty: to accept a connection is enough."""
    headers: tuple[tuple[str, str], ...] = ()


def question(revision: Object) -> Question | None:
    """How the gate can tell that a pod of the revision is ready; None: only the kubelet can."""
    probe: Any = serving_container(revision).get("readinessProbe") or {}
    port = user_port(revision)
    if probe.get("initialDelaySeconds") or probe.get("exec") or probe.get("grpc") is not None:
        return None
    if not probe.get("httpGet"):
        asked = dig(probe, "tcpSocket", "port") or port
        return Question(asked, "") if isinstance(asked, int) else Question(port, "")
    target = probe["httpGet"]
    if (target.get("scheme") or "HTTP").upper() != "HTTP" or target.get("host"):
        return None
    asked = target.get("port") or port
    headers = tuple((one["name"], one.get("value", "")) for one in target.get("httpHeaders") or ())
    return Question(asked if isinstance(asked, int) else port, target.get("path") or "/", headers)


async def answers(question: Question, host: str) -> bool:
    """Ask once; a refused connection or any answer but success is False.

    Bare sockets: a pod that starts is asked hundreds of times a second, on the loop that also starts it.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            await loop.sock_connect(connection, (host, door(host, question.port)))
            if not question.path:
                return True
            await loop.sock_sendall(connection, _request(question, host))
            line = b""
            while b"\n" not in line and len(line) < LONGEST_LINE:
                more = await loop.sock_recv(connection, LONGEST_LINE)
                if not more:
                    break
                line += more
        except OSError:
            return False
    words = line.partition(b"\n")[0].split(None, 2)
    code = words[1].decode("latin-1") if len(words) > 1 else ""
    return len(code) == STATUS_DIGITS and code.isdecimal() and 200 <= int(code) < 400


def _request(question: Question, host: str) -> bytes:
    path = question.path if question.path.startswith("/") else f"/{question.path}"
    named = {"Host": f"{host}:{question.port}", "User-Agent": "kube-probe/1.34", "K-Kubelet-Probe": "queue"}
    lines = [f"GET {path} HTTP/1.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in {**named, **dict(question.headers)}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
