"""Leader election by a Lease: of several candidates one works at a time.

The holder renews the lease every two seconds; a candidate takes it over when it has not *seen* it change for the lease's
duration, measured on its own clock, so skewed clocks do no harm. A leader that could not renew for ten seconds stops its
work before anyone else may start (15 seconds). Defaults and fields are client-go's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.tasks import Tasks
from sampan.kube.client import Client
from sampan.kube.objects import Object, copy
from sampan.kube.resources import LEASES
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_micro_time

log = logging.getLogger(__name__)

LEASE_DURATION = 15.0
RENEW_DEADLINE = 10.0
RETRY_PERIOD = 2.0
JITTER = 1.2


class LeadershipLostError(SampanError):
    """The lease could not be renewed in time, or somebody else holds it; the work was stopped."""


class Election:
    """A candidacy for the lease ``namespace/name`` under an identity that no other candidate uses."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_duration: float = LEASE_DURATION,
        renew_deadline: float = RENEW_DEADLINE,
        retry_period: float = RETRY_PERIOD,
    ) -> None:
        if not lease_duration > renew_deadline > retry_period * JITTER:
            raise ValueError("an election needs lease_duration > renew_deadline > 1.2 * retry_period")
        self._client = client
        self._clock = clock
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._lease_duration = lease_duration
        self._renew_deadline = renew_deadline
        self._retry_period = retry_period
        self._observed: Object | None = None
        self._observed_at = 0.0

    @property
    def leader(self) -> str:
        """Who held the lease when last seen; "" when nobody did."""
        return (self._observed or {}).get("spec", {}).get("holderIdentity") or ""

    @property
    def leading(self) -> bool:
        """This candidate holds the lease."""
        return self.leader == self.identity

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait to become leader, then run ``work()`` until it ends, releasing the lease afterwards.

        Raises:
            LeadershipLostError: the lease was lost; ``work`` was cancelled first.
        """
        await self._acquire()
        log.info("%s leads %s/%s", self.identity, self._namespace, self._name)
        try:
            async with Tasks(self._clock, f"leader/{self._name}") as tasks:
                working = tasks.start("work", work())
                renewing = tasks.start("renew", self._renew())
                await asyncio.wait((working, renewing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while not await self._try():
            await self._clock.sleep(self._retry_period * random.uniform(1.0, JITTER))  # noqa: S311 - spreads candidates

    async def _renew(self) -> None:
        renewed = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._retry_period)
            left = self._renew_deadline - (self._clock.monotonic() - renewed)
            try:
                async with self._clock.timeout(max(left, 0.001)):
                    if await self._try():
                        renewed = self._clock.monotonic()
            except TimeoutError:
                pass
            if not self.leading or self._clock.monotonic() - renewed >= self._renew_deadline:
                raise LeadershipLostError(f"{self.identity} lost the lease {self._namespace}/{self._name}")

    async def _try(self) -> bool:
        """Take or renew the lease if it may be; failures to reach the server are a no."""
        try:
            try:
                self._see(await self._client.get(LEASES, self._name, self._namespace))
            except ApiError as error:
                if not error.not_found:
                    raise
                self._see(await self._client.create(LEASES, self._lease(None), self._namespace))
                return True
            assert self._observed is not None
            expires = self._observed_at + self._lease_duration
            if self.leader and not self.leading and self._clock.monotonic() < expires:
                return False
            self._see(await self._client.update(LEASES, self._lease(self._observed)))
            return True
        except ApiError as error:
            if not error.conflict and not error.already_exists:
                log.warning("cannot take the lease %s/%s: %s", self._namespace, self._name, error)
            return False

    def _see(self, lease: Object) -> None:
        if self._observed is None or self._observed.get("spec") != lease.get("spec"):
            self._observed_at = self._clock.monotonic()
        self._observed = lease

    def _lease(self, current: Object | None) -> Object:
        now = format_micro_time(self._clock.now())
        lease: Object = (
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace},
            }
            if current is None
            else copy(current)
        )
        before = lease.get("spec") or {}
        lease["spec"] = before | {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._lease_duration)),
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions") or 0,
        }
        if before.get("holderIdentity") != self.identity:
            lease["spec"]["acquireTime"] = now
            if current is not None:
                lease["spec"]["leaseTransitions"] += 1
        return lease

    async def _release(self) -> None:
        if not self.leading or self._observed is None:
            return
        lease = copy(self._observed)
        now = format_micro_time(self._clock.now())
        lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        try:
            async with self._clock.timeout(self._renew_deadline):
                self._see(await self._client.update(LEASES, lease))
        except (ApiError, TimeoutError) as error:
            log.warning("cannot release the lease %s/%s: %s", self._namespace, self._name, error)
