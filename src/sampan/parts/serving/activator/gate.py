"""The gate: holds requests for revisions that have no pod yet, or no free place, until they can pass.

Envoy asks ``GET /namespace/revision`` over a Unix socket and waits. The first request to a sleeping revision wakes its
autoscaler at once. Pods are probed here while requests wait, so that a request passes as soon as a pod accepts connections
and Envoy knows its address, without waiting for the pod's readiness to travel through the API.

Answers: 200 pass (``x-slot`` and ``x-slot-pod`` where the revision limits concurrency), 404 no such revision, 503 the line is
full, 504 waited longer than the revision's timeout.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from sampan.kube.client.resources import PODS
from sampan.kube.control.conditions import condition
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key, Object, dig
from sampan.parts.serving import keys
from sampan.parts.serving.activator.throttle import QueueFullError, Slot, Throttle
from sampan.parts.serving.autoscaling.scaler import Scaler
from sampan.parts.serving.control.revision import user_port
from sampan.parts.serving.resources import REVISIONS
from sampan.parts.traffic import DataPlane

log = logging.getLogger(__name__)

PROBE_EVERY = 0.005
"""Seconds between connection attempts to a pod that requests wait for."""
PROBE_TIMEOUT = 0.3
REPORT_EVERY = 0.5
"""Seconds between reports of waiting requests to the autoscaler."""


@dataclass(slots=True)
class _Revision:
    """A revision as the gate sees it."""

    key: Key
    throttle: Throttle
    timeout: float
    port: int
    uid: str
    reachable: set[str] = field(default_factory=set)
    """Pods (``address:port``) that accept connections and Envoy knows."""
    probing: set[str] = field(default_factory=set)


class Gate:
    """Serves the gate's socket and follows revisions and pods."""

    def __init__(self, context: ControlContext, plane: DataPlane, scaler: Scaler) -> None:
        self._context = context
        self._clock = context.clock
        self._plane = plane
        self._scaler = scaler
        self._revisions: dict[Key, _Revision] = {}
        self._slots: dict[str, tuple[Key, str]] = {}
        self._numbers = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen, and follow what there is."""
        informers = self._context.informers
        revisions, pods = informers.informer(REVISIONS), informers.informer(PODS)
        await revisions.wait_synced()
        await pods.wait_synced()
        revisions.on_change(self._revision_changed)
        pods.on_change(self._pod_changed)
        self._plane.on_released(self._release)
        self._plane.on_reset(self._reset)
        await self._listen(self._plane.gate_socket)
        self._context.tasks.keep("gate-report", self._report)

    async def stop(self) -> None:
        """Stop answering."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def status(self) -> dict[str, int]:
        """Facts for ``sampan status``."""
        return {
            "revisions": len(self._revisions),
            "awake": sum(bool(one.reachable) for one in self._revisions.values()),
            "waiting": sum(one.throttle.waiting for one in self._revisions.values()),
        }

    async def _listen(self, socket: Path) -> None:
        await asyncio.to_thread(socket.unlink, missing_ok=True)
        application = web.Application()
        application.router.add_get("/{namespace}/{revision}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(socket)).start()
        await asyncio.to_thread(socket.chmod, 0o600)

    # -- requests

    async def _handle(self, request: web.Request) -> web.Response:
        key = Key(request.match_info["namespace"], request.match_info["revision"])
        revision = self._revisions.get(key)
        if revision is None:
            return web.Response(status=404, text=f"revision {key} not found")
        slot = revision.throttle.take() if not revision.throttle.waiting else None
        if slot is None:
            try:
                slot = await self._wait(revision)
            except QueueFullError:
                return web.Response(status=503, text="pending request queue full")
            except TimeoutError:
                return web.Response(status=504, text="activator request timeout")
        if not slot.limited:
            return web.Response()
        number = str(next(self._numbers))
        self._slots[number] = (key, slot.pod)
        return web.Response(headers={"x-slot": number, "x-slot-pod": slot.pod})

    async def _wait(self, revision: _Revision) -> Slot:
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        revision.throttle.wait(future)
        if not revision.throttle.in_flight:
            self._scaler.first(revision.key)
            self._probe_pods(revision)
        try:
            async with self._clock.timeout(revision.timeout):
                return await future
        except BaseException:
            revision.throttle.leave(future)
            raise

    def _release(self, number: str) -> None:
        held = self._slots.pop(number, None)
        if held is not None and held[0] in self._revisions:
            self._revisions[held[0]].throttle.give_back(held[1])

    def _reset(self) -> None:
        self._slots.clear()
        for revision in self._revisions.values():
            revision.throttle.forget_requests()

    async def _report(self) -> None:
        """Tell the autoscaler how many requests wait."""
        while True:
            await self._clock.sleep(REPORT_EVERY)
            for revision in list(self._revisions.values()):
                if revision.throttle.waiting:
                    self._scaler.waiting(revision.key, revision.throttle.waiting, REPORT_EVERY)

    # -- revisions and pods

    def _revision_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self._revisions.pop(Key.of(old), None)
            return
        key = Key.of(new)
        limit = int(new["spec"].get("containerConcurrency") or 0)
        if key not in self._revisions:
            timeout = float(new["spec"].get("timeoutSeconds") or 300)
            self._revisions[key] = _Revision(key, Throttle(limit), timeout, user_port(new), new["metadata"]["uid"])
            for pod in self._pods(key, new["metadata"]["uid"]):
                self._pod_changed(None, pod)

    def _pods(self, key: Key, uid: str) -> list[Object]:
        return self._context.informers.informer(PODS).objects(key.namespace, {keys.REVISION_UID: uid})

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old
        name = dig(pod, "metadata", "labels", keys.REVISION)
        if pod is None or not name:
            return
        revision = self._revisions.get(Key(pod["metadata"]["namespace"], name))
        if revision is None:
            return
        address = _address(pod, revision.port)
        if new is None or pod["metadata"].get("deletionTimestamp") or not _runs(pod):
            if address in revision.reachable:
                self._set_reachable(revision, revision.reachable - {address})
            return
        if not address or address in revision.reachable:
            return
        ready = (condition(pod, "Ready") or {}).get("status") == "True"
        if ready or revision.throttle.waiting:
            self._probe(revision, address, known_ready=ready)

    def _probe_pods(self, revision: _Revision) -> None:
        for pod in self._pods(revision.key, revision.uid):
            self._pod_changed(None, pod)

    def _probe(self, revision: _Revision, address: str, *, known_ready: bool) -> None:
        if address in revision.probing:
            return
        revision.probing.add(address)
        self._context.tasks.start(f"gate-probe/{address}", self._until_reachable(revision, address, known_ready))

    async def _until_reachable(self, revision: _Revision, address: str, known_ready: bool) -> None:
        """Connect until the pod accepts, tell Envoy its address, then let requests go there."""
        try:
            if not known_ready and not await self._accepts(revision, address):
                return
            host, _, port = address.rpartition(":")
            early = {(host, int(port))} | {_split(one) for one in revision.reachable}
            await self._plane.announce(revision.key, frozenset(early))
            if self._still_runs(revision, address):
                self._set_reachable(revision, revision.reachable | {address})
        finally:
            revision.probing.discard(address)

    async def _accepts(self, revision: _Revision, address: str) -> bool:
        host, _, port = address.rpartition(":")
        while self._still_runs(revision, address) and self._revisions.get(revision.key) is revision:
            try:
                async with self._clock.timeout(PROBE_TIMEOUT):
                    _, writer = await asyncio.open_connection(host, int(port))
            except (OSError, TimeoutError):
                await self._clock.sleep(PROBE_EVERY)
                continue
            writer.close()
            return True
        return False

    def _still_runs(self, revision: _Revision, address: str) -> bool:
        return any(
            _address(pod, revision.port) == address and _runs(pod) and not pod["metadata"].get("deletionTimestamp")
            for pod in self._pods(revision.key, revision.uid)
        )

    def _set_reachable(self, revision: _Revision, reachable: set[str]) -> None:
        revision.reachable = set(reachable)
        revision.throttle.set_pods(revision.reachable)
        gone = frozenset(_split(one) for one in revision.reachable)
        self._context.tasks.start(f"gate-announce/{revision.key}", self._plane.announce(revision.key, gone))


def _address(pod: Object, port: int) -> str:
    found = dig(pod, "status", "podIP")
    return f"{found}:{port}" if found else ""


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _runs(pod: Object) -> bool:
    return dig(pod, "status", "phase") in ("Pending", "Running")
