"""The programs of Knative Eventing's samples: event_display, heartbeats, appender, and a player that shows and sends events.

The first argument names which one; the rest is the original's command line.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientError, ClientSession, web

from sampan.kernel.clock import Clock
from sampan.parts.node.images.standins.serve import run

ORDER = ("specversion", "type", "source", "subject", "id", "time", "dataschema", "datacontenttype")
STRUCTURED = "application/cloudevents+json"


def read(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
    """Attributes and data of an event in either mode.

    Raises:
        ValueError: it is none.
    """
    kind = headers.get("Content-Type", "")
    if kind.startswith(STRUCTURED):
        given: dict[str, Any] = json.loads(body)
        encoded, plain = given.pop("data_base64", None), given.pop("data", None)
        data = base64.b64decode(encoded) if encoded else b"" if plain is None else json.dumps(plain).encode()
        return {name: _text(value) for name, value in given.items()}, data
    found = {name[3:].lower(): value for name, value in headers.items() if name.lower().startswith("ce-")}
    if "specversion" not in found:
        raise ValueError("this is not a CloudEvent")
    return {**found, **({"datacontenttype": kind} if kind else {})}, body


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def display(attributes: Mapping[str, str], data: bytes) -> str:
    """An event as the sample prints it."""
    lines = ["☁️  cloudevents.Event", "Context Attributes,"]
    lines += [f"  {name}: {attributes[name]}" for name in ORDER if name in attributes]
    extensions = sorted(name for name in attributes if name not in ORDER)
    if extensions:
        lines += ["Extensions,", *(f"  {name}: {attributes[name]}" for name in extensions)]
    if data:
        text = data.decode(errors="replace")
        if "json" in attributes.get("datacontenttype", "json"):
            try:
                text = json.dumps(json.loads(data), indent=2, ensure_ascii=False)
            except ValueError:
                pass  # it says that it is JSON and is not: shown as it came
        lines += ["Data,", *(f"  {line}" for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """A line of the container's log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def event_display() -> None:
    """Prints every event that comes."""

    async def take(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            say(display(*read(request.headers, body)))
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(status=200)

    run(take, [int(os.environ.get("PORT", "8080"))])


def appender() -> None:
    """Answers with the event, ``$MESSAGE`` appended to its message; ``$TYPE`` renames it."""

    async def take(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            attributes, data = read(request.headers, body)
            given = json.loads(data)
            given["message"] = str(given.get("message", "")) + os.environ.get("MESSAGE", "")
        except (ValueError, AttributeError) as error:
            return web.Response(status=400, text=f"{error}\n")
        attributes["type"] = os.environ.get("TYPE") or attributes["type"]
        headers = {f"ce-{name}": value for name, value in attributes.items() if name != "datacontenttype"}
        return web.json_response(given, headers=headers)

    run(take, [int(os.environ.get("PORT", "8080"))])


async def heartbeats() -> None:
    """Sends an event to ``$K_SINK`` every ``--period`` seconds."""
    parser = argparse.ArgumentParser(prog="heartbeats")
    for name, default in (("eventSource", ""), ("eventType", "dev.knative.eventing.samples.heartbeat"), ("label", "")):
        parser.add_argument(f"-{name}", f"--{name}", default=default)
    parser.add_argument("-sink", "--sink", default=os.environ.get("K_SINK", ""))
    parser.add_argument("-period", "--period", default="5")
    given = parser.parse_args()
    if not given.sink:
        sys.exit("no sink: $K_SINK is not set")
    place = f"{os.environ.get('POD_NAMESPACE', 'default')}/{os.environ.get('POD_NAME') or os.environ.get('NAME', '')}"
    source = given.eventSource or f"https://knative.dev/eventing/cmd/heartbeats/#{place}"
    overrides = json.loads(os.environ.get("K_CE_OVERRIDES") or "{}").get("extensions") or {}
    clock, number = Clock(), 0
    async with ClientSession() as session:
        while True:
            number += 1
            attributes = {
                "specversion": "1.0",
                "id": str(uuid.uuid4()),
                "type": given.eventType,
                "source": source,
                "time": clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "the": "42",
                "heart": "yes",
                "beats": "true",
                **overrides,
            }
            headers = {f"ce-{name}": value for name, value in attributes.items()}
            try:
                async with session.post(
                    given.sink, json={"id": number, "label": given.label}, headers=headers
                ) as answer:
                    say(f"sending cloudevent to {given.sink}: {answer.status}")
            except ClientError as error:
                say(f"failed to send cloudevent: {error}")
            await clock.sleep(float(given.period.rstrip("s")))


PAGE = """<!doctype html><meta charset="utf-8"><title>events</title>
<style>body{font:15px system-ui;margin:2em auto;max-width:60em}pre{background:#f2f5fa;padding:1em;border-radius:8px}</style>
<h1>Events</h1><div id="all"></div>
<script>
async function look() {
  const all = document.getElementById("all"), found = await (await fetch("messages")).json();
  all.replaceChildren(...found.map(one => { const p = document.createElement("pre"); p.textContent = one.type + "\\n" + one.text; return p }));
}
look(); setInterval(look, 1000);
</script>"""


def player() -> None:
    """Shows the events that come and, POSTed to ``/messages``, sends them on to ``$K_SINK`` or ``$BROKER_URL``."""
    kept: deque[dict[str, str]] = deque(maxlen=200)
    sink = os.environ.get("K_SINK") or os.environ.get("BROKER_URL") or os.environ.get("PLAYER_BROKER") or ""

    async def take(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            if request.path.endswith("/messages"):
                return web.json_response(list(kept))
            return web.Response(text=PAGE, content_type="text/html")
        body = await request.read()
        try:
            attributes, data = read(request.headers, body)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        sent = request.path.endswith("/messages")
        if sent and sink:
            headers = {f"ce-{name}": value for name, value in attributes.items() if name != "datacontenttype"}
            if "datacontenttype" in attributes:
                headers["Content-Type"] = attributes["datacontenttype"]
            try:
                async with ClientSession() as session, session.post(sink, data=data, headers=headers) as answer:
                    if answer.status >= 300:
                        return web.Response(status=502, text=f"the sink answered {answer.status}\n")
            except ClientError as error:
                return web.Response(status=502, text=f"{error}\n")
        kept.appendleft({"type": "SENT" if sent else "RECEIVED", "text": display(attributes, data)})
        return web.Response(status=202)

    run(take, [int(os.environ.get("PORT", "8080"))])


def main() -> None:
    """The program that the first argument names."""
    match sys.argv.pop(1):
        case "event_display":
            event_display()
        case "appender":
            appender()
        case "heartbeats":
            asyncio.run(heartbeats())
        case "player":
            player()
