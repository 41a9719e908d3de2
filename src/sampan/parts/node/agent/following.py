"""Volumes that follow their sources: ConfigMaps, Secrets, labels, tokens. What a running pod sees is brought up to date, and a
pod that waits for something that was missing tries again at once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sampan.kube.objects import Object, dig
from sampan.kube.status import ApiError

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent

log = logging.getLogger(__name__)

REFRESH_DEBOUNCE = 0.5
TOKEN_CHECK = 60.0


class Following:
    """Keeps the payload volumes of a node's pods current."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._stale: set[str] = set()
        self._refreshing = False

    def source_changed(self, old: Object | None, new: Object | None) -> None:
        changed = new or old
        assert changed is not None
        namespace, name = changed["metadata"]["namespace"], changed["metadata"]["name"]
        for worker in self._agent.workers.values():
            if worker.pod["metadata"]["namespace"] != namespace:
                continue
            if name in _sources(worker.pod):
                self.refresh(worker.uid)
            if not worker.state.sandbox or any(
                c.reason == "CreateContainerConfigError" for c in worker.state.containers.values()
            ):
                for container in worker.state.containers.values():
                    if container.reason == "CreateContainerConfigError":
                        container.retry_at = container.delay = 0.0
                worker.state.sandbox_retry_at = 0.0
                worker.wake()

    def claim_changed(self, _old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        for worker in self._agent.workers.values():
            if not worker.state.sandbox and worker.state.sandbox_retry_at:
                worker.state.sandbox_retry_at = 0.0
                worker.wake()

    def refresh(self, uid: str) -> None:
        self._stale.add(uid)
        if not self._refreshing:
            self._refreshing = True
            self._agent.tasks.start("refresh-volumes", self._refresh_stale())

    async def _refresh_stale(self) -> None:
        try:
            await self._agent.clock.sleep(REFRESH_DEBOUNCE)
            while self._stale:
                worker = self._agent.workers.get(self._stale.pop())
                if worker is None or not worker.state.sandbox:
                    continue
                try:
                    facts = await self._agent.facts(worker.pod, worker.state.address)
                    await asyncio.to_thread(self._agent.volumes.refresh, facts)
                except (ApiError, OSError) as error:
                    log.warning("%s: volumes not refreshed: %s", worker.key, error)
        finally:
            self._refreshing = False

    async def watch_tokens(self) -> None:
        while True:
            await self._agent.clock.sleep(TOKEN_CHECK)
            now = self._agent.clock.time()
            for uid, held in list(self._agent.tokens.held.items()):
                if any(until <= now for _token, until in held.values()) and uid in self._agent.workers:
                    self.refresh(uid)


def _sources(pod: Object) -> set[str]:
    """Names of the ConfigMaps and Secrets that volumes of a pod show."""
    names: set[str] = set()
    for volume in pod["spec"].get("volumes") or ():
        sources = [volume, *(dig(volume, "projected", "sources", default=()))]
        for source in sources:
            if part := source.get("configMap"):
                names.add(part.get("name", ""))
            if part := source.get("secret"):
                names.add(part.get("secretName") or part.get("name", ""))
    return names
