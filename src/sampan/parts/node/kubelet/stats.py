"""What pods use: the summary API, and the two Prometheus texts that metrics agents scrape."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil

from sampan.kube.types.duration import format_time
from sampan.parts.node.errors import RuntimeLostError
from sampan.parts.node.runtime.interface import Usage

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.agent.state import ContainerState
    from sampan.parts.node.agent.worker import PodWorker


SAMPLE_EVERY = 15.0
"""Seconds between samples nobody asked for, as the metrics server's resolution."""


class Sample:
    """One look at every running container."""

    def __init__(self, wall: float, usage: dict[str, Usage], workers: list[PodWorker]) -> None:
        self.wall = wall
        self.usage = usage
        self.workers = workers

    def containers(self) -> list[tuple[PodWorker, ContainerState, Usage]]:
        """Each running container with its pod and use."""
        return [
            (worker, state, self.usage[state.id])
            for worker in self.workers
            for state in worker.state.containers.values()
            if state.running and state.id in self.usage
        ]


class Statistics:
    """Takes samples and keeps one earlier, so that a rate of CPU use can be told."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._before: dict[str, tuple[float, int]] = {}
        self._rates: dict[str, float] = {}
        self._machine_before: tuple[float, float] | None = None
        self._machine_rate = 0.0

    async def sample(self) -> Sample:
        """Look now."""
        agent = self._agent
        self._look_at_machine()
        workers = list(agent.workers.values())
        running = [state.id for worker in workers for state in worker.state.containers.values() if state.running]
        usage = await agent.runtime.usage(running)
        now = agent.clock.monotonic()
        for identity, used in usage.items():
            before = self._before.get(identity)
            if before is None:
                self._before[identity] = (now, used.cpu_ns)
            elif now - before[0] >= 1.0:
                self._rates[identity] = (used.cpu_ns - before[1]) / (now - before[0])
                self._before[identity] = (now, used.cpu_ns)
        for identity in set(self._before) - set(usage):
            del self._before[identity]
            self._rates.pop(identity, None)
        return Sample(agent.clock.time(), usage, workers)

    def nanocores(self, identity: str) -> int:
        """CPU use of a container in billionths of a core, over the time between the last two samples."""
        return int(self._rates.get(identity, 0.0))

    def machine(self) -> tuple[int, int]:
        """The whole machine's CPU use (billionths of a core) and memory in use (bytes)."""
        memory = psutil.virtual_memory()
        return int(self._machine_rate * 1e9), memory.total - memory.available

    def _look_at_machine(self) -> None:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        now = self._agent.clock.monotonic()
        if self._machine_before is None:
            self._machine_before = (now, busy)
        elif now - self._machine_before[0] >= 1.0:
            self._machine_rate = max(0.0, (busy - self._machine_before[1]) / (now - self._machine_before[0]))
            self._machine_before = (now, busy)

    async def run(self) -> None:
        """Sample regularly, so that whoever asks finds a rate: containers at rest cost one message and a few reads each."""
        while True:
            # without a runtime there is nothing to sample; the agent tells about that itself
            with contextlib.suppress(RuntimeLostError):
                await self.sample()
            await self._agent.clock.sleep(SAMPLE_EVERY)

    async def summary(self) -> dict[str, Any]:
        """``/stats/summary``."""
        sample = await self.sample()
        stamp = format_time(datetime.fromtimestamp(sample.wall, UTC))
        pods: dict[str, dict[str, Any]] = {}
        for worker, state, usage in sample.containers():
            metadata = worker.pod["metadata"]
            pod = pods.setdefault(
                worker.uid,
                {
                    "podRef": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": worker.uid},
                    "startTime": format_time(datetime.fromtimestamp(worker.state.started, UTC)),
                    "containers": [],
                },
            )
            nanocores = self.nanocores(state.id)
            pod["containers"].append(
                {
                    "name": state.name,
                    "startTime": format_time(datetime.fromtimestamp(state.started, UTC)),
                    "cpu": {"time": stamp, "usageNanoCores": nanocores, "usageCoreNanoSeconds": usage.cpu_ns},
                    "memory": {"time": stamp, "workingSetBytes": usage.memory_bytes, "rssBytes": usage.rss_bytes},
                }
            )
        for pod in pods.values():
            pod["cpu"] = {
                "time": stamp,
                "usageNanoCores": sum(c["cpu"]["usageNanoCores"] for c in pod["containers"]),
                "usageCoreNanoSeconds": sum(c["cpu"]["usageCoreNanoSeconds"] for c in pod["containers"]),
            }
            pod["memory"] = {
                "time": stamp,
                "workingSetBytes": sum(c["memory"]["workingSetBytes"] for c in pod["containers"]),
            }
        nanocores, memory = self.machine()
        total = int(self._machine_before[1] * 1e9) if self._machine_before is not None else 0
        return {
            "node": {
                "nodeName": self._agent.name,
                "cpu": {"time": stamp, "usageNanoCores": nanocores, "usageCoreNanoSeconds": total},
                "memory": {"time": stamp, "workingSetBytes": memory},
            },
            "pods": list(pods.values()),
        }

    async def resource_text(self) -> str:
        """``/metrics/resource``."""
        sample = await self.sample()
        stamp = int(sample.wall * 1000)
        cpu, memory, started = [], [], []
        total_cpu = total_memory = 0
        for worker, state, usage in sample.containers():
            metadata = worker.pod["metadata"]
            labels = f'container="{state.name}",namespace="{metadata["namespace"]}",pod="{metadata["name"]}"'
            cpu.append(f"container_cpu_usage_seconds_total{{{labels}}} {usage.cpu_ns / 1e9} {stamp}")
            memory.append(f"container_memory_working_set_bytes{{{labels}}} {usage.memory_bytes} {stamp}")
            started.append(f"container_start_time_seconds{{{labels}}} {state.started}")
            total_cpu += usage.cpu_ns
            total_memory += usage.memory_bytes
        lines = ["# TYPE container_cpu_usage_seconds_total counter", *cpu]
        lines += ["# TYPE container_memory_working_set_bytes gauge", *memory]
        lines += ["# TYPE container_start_time_seconds gauge", *started]
        lines += [
            "# TYPE node_cpu_usage_seconds_total counter",
            f"node_cpu_usage_seconds_total {total_cpu / 1e9} {stamp}",
        ]
        lines += ["# TYPE node_memory_working_set_bytes gauge", f"node_memory_working_set_bytes {total_memory} {stamp}"]
        lines += ["# TYPE resource_scrape_error gauge", "resource_scrape_error 0"]
        return "\n".join(lines) + "\n"

    async def cadvisor_text(self) -> str:
        """``/metrics/cadvisor``: the metrics dashboards use."""
        sample = await self.sample()
        stamp = int(sample.wall * 1000)
        series: dict[str, list[str]] = {
            "container_cpu_usage_seconds_total": [],
            "container_memory_working_set_bytes": [],
            "container_memory_rss": [],
            "container_processes": [],
        }
        for worker, state, usage in sample.containers():
            metadata = worker.pod["metadata"]
            labels = (
                f'container="{state.name}",id="/{worker.uid}/{state.id}",image="{state.image}",name="{state.id}",'
                f'namespace="{metadata["namespace"]}",pod="{metadata["name"]}"'
            )
            for name, value in (
                ("container_cpu_usage_seconds_total", usage.cpu_ns / 1e9),
                ("container_memory_working_set_bytes", usage.memory_bytes),
                ("container_memory_rss", usage.rss_bytes),
                ("container_processes", usage.pids),
            ):
                series[name].append(f"{name}{{{labels}}} {value} {stamp}")
        lines = []
        for name, values in series.items():
            lines += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", *values]
        return "\n".join(lines) + "\n"
