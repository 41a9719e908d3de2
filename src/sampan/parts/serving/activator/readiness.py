"""Asking a starting pod whether it takes requests, more often than a kubelet would.

While requests wait at the gate their pod is asked every few milliseconds, with the user's own readiness probe: a connection for
``tcpSocket``, a GET for ``httpGet``. What cannot be asked from here (exec, gRPC, HTTPS) or asks for patience (an initial delay) is
left to the kubelet.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from sampan.kube.objects import Object, dig
from sampan.parts.serving.control.revision import serving_container, user_port


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
    if probe.get("initialDelaySeconds") or "exec" in probe or "grpc" in probe:
        return None
    if "httpGet" not in probe:
        asked = dig(probe, "tcpSocket", "port") or port
        return Question(asked, "") if isinstance(asked, int) else Question(port, "")
    target = probe["httpGet"]
    if target.get("scheme", "HTTP") != "HTTP" or target.get("host"):
        return None
    asked = target.get("port") or port
    headers = tuple((one["name"], one.get("value", "")) for one in target.get("httpHeaders") or ())
    return Question(asked if isinstance(asked, int) else port, target.get("path") or "/", headers)


async def answers(question: Question, host: str) -> bool:
    """Ask once; a refused connection or any answer but success is False."""
    try:
        reader, writer = await asyncio.open_connection(host, question.port)
    except OSError:
        return False
    try:
        if not question.path:
            return True
        path = question.path if question.path.startswith("/") else f"/{question.path}"
        named = {"Host": f"{host}:{question.port}", "User-Agent": "kube-probe/1.34", "K-Kubelet-Probe": "queue"}
        lines = [f"GET {path} HTTP/1.1", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in {**named, **dict(question.headers)}.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        words = (await reader.readline()).split(b" ", 2)
        return len(words) > 1 and words[1].decode("latin-1").isdecimal() and 200 <= int(words[1]) < 400
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
