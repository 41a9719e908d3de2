"""A process runtime of its own for a test, and the words to use it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.parts.node.runtime.interface import Container, ContainerSpec, ExitRecord, Limits, Mount, Root, SandboxSpec
from sampan.parts.node.runtime.process import ProcessRuntime


class Bench:
    """One runtime under test."""

    def __init__(self, directory: Path, runtime: ProcessRuntime, clock: Clock) -> None:
        self.directory = directory
        self.runtime = runtime
        self.clock = clock
        self.exits: dict[str, asyncio.Future[Container]] = {}
        self.lost = asyncio.Event()

    def exited(self, container: Container) -> None:
        future = self._future(container.id)
        if not future.done():
            future.set_result(container)

    def _future(self, container: str) -> asyncio.Future[Container]:
        if container not in self.exits:
            self.exits[container] = asyncio.get_running_loop().create_future()
        return self.exits[container]

    async def exit(self, container: str) -> ExitRecord:
        async with asyncio.timeout(40):
            record = (await self._future(container)).exit
        assert record is not None
        return record

    async def pod(self, uid: str = "pod-1", **fields: object) -> str:
        sandbox = await self.runtime.create_sandbox(SandboxSpec(uid, uid, "default", uid, **fields))  # type: ignore[arg-type]
        return sandbox.address

    async def run(
        self,
        name: str,
        *args: str,
        pod: str = "pod-1",
        mounts: tuple[Mount, ...] = (),
        limits: Limits | None = None,
        env: dict[str, str] | None = None,
        **fields: object,
    ) -> Container:
        root = fields.pop("root", Root(extra=(sys.prefix, sys.base_prefix)))
        return await self.runtime.start_container(
            ContainerSpec(
                name,
                pod,
                name,
                0,
                args,
                env or {},
                mounts=mounts,
                limits=limits or Limits(),
                root=root,  # type: ignore[arg-type]
                log_path=str(self.runtime.layout.log(pod, name, 0)),
                **fields,  # type: ignore[arg-type]
            )
        )

    def log(self, name: str, pod: str = "pod-1") -> str:
        lines = self.runtime.layout.log(pod, name, 0).read_text().splitlines()
        return "\n".join(line.split(" ", 3)[3] for line in lines)


@asynccontextmanager
async def bench(directory: Path, tier: str = "auto", end: bool = True) -> AsyncIterator[Bench]:
    clock = Clock()
    async with Tasks(clock) as tasks:
        runtime = ProcessRuntime(directory, clock, tasks, tier=tier, abandon=20)
        made = Bench(directory, runtime, clock)
        await runtime.start(made.exited, made.lost.set)
        try:
            yield made
        finally:
            if end:
                await runtime.end()
            else:
                await runtime.close()
