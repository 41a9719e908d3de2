"""A part: one capability of the platform, and its life.

Every capability (messaging, traffic, serving, ...) is a `Part` with the same life: its settings are decoded into a
documented struct, then `provision` → `start` → `ready` → `settle` → `drain` → `stop`. The platform (``kernel.platform``) builds the
parts in dependency order, decides which process each lives in, restarts one that fails with backoff and shows its state.

A part does not know which process it is in. What it may use is its `PartContext`: the clock, its own folder, a task
group, a Kubernetes client, its settings and its listening addresses.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from sampan.kernel.clock import Clock
from sampan.kernel.tasks import Tasks
from sampan.kernel.telemetry import Tracer

if TYPE_CHECKING:
    from sampan.kernel.certificates import Authority


class PartSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of a part's settings; subclasses add fields with ``Annotated[..., msgspec.Meta(description=...)]``.

    The descriptions become ``docs/settings.md`` and ``sampan up --help``.
    """


S = TypeVar("S", bound=PartSettings)


class Listeners(Protocol):
    """The platform's book of listening addresses, by name (``kubernetes``, ``gateway``, ``messaging.grpc``, ...)."""

    def bind(self, name: str, port: int, host: str | None = None) -> socket.socket:
        """Bind and listen on ``host:port`` (loopback by default; a free port under ``--ports auto``) and record it.

        Raises:
            PortTakenError: the port is in use; the message names the holder.
        """
        ...

    def record(self, name: str, host: str, port: int) -> None:
        """Record an address that something else bound (Envoy, a child process)."""
        ...

    def choose(self, name: str, port: int) -> int:
        """The port to use for a listener bound by something else: ``port``, or a free one under ``--ports auto``."""
        ...

    def address(self, name: str) -> tuple[str, int] | None:
        """The recorded ``(host, port)`` of a listener anywhere on the platform, or None."""
        ...


class PartContext(Generic[S]):
    """Everything a part may use of the platform it lives in."""

    def __init__(
        self,
        *,
        name: str,
        settings: S,
        clock: Clock,
        data_dir: Path,
        tasks: Tasks,
        listeners: Listeners,
        metrics: CollectorRegistry,
        authority: Authority,
        services: dict[type[Any], Any],
        root: Path | None = None,
        sockets: Path | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock
        self.data_dir = data_dir
        """The part's own folder, made before `Part.provision`."""
        self.tasks = tasks
        """The part's tasks; cancelled after `Part.stop`. A failure here is the part's failure."""
        self.listeners = listeners
        self.metrics = metrics
        """The process's Prometheus registry, served under ``/metrics`` of the platform."""
        self.authority = authority
        """The platform's certificate authority."""
        self.root = root or data_dir
        """The platform's data directory (for what belongs to the whole platform, such as the kubeconfig)."""
        self.sockets = sockets or self.root
        """A private folder with a short path, for Unix sockets; name them after the part."""
        self.tracer = tracer or Tracer(clock, name)
        """Makes the process's spans."""
        self.log = logging.getLogger(f"sampan.{name}")
        self._services = services

    def provide(self, interface: type[Any], service: Any) -> None:
        """Offer ``service`` under an interface type to the later parts of the same process."""
        self._services[interface] = service

    def get(self, interface: type[T]) -> T:
        """What an earlier part (or the platform) provides under ``interface``, e.g. ``context.get(Client)``.

        Raises:
            LookupError: nothing provides it; the part's ``needs`` is incomplete.
        """
        try:
            service: T = self._services[interface]
        except KeyError:
            raise LookupError(f"nothing provides {interface.__name__} to part {self.name}") from None
        return service

    def find(self, interface: type[T]) -> T | None:
        """Like `get`, but None where nothing provides it (an optional neighbour)."""
        return self._services.get(interface)


T = TypeVar("T")


class OwnProcesses(tuple[str, ...]):
    """The platform's parts that live in processes of their own, by name; the platform provides it."""


class Part(ABC, Generic[S]):
    """One capability with the platform's life cycle.

    Class attributes declare it: ``name`` (also its settings section and folder), ``needs`` (parts that must be ready
    before it starts), ``wants`` (parts it does without, but waits for like its needs where they run too),
    ``settings_type``, and ``own_process`` (it asks for a process of its own; it then reaches kube over HTTP and shares
    nothing else). ``remote`` names (``module:function``) an ``async def (context: PartContext) -> None`` that
    other processes call to ``context.provide`` there what this part provides in its own, over the network.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    wants: ClassVar[tuple[str, ...]] = ()
    settings_type: ClassVar[type[PartSettings]] = PartSettings
    own_process: ClassVar[bool] = False
    remote: ClassVar[str] = ""

    def __init__(self, context: PartContext[S]) -> None:
        self.context = context

    async def provision(self) -> None:
        """Make what the part stands on (files, API types, bound sockets); nothing is served yet.

        Raises:
            SampanError: the part cannot run; the message says why and what to do.
        """

    @abstractmethod
    async def start(self) -> None:
        """Begin to work: serve, start controllers in ``context.tasks``. Returns without waiting for readiness."""

    async def ready(self) -> None:
        """Return when the part does its job; the platform bounds the wait."""

    async def settle(self) -> None:
        """Make durable what coming up has written without waiting for the disk.

        Called once every part is ready; the platform says that it is ready only afterwards.

        Raises:
            SampanError: the disk failed.
        """

    async def drain(self) -> None:
        """The platform ends in an orderly way: take no new work and finish what is under way; the platform bounds the wait.

        Not called where the part comes up again at once: something it needs failed, or the part itself.
        """

    async def stop(self) -> None:
        """Release everything; called once, also after a failed `start`."""

    def status(self) -> dict[str, Any]:
        """Facts for ``sampan status``: short, JSON-compatible.

        ``urls`` (name to URL) lists applications a person can open, ``rows`` (title to rows of short texts) what is worth a table.
        """
        return {}
