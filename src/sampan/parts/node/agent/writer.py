"""Writes pod statuses: the newest state of each pod, one write a pod at a time, a few pods at once.

Others write there too: a node that was not ready for a moment finds its pods marked so by the node lifecycle controller, perhaps
after it has told that they are ready again. So what the object says of a pod's readiness is compared with what was last told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sampan.kernel.clock import Clock
from sampan.kube.objects import Object
from sampan.kube.resources import PODS
from sampan.kube.status import ApiError
from sampan.parts.node.agent.status import PASSING_CONDITIONS

if TYPE_CHECKING:
    from sampan.parts.node.agent.agent import Agent
    from sampan.parts.node.agent.worker import PodWorker

log = logging.getLogger(__name__)

CONCURRENT = 16
RETRY = 1.0
PASSING = 0.05
"""Seconds that a status which tells only of progress may wait for the next one."""


def _with_nulls(status: Object, told: set[str]) -> Object:
    """A strategic merge keeps what a patch does not name: what has gone must be said to be gone."""
    gone = {"reason": None, "message": None}
    conditions: list[Object] = [{**gone, **condition} for condition in status.get("conditions") or ()]
    present = {one["type"] for one in conditions}
    conditions += [{"$patch": "delete", "type": kind} for kind in PASSING_CONDITIONS if kind in told - present]
    return {**gone, **status, "conditions": conditions}


def _passing(pod: Object, status: Object | None) -> bool:
    """Nothing is told but that containers are being created, or have just begun and are not ready yet."""
    if status is not None and status.get("phase") == "Running" and (pod.get("status") or {}).get("phase") != "Running":
        entries = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        return _readiness(status) == "False" and not any(entry["restartCount"] for entry in entries)
    if status is None or status.get("phase") != "Pending":
        return False
    waiting = [entry["state"].get("waiting", {}).get("reason") for entry in status.get("containerStatuses") or ()]
    return not status.get("initContainerStatuses") and all(reason == "ContainerCreating" for reason in waiting)


def _readiness(status: Object | None) -> str | None:
    conditions = (status or {}).get("conditions") or ()
    return next((one["status"] for one in conditions if one["type"] == "Ready"), None)


class StatusWriter:
    """Coalesces: a pod whose status changes faster than it can be written is written less often, never wrongly."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._dirty: set[PodWorker] = set()
        self._writing: dict[PodWorker, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)

    def write(self, worker: PodWorker) -> None:
        """This worker's status is to be written."""
        self._dirty.add(worker)
        if worker in self._writing:
            return
        if _passing(worker.pod, worker.status):
            # a pod on its way up is usually there before anybody could look
            self._agent.tasks.start(f"{worker.key}/status-later", self._later(worker))
        else:
            self._begin(worker)

    async def _later(self, worker: PodWorker) -> None:
        # programs start on the machine's time, also while the platform's is frozen
        await Clock().sleep(PASSING)
        self._begin(worker)

    def _begin(self, worker: PodWorker) -> None:
        if worker in self._dirty and worker not in self._writing:
            self._writing[worker] = self._agent.tasks.start(f"{worker.key}/status", self._write(worker))

    def review(self, worker: PodWorker) -> None:
        """Tell a pod's readiness again where the object has another since, unless this node is in no state to tell."""
        status = worker.status
        if status is None or worker.gone or worker in self._dirty or worker in self._writing:
            return
        if not self._agent.runtime_up or int(worker.pod["metadata"]["resourceVersion"]) <= worker.written:
            return
        if _readiness(worker.pod.get("status")) == _readiness(status):
            return
        wait = worker.amended + RETRY - self._agent.clock.monotonic()
        if wait > 0:  # somebody insists: not as fast as we can
            self._agent.after(wait, self.review, worker)
            return
        worker.amended = self._agent.clock.monotonic()
        log.info("%s: its readiness is told again", worker.key)
        self.write(worker)

    async def flush(self, worker: PodWorker) -> None:
        """Wait until this worker's newest status is written (or its object is gone)."""
        self._begin(worker)
        while worker in self._writing:
            await asyncio.wait([self._writing[worker]])

    async def _write(self, worker: PodWorker) -> None:
        try:
            while worker in self._dirty:
                async with self._slots:
                    self._dirty.discard(worker)
                    status = worker.status
                    if status is None or worker.gone:
                        return
                    metadata = worker.pod["metadata"]
                    # what was written a moment ago may not have come back in the object yet
                    worker.told |= {
                        condition["type"]
                        for told in (status, worker.pod.get("status") or {})
                        for condition in told.get("conditions") or ()
                        if condition["type"] in PASSING_CONDITIONS
                    }
                    patch = {
                        "metadata": {"uid": worker.uid},
                        "status": _with_nulls(status, worker.told),
                    }
                    try:
                        found = await self._agent.client.patch(
                            PODS,
                            metadata["name"],
                            patch,
                            metadata["namespace"],
                            patch_type="strategic",
                            subresource="status",
                        )
                        worker.written = int(found["metadata"]["resourceVersion"])
                        continue
                    except ApiError as error:
                        if error.code == 422:
                            log.warning("%s: status refused: %s", worker.key, error)
                            continue
                        if error.not_found or (error.conflict and "uid" in error.message.lower()):
                            continue
                        if not error.conflict:
                            log.warning("%s: status not written: %s", worker.key, error)
                self._dirty.add(worker)
                await self._agent.clock.sleep(RETRY)
        finally:
            self._writing.pop(worker, None)
        self.review(worker)
