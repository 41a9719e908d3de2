"""The gate: holds requests for revisions that have no pod yet, or no free place, until they can pass.

Envoy asks ``GET /namespace/revision`` over a Unix socket and waits. The first request to a sleeping revision wakes its
autoscaler at once. A pod on this machine is known by its address before anything of it runs, and is probed from then on while
requests wait; so a request passes as soon as a pod takes requests and Envoy knows its address, without waiting for the pod's
address and readiness to travel through the API.

Answers: 200 pass (``x-slot`` and ``x-slot-pod`` where the revision limits concurrency), 404 no such revision, 503 the line is
full, 504 waited longer than the revision's timeout.

A place is given back when Envoy reports the end of its request. Should that report get lost, because the client went away in the
instant its request was let through, Envoy's load reports show it: a place that is held while fewer requests are under way on its
pod, for `AUDIT_ROUNDS` reports on end, is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kube.client.resources import PODS
from sampan.kube.control.conditions import condition
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key, Object, dig
from sampan.parts.node import PodAddresses
from sampan.parts.serving import keys
from sampan.parts.serving.activator.readiness import Question, answers, question
from sampan.parts.serving.activator.socket import GateServer, Reply
from sampan.parts.serving.activator.throttle import QueueFullError, Slot, Throttle
from sampan.parts.serving.autoscaling.scaler import Scaler
from sampan.parts.serving.control.revision import user_port
from sampan.parts.serving.lookups import pods_of_revision
from sampan.parts.serving.resources import REVISIONS
from sampan.parts.traffic import ClusterLoad, DataPlane

log = logging.getLogger(__name__)

PROBE_EVERY = 0.003
"""Seconds between questions to a pod that requests wait for."""
PROBES_A_SECOND = 1000
"""Questions to all pods together; with many pods waking each is asked less often."""
PROBE_LATER = 0.05
"""Seconds between questions once a pod has taken longer than `PROBE_PATIENCE`."""
PROBE_PATIENCE = 2.0
PROBE_TIMEOUT = 0.3
EARLY_REST = 0.008
"""Seconds after a pod got its address until Envoy is told: its node needs the loop to start it."""
PROBE_EARLY = 0.05
"""Seconds between questions to a pod of which nothing runs yet, as far as its node has told."""
REPORT_EVERY = 0.5
"""Seconds between reports of waiting requests to the autoscaler."""
AUDIT_ROUNDS = 6
"""Load reports over which a place must look unused before it is taken back."""


@dataclass(slots=True, eq=False)
class _Revision:
    """A revision as the gate sees it."""

    key: Key
    uid: str
    throttle: Throttle
    timeout: float
    port: int
    question: Question | None
    reachable: set[str] = field(default_factory=set)
    """Pods (``address:port``) that take requests and that Envoy knows."""
    announced: set[str] = field(default_factory=set)
    """Pods whose address Envoy knows or is about to be told."""
    expected: set[str] = field(default_factory=set)
    """Those of the announced that have not answered yet."""
    early: dict[str, str] = field(default_factory=dict)
    """Addresses by pod uid that the node has told and the pods' statuses have not."""
    begins: dict[str, asyncio.Event] = field(default_factory=dict)
    """Those of them at which nothing runs yet; set once something does."""
    alive: set[str] = field(default_factory=set)
    """Pods that have an address and are not on their way out."""
    ready: set[str] = field(default_factory=set)
    """Those that the kubelet says are ready."""
    probing: set[str] = field(default_factory=set)


class _Held(NamedTuple):
    """A place that a request holds."""

    key: Key
    pod: str
    epoch: int
    """Audit during which it was given."""


class Gate:
    """Serves the gate's socket and follows revisions and pods."""

    def __init__(
        self,
        context: ControlContext,
        plane: DataPlane,
        scaler: Scaler,
        addresses: Callable[[], PodAddresses | None] = lambda: None,
    ) -> None:
        """``addresses()`` gives what tells the addresses of this machine's pods, None as long as nothing does."""
        self._context = context
        self._clock = context.clock
        self._plane = plane
        self._scaler = scaler
        self._find_addresses = addresses
        self._addresses: PodAddresses | None = None
        self._revisions: dict[Key, _Revision] = {}
        self._held: dict[str, _Held] = {}
        # no two gates use the same numbers: Envoy may still report the end of what an earlier one let through
        self._numbers = itertools.count(secrets.randbits(60))
        self._settled = True
        """What is under way on pods is known."""
        self._server = GateServer(self._ask)
        self._followed: list[Callable[[], None]] = []
        """What ends it."""
        self._stopped = False
        self._probes = 0
        self._epoch = 0
        self._rounds: list[dict[str, int]] = []
        """Requests under way by pod, one entry a load report of this audit."""
        self._round: dict[str, int] = {}
        self._last_round: dict[str, int] = {}

    async def start(self) -> None:
        """Listen, and follow what there is."""
        informers = self._context.informers
        revisions, pods = informers.informer(REVISIONS), informers.informer(PODS)
        await revisions.wait_synced()
        await pods.wait_synced()
        revisions.on_change(self._revision_changed)
        pods.on_change(self._pod_changed)
        self._followed = [
            self._plane.on_released(self._release),
            self._plane.on_reset(self._reset),
            self._plane.loads.subscribe(self._loaded),
            self._plane.loads.on_round(self._audit),
        ]
        self._hold_back()
        await self._server.open(self._plane.gate_socket)
        self._context.tasks.keep("gate-report", self._report)

    async def stop(self) -> None:
        """Stop answering; who waits is told to come again."""
        self._stopped = True
        for forget in self._followed:
            forget()
        self._followed.clear()
        for revision in self._revisions.values():
            revision.throttle.dismiss()
        self._server.close()

    def status(self) -> dict[str, int]:
        """Facts for ``sampan status``."""
        return {
            "revisions": len(self._revisions),
            "awake": sum(bool(one.reachable) for one in self._revisions.values()),
            "waiting": sum(one.throttle.waiting for one in self._revisions.values()),
        }

    def busy(self, key: Key) -> dict[str, int]:
        """Requests under way by pod IP: exact where the revision limits them, else as Envoy reported last."""
        revision = self._revisions.get(key)
        if revision is None:
            return {}
        counts = revision.throttle.in_flight if revision.throttle.limit else self._last_round
        return {_split(pod)[0]: counts.get(pod, 0) for pod in revision.alive}

    # -- requests

    def _ask(self, path: str, reply: Reply) -> Callable[[], None] | None:
        namespace, _, name = path.removeprefix("/").partition("/")
        revision = self._revisions.get(Key(namespace, name))
        if self._stopped:
            reply(HTTPStatus.SERVICE_UNAVAILABLE, "the gate closes", {})
            return None
        if revision is None:
            reply(HTTPStatus.NOT_FOUND, f"revision {namespace}/{name} not found", {})
            return None
        slot = revision.throttle.take() if not revision.throttle.waiting else None
        if slot is not None:
            self._pass(revision, slot, reply)
            return None
        return self._wait(revision, reply)

    def _pass(self, revision: _Revision, slot: Slot, reply: Reply) -> None:
        if not slot.limited:
            reply(HTTPStatus.OK, "", {})
            return
        number = str(next(self._numbers))
        self._held[number] = _Held(revision.key, slot.pod, self._epoch)
        reply(HTTPStatus.OK, "", {"x-slot": number, "x-slot-pod": slot.pod})

    def _wait(self, revision: _Revision, reply: Reply) -> Callable[[], None] | None:
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        try:
            revision.throttle.wait(future)
        except QueueFullError:
            reply(HTTPStatus.SERVICE_UNAVAILABLE, "pending request queue full", {})
            return None
        timer = self._clock.call_later(revision.timeout, future.cancel)
        left = False

        def settled(_: asyncio.Future[Slot]) -> None:
            timer.cancel()
            if left:
                return
            if future.cancelled():
                revision.throttle.leave(future)
                reply(HTTPStatus.GATEWAY_TIMEOUT, "activator request timeout", {})
            elif (error := future.exception()) is not None:
                reply(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {})
            else:
                self._pass(revision, future.result(), reply)

        def leave() -> None:
            nonlocal left
            left = True
            revision.throttle.leave(future)
            future.cancel()

        future.add_done_callback(settled)
        if not revision.reachable:
            self._follow_addresses()
            self._scaler.first(revision.key)
            for pod in self._pods_of(revision):
                self._pod_changed(None, pod)
        return leave

    def _release(self, number: str) -> None:
        held = self._held.pop(number, None)
        if held is not None and held.key in self._revisions:
            self._revisions[held.key].throttle.give_back(held.pod)

    def _reset(self) -> None:
        self._held.clear()
        for revision in self._revisions.values():
            revision.throttle.forget_requests()

    async def _report(self) -> None:
        """Tell the autoscaler how many requests wait."""
        while True:
            await self._clock.sleep(REPORT_EVERY)
            for revision in list(self._revisions.values()):
                if revision.throttle.waiting:
                    self._scaler.waiting(revision.key, revision.throttle.waiting, REPORT_EVERY)

    # -- places whose end was not reported

    def _loaded(self, load: ClusterLoad) -> None:
        for (host, port), one in load.endpoints.items():
            pod = f"{host}:{port}"
            self._round[pod] = self._round.get(pod, 0) + one.in_progress

    def _audit(self) -> None:
        """A load report is complete; after enough of them, take back places that were not used in any."""
        self._rounds.append(self._round)
        self._last_round, self._round = self._round, {}
        if not self._settled:
            self._settle()
        if len(self._rounds) < AUDIT_ROUNDS:
            return
        rounds, self._rounds = self._rounds, []
        before, self._epoch = self._epoch, self._epoch + 1
        old: dict[str, list[str]] = {}
        for number, held in self._held.items():
            if held.epoch < before:
                old.setdefault(held.pod, []).append(number)
        for pod, numbers in old.items():
            # a request that was under way all the time is in every report
            used = min(one.get(pod, 0) for one in rounds)
            for number in numbers[: max(0, len(numbers) - used)]:
                log.info("place %s on %s was not given back; it is free", number, pod)
                self._release(number)

    # -- a gate that begins while requests of an earlier one are under way

    def _hold_back(self) -> None:
        """Let nobody through to limited revisions until Envoy has told what is under way."""
        self._settled = False
        for revision in self._revisions.values():
            revision.throttle.held_back = True

    def _settle(self) -> None:
        """Envoy's first report: what it shows under way holds its places until an audit finds them unused."""
        self._settled = True
        for revision in self._revisions.values():
            throttle = revision.throttle
            for pod in revision.alive if throttle.limit else ():
                count = self._last_round.get(pod, 0)
                self._held |= {str(next(self._numbers)): _Held(revision.key, pod, self._epoch) for _ in range(count)}
                if pod in throttle.in_flight:
                    throttle.in_flight[pod] += count
            throttle.held_back = False
            throttle.admit()

    def _occupied(self) -> Counter[str]:
        """Places that requests hold, by pod."""
        return Counter(held.pod for held in self._held.values())

    # -- revisions and pods

    def _revision_changed(self, old: Object | None, new: Object | None) -> None:
        one = new or old
        if one is None or self._stopped:
            return
        key = Key.of(one)
        known = self._revisions.get(key)
        if known is not None and (new is None or known.uid != new["metadata"]["uid"]):
            del self._revisions[key]
            known.throttle.dismiss()
            known.announced.clear()
            self._announce(known)
            known = None
        if new is None or known is not None:
            return
        limit = int(new["spec"].get("containerConcurrency") or 0)
        timeout = float(new["spec"].get("timeoutSeconds") or 300)
        uid = new["metadata"]["uid"]
        throttle = Throttle(limit, held_back=not self._settled)
        self._revisions[key] = _Revision(key, uid, throttle, timeout, user_port(new), question(new))
        for pod in self._pods_of(self._revisions[key]):
            self._pod_changed(None, pod)

    def _follow_addresses(self) -> None:
        """Hear of pods' addresses from the node; it may have come up after the gate."""
        if self._addresses is None and (found := self._find_addresses()) is not None:
            self._addresses = found
            self._followed.append(found.subscribe(self._addressed))

    def _addressed(self, pod: Object, address: str, runs: bool) -> None:
        """A pod has its address and is about to be started, or a container of it has begun."""
        revision = self._of_pod(pod)
        if revision is None:
            return
        uid, told = pod["metadata"]["uid"], f"{address}:{door(address, revision.port)}"
        if runs:
            if told in revision.begins:
                revision.begins[told].set()
            return
        before = revision.early.pop(uid, told)
        if before != told:  # its sandbox had to be made again
            self._gone(revision, before)
        revision.early[uid] = told
        revision.begins[told] = asyncio.Event()
        self._pod_changed(None, pod)

    def _of_pod(self, pod: Object) -> _Revision | None:
        name = dig(pod, "metadata", "labels", keys.REVISION)
        revision = self._revisions.get(Key(pod["metadata"]["namespace"], name)) if name else None
        if revision is None or revision.uid != pod["metadata"]["labels"].get(keys.REVISION_UID):
            return None
        return revision

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old
        revision = self._of_pod(pod) if pod is not None and not self._stopped else None
        if pod is None or revision is None:
            return
        address, uid = _address(pod, revision.port), pod["metadata"]["uid"]
        before = _address(old, revision.port) if old is not None else ""
        if before not in ("", address) and not self._is_of_another(revision, before, uid):
            self._gone(revision, before)  # its sandbox was lost, and it has another address now
        if address:
            self._no_longer_early(revision, uid)
        address = address or revision.early.get(uid, "")
        if not address:
            return
        ready = _is_ready(pod)
        if new is None or pod["metadata"].get("deletionTimestamp") or not _runs(pod):
            self._no_longer_early(revision, uid)
            self._gone(revision, address)
            return
        revision.alive.add(address)
        (revision.ready.add if ready else revision.ready.discard)(address)
        if address in revision.reachable:
            if old is not None and _is_ready(old) and not ready:
                self._take_out(revision, address)
            return
        if address not in revision.probing and (ready or (revision.throttle.waiting and revision.question is not None)):
            revision.probing.add(address)
            self._context.tasks.start(f"gate-probe/{address}", self._until_reachable(revision, address, ready))

    async def _until_reachable(self, revision: _Revision, address: str, known_ready: bool) -> None:
        """Ask until the pod takes requests, tell Envoy its address, then let requests go there."""
        try:
            if address in revision.begins:
                await Clock().sleep(EARLY_REST)
            if not self._stands(revision, address):  # it may have gone before this began
                return
            limited = revision.throttle.limit > 0
            if not revision.reachable and (limited or not revision.announced):
                # nobody is let through yet, so Envoy can learn the address while the pod still starts; of a revision without
                # a limit one address only, for once a pod takes requests Envoy sends them to all it knows
                revision.announced.add(address)
                revision.expected.add(address)
                self._announce(revision)
            if not known_ready and not await self._takes_requests(revision, address):
                return
            if not self._stands(revision, address):  # or while it answered
                return
            revision.expected.discard(address)
            if not limited:
                revision.announced -= revision.expected
                revision.expected.clear()
            revision.announced.add(address)
            await self._tell(revision)
            if self._stands(revision, address) and address in revision.announced:
                revision.reachable.add(address)
                revision.throttle.set_pods(revision.reachable, self._occupied())
        finally:
            revision.probing.discard(address)

    async def _takes_requests(self, revision: _Revision, address: str) -> bool:
        assert revision.question is not None
        host = address.rpartition(":")[0]
        # programs start on the machine's time, also while the platform's is frozen
        machine = Clock()
        began = machine.monotonic()
        while self._stands(revision, address):
            if address in revision.ready:
                return True
            begins = revision.begins.get(address)
            if begins is not None and not begins.is_set():
                with contextlib.suppress(TimeoutError):
                    async with machine.timeout(PROBE_EARLY):
                        await begins.wait()
            self._probes += 1
            try:
                async with self._clock.patience(PROBE_TIMEOUT):
                    if await answers(revision.question, host):
                        return True
                late = machine.monotonic() - began > PROBE_PATIENCE
                await machine.sleep(PROBE_LATER if late else max(PROBE_EVERY, self._probes / PROBES_A_SECOND))
            except TimeoutError:
                continue
            finally:
                self._probes -= 1
        return False

    def _stands(self, revision: _Revision, address: str) -> bool:
        return address in revision.alive and self._revisions.get(revision.key) is revision

    def _is_of_another(self, revision: _Revision, address: str, uid: str) -> bool:
        """Whether another pod of the revision has got the address meanwhile."""
        pods = self._pods_of(revision)
        return any(_address(one, revision.port) == address and one["metadata"]["uid"] != uid for one in pods)

    def _pods_of(self, revision: _Revision) -> list[Object]:
        return pods_of_revision(self._context.informers.informer(PODS), revision.key.namespace, revision.uid)

    def _no_longer_early(self, revision: _Revision, uid: str) -> None:
        begins = revision.begins.pop(revision.early.pop(uid, ""), None)
        if begins is not None:
            begins.set()

    def _gone(self, revision: _Revision, address: str) -> None:
        """There is no pod at this address any more, or will not be for long."""
        revision.alive.discard(address)
        revision.ready.discard(address)
        revision.begins.pop(address, None)
        self._take_out(revision, address)

    def _take_out(self, revision: _Revision, address: str) -> None:
        """No further requests to this pod."""
        if address in revision.reachable:
            revision.reachable.discard(address)
            revision.throttle.set_pods(revision.reachable)
        revision.expected.discard(address)
        if address in revision.announced:
            revision.announced.discard(address)
            self._announce(revision)

    def _announce(self, revision: _Revision) -> None:
        self._context.tasks.start(f"gate-announce/{revision.key}", self._tell(revision))

    async def _tell(self, revision: _Revision) -> None:
        """Have Envoy know the addresses as they are when this runs: of two such tasks either may be the first."""
        await self._plane.announce(revision.key, frozenset(map(_split, revision.announced)))


def _address(pod: Object, port: int) -> str:
    found = dig(pod, "status", "podIP")
    return f"{found}:{door(found, port)}" if found else ""


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _is_ready(pod: Object) -> bool:
    return bool((condition(pod, "Ready") or {}).get("status") == "True")


def _runs(pod: Object) -> bool:
    return dig(pod, "status", "phase") in ("Pending", "Running")
