"""TTL after finished: deletes a Job ``ttlSecondsAfterFinished`` after it ended."""

from __future__ import annotations

from sampan.kube.client.resources import JOBS
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key
from sampan.kube.status import ApiError
from sampan.parts.workloads import pods


class FinishedTTLController(Controller):
    """Finished Jobs with a time to live."""

    name = "ttl-after-finished-controller"

    def sources(self) -> list[Source]:
        return [For(JOBS)]

    async def reconcile(self, key: Key) -> float | None:
        job = self.informer(JOBS).get(key)
        if job is None or job["metadata"].get("deletionTimestamp"):
            return None
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        ended = next(
            (
                condition
                for kind in ("Complete", "Failed")
                if (condition := pods.condition(job, kind)) is not None and condition["status"] == "True"
            ),
            None,
        )
        if ttl is None or ended is None:
            return None
        left: float = ttl - (self.clock.now() - pods.parse_time(ended["lastTransitionTime"])).total_seconds()
        if left > 0:
            return left
        try:
            await self.client.delete(
                JOBS, key.name, key.namespace, uid=job["metadata"]["uid"], propagation="Foreground"
            )
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return None
