"""A crowd at a concert: plays a recorded evening of comments against the running application, and watches the function scale.

    python crowd.py http://127.0.0.1:9080 [--speed 4] [--comments 3000] [--kubeconfig ~/.sampan/kubeconfig]

The recording is three waves (the band comes on, the hit, the farewell) of who says what when. With a kubeconfig the number of
moderation pods is printed beside the comments, from zero up and back to zero.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
from urllib.parse import urlsplit

SAID = [
    "来了来了",
    "前排",
    "哈哈哈哈哈",
    "awesome!!",
    "晚上好",
    "主唱好帅",
    "第一次看",
    "这首是我的青春",
    "泪目了",
    "encore!!",
    "灯光绝了",
    "全场大合唱",
    "chills",
    "🔥🔥🔥",
    "上海的朋友在吗",
    "广州报到",
    "Berlin is watching",
    "hello from São Paulo",
    "鼓手太强",
    "solo!!!",
    "舢板出发",
    "row row row your boat",
    "月亮好美",
    "what a night",
    "再来一首",
    "不要结束",
    "明年再见",
    "thank you",
    "❤️",
    "6666666",
    "笨蛋摄像",
    "damn good",
    "镜头给贝斯",
    "这编曲神了",
    "声音好听",
    "好想在现场",
    "名场面",
    "下次一定",
    "晚安",
]
NAMES = ["小船", "阿月", "Lin", "Max", "雨", "Zoë", "老王", "Kiki", "北风", "Ana", "Tomás", "77", "山海", "Mei"]
COLOURS = ["#ffffff"] * 4 + ["#ffd27a", "#7fe3ff", "#ff9fb2", "#b6f09c"]
WAVES = ((0.12, 0.05, 1.0), (0.5, 0.09, 2.2), (0.88, 0.06, 1.6))
"""Where each wave has its peak, how wide and how high it is."""
EVENING = 60.0
"""Seconds of the recording."""


def recording(comments: int) -> list[tuple[float, dict[str, str]]]:
    """Who says what when: always the same."""
    chance = random.Random(20260501)
    times: list[float] = []
    while len(times) < comments:
        at = chance.random()
        density = 0.15 + sum(high * math.exp(-(((at - peak) / wide) ** 2)) for peak, wide, high in WAVES)
        if chance.random() * 2.5 < density:
            times.append(at * EVENING)
    return [
        (at, {"user": chance.choice(NAMES), "text": chance.choice(SAID), "colour": chance.choice(COLOURS)})
        for at in sorted(times)
    ]


async def say(host: str, port: int, queue: asyncio.Queue[dict[str, str] | None], done: list[int]) -> None:
    """One browser's connection: posts comments until there are no more."""
    reader, writer = await asyncio.open_connection(host, port)
    while (comment := await queue.get()) is not None:
        body = json.dumps({**comment, "sent": str(int(time.time() * 1000))}).encode()
        writer.write(f"POST /comments HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
        )
        await reader.readexactly(length)
        done.append(int(head.split()[1]))
    writer.close()


async def pods(kubeconfig: str) -> int:
    """Running pods of the function."""
    command = ["kubectl", "--kubeconfig", kubeconfig, "get", "pods", "-o", "name"]
    command += ["-l", "serving.knative.dev/service=moderate"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return len(output.split())


async def play(url: str, comments: int, speed: float, kubeconfig: str) -> None:
    """Play the evening."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    queue: asyncio.Queue[dict[str, str] | None] = asyncio.Queue()
    done: list[int] = []
    speakers = [asyncio.create_task(say(host, port, queue, done)) for _ in range(16)]
    began, said = time.monotonic(), time.monotonic()

    async def report(label: str) -> None:
        running = f"  {await pods(kubeconfig)} moderation pods" if kubeconfig else ""
        failed = sum(1 for status in done if status >= 300)
        print(f"{time.monotonic() - began:6.1f} s  {len(done):5} comments, {failed} refused{running}  {label}")

    await report("before")
    for at, comment in recording(comments):
        due = began + at / speed
        while (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, 0.5))
            if time.monotonic() - said >= 2:
                said = time.monotonic()
                await report("")
        queue.put_nowait(comment)
    for _ in speakers:
        queue.put_nowait(None)
    await asyncio.gather(*speakers)
    await report("the evening is over")
    while kubeconfig and await pods(kubeconfig):
        await asyncio.sleep(1)
    await report("" if not kubeconfig else "the function is back at zero")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:9080")
    parser.add_argument("--comments", type=int, default=3000)
    parser.add_argument("--speed", type=float, default=2.0, help="how much faster than it was")
    parser.add_argument("--kubeconfig", default="", help="show the function's pods too")
    given = parser.parse_args()
    asyncio.run(play(given.url, given.comments, given.speed, given.kubeconfig))
