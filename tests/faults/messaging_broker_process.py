"""A broker in a process of its own, to be killed: ``python -m tests.faults.messaging_broker_process DIRECTORY``.

Prints its port when it serves. Runs until it is killed or told to stop by SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from sampan.parts.messaging.topology import TopicConfig
from tests.clients.messaging_harness import broker


async def main(directory: Path, segment_bytes: int) -> None:
    finish = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finish.set)
    async with broker(directory, segment_bytes=segment_bytes) as running:
        for name in ("plain", "later", "tx"):
            if name not in running.core.store.topics:
                running.core.broker.create_topic(TopicConfig(name, queues=4))
        if "fifo" not in running.core.store.topics:
            running.core.broker.create_topic(TopicConfig("fifo", "FIFO", queues=2))
        print(running.port, flush=True)
        await finish.wait()


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 256 << 20))
