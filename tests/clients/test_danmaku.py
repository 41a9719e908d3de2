"""The danmaku example on a platform: what one page says, every page sees; by plain HTTP, and in a real browser."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sampan.cli.demo import SHARED_PORTS
from sampan.testing import Platform

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "danmaku"
PATIENCE = 60


def sampan(*arguments: str) -> str:
    command = [sys.executable, "-m", "sampan", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application answers."""
    folder = tmp_path_factory.mktemp("danmaku")
    for image in ("web", "moderate"):
        sampan("image", "--data-dir", str(folder), "build", str(EXAMPLE / image), "-t", f"danmaku-{image}")
    with Platform(data_dir=folder) as platform:
        environment = {**os.environ, "KUBECONFIG": str(platform.kubeconfig)}

        def kubectl(*arguments: str) -> str:
            command = ["kubectl", *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
            return done.stdout

        isolation = kubectl("get", "nodes", "-o", "jsonpath={..conditions[?(@.type=='PodIsolation')].message}")
        if SHARED_PORTS in isolation:
            pytest.skip(f"pods do not find the cluster's names here: {isolation}")
        kubectl("apply", "-f", str(EXAMPLE / "danmaku.yaml"))
        kubectl(
            "wait",
            "--for=condition=Ready",
            "--timeout=50s",
            "ksvc/moderate",
            "broker/danmaku",
            "sinkbinding/danmaku-web",
        )
        kubectl("wait", "--for=condition=Ready", "--timeout=50s", "trigger/moderate", "trigger/show")
        kubectl("rollout", "status", "deployment/danmaku-web", "--timeout=50s")
        yield f"http://{platform.address('gateway')}"


@asynccontextmanager
async def live(session: aiohttp.ClientSession, url: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """A page's live flow of comments."""
    async with session.get(f"{url}/live") as response:
        assert response.status == 200

        async def comments() -> AsyncIterator[dict[str, Any]]:
            kind = "message"
            async for line in response.content:
                name, _, value = line.decode().strip().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "message":
                    yield json.loads(value)
                elif not name:
                    kind = "message"

        yield comments()


async def test_what_one_says_every_page_sees_moderated(url: str) -> None:
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession() as session,
        live(session, url) as one,
        live(session, url) as other,
    ):
        for text in ("ahoy", "buy at http://spam.example", "what a damn good boat"):
            body = json.dumps({"user": "tester", "text": text, "colour": "#ffd27a"})
            async with session.post(f"{url}/comments", data=body) as response:
                assert response.status == 202
        for page in (one, other):
            seen = {(await anext(page))["text"] for _ in range(2)}
            assert seen == {"ahoy", "what a ✱✱✱✱ good boat"}  # the advertisement went nowhere


async def test_what_is_no_comment_is_refused(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for body in (b"not json", b"[]", b'{"text": "  "}'):
            async with session.post(f"{url}/comments", data=body) as response:
                assert response.status == 400
        async with session.get(f"{url}/") as response:
            assert response.status == 200
            assert "弹幕" in await response.text()


class Browser:
    """Headless Chromium over its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        await self._socket.send_json(message)
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    async def page(self, url: str) -> str:
        target = await self.call("Target.createTarget", url=url, width=1280, height=720, newWindow=True)
        found = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        session: str = found["sessionId"]
        size = {"width": 1280, "height": 720, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", session, **size)
        await self.until(session, "document.querySelector('#state')?.classList.contains('on')")
        return session

    async def run(self, session: str, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", session, expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, session: str, condition: str) -> None:
        while not await self.run(session, f"!!({condition})"):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    process = await asyncio.create_subprocess_exec(
        program,
        *options,
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        while not port_file.exists() or len(port_file.read_text().split()) < 2:
            assert process.returncode is None, "Chromium ended at once"
            await asyncio.sleep(0.05)
        port, path = port_file.read_text().split()[:2]
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            yield Browser(socket)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def test_two_browser_windows_see_the_same_comment(url: str, tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE), chromium(tmp_path / "profile") as browser:
        one, other = await browser.page(url), await browser.page(url)
        for name, text in (("Lin", "来了来了 🔥"), ("Ana", "hello from São Paulo"), ("Max", "row row row your boat")):
            fill = "document.querySelector('#user').value = {}; document.querySelector('#text').value = {};"
            script = fill.format(json.dumps(name), json.dumps(text)) + "document.querySelector('form').requestSubmit()"
            await browser.run(one, script)
            for page in (one, other):
                seen = (
                    f"[...document.querySelectorAll('.comment')].some(c => c.textContent.includes({json.dumps(text)}))"
                )
                await browser.until(page, seen)
        assert await browser.run(other, "document.querySelector('#viewers').textContent") == "2"
        assert await browser.run(one, "document.querySelectorAll('.comment.mine').length") > 0
        if picture := os.environ.get("DANMAKU_SCREENSHOT"):
            async with aiohttp.ClientSession() as session:
                for number in range(40):
                    lines = [
                        "前排",
                        "encore!!",
                        "灯光绝了",
                        "what a night",
                        "月亮好美",
                        "舢板出发",
                        "solo!!!",
                        "全场大合唱",
                    ]
                    body = {
                        "user": "Mei",
                        "text": lines[number % 8],
                        "colour": ["#ffffff", "#7fe3ff", "#ff9fb2"][number % 3],
                    }
                    async with session.post(f"{url}/comments", data=json.dumps(body)) as response:
                        assert response.status == 202
                    await asyncio.sleep(0.12)
            await asyncio.sleep(1)
        shot = await browser.call("Page.captureScreenshot", other, format="png")
        target = Path(picture) if picture else tmp_path / "danmaku.png"
        target.write_bytes(base64.b64decode(shot["data"]))
        assert target.read_bytes().startswith(b"\x89PNG")
