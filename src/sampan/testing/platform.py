"""`Platform`: the real platform, in this process, for the length of a ``with`` block.

Everything is what ``sampan up`` runs, its event loop (uvloop) included, but for three things: all parts share this process (so
a test starts in a fraction of a second), ports are free ones, and the data directory is a temporary one that goes with the
platform.

Used with ``with``, the platform lives on a thread of its own, because a test that blocks (on a subprocess, on a synchronous
client) would otherwise block the very server it waits for. Used with ``async with``, it lives in the running event loop.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from sampan.kernel.autojump import autojump
from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.part import Part
from sampan.kernel.platform import Platform as KernelPlatform

if TYPE_CHECKING:
    from sampan.kube.client.http import HttpClient

T = TypeVar("T")

GRACE = 0.01
"""Machine seconds an autojumping clock lets clients and threads outside the event loop take their turn."""


class SteeredClock:
    """The platform's clock in the hands of a test; usable from any thread."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @property
    def _clock(self) -> Clock:
        return self._platform.kernel.clock

    def time(self) -> float:
        """Seconds since the epoch on the platform."""
        return self._clock.time()

    def now(self) -> datetime:
        """The platform's time of day, UTC."""
        return self._clock.now()

    def monotonic(self) -> float:
        """The platform's reading that never goes back, in seconds."""
        return self._clock.monotonic()

    def jump(self, seconds: float) -> None:
        """Jump forward, firing every timer on the way, or (below 0) set the time of day back."""
        self._platform.call(lambda: self._clock.jump(seconds))

    def freeze(self) -> None:
        """Stop the clock; only `jump` moves it."""
        self._platform.call(self._clock.freeze)

    def run(self, rate: float = 1.0) -> None:
        """Run ``rate`` times as fast as the machine's clock."""
        self._platform.call(lambda: self._clock.run(rate))

    @contextmanager
    def autojump(self, *, grace: float = GRACE, limit: float | None = None) -> Iterator[None]:
        """Jump to the next timer whenever the platform has nothing else to do, during the body.

        ``limit``: platform seconds to jump at most; a platform always has some periodic work, so without a limit its time
        runs as fast as it can.

        Raises:
            RuntimeError: the platform runs on uvloop, which waits in C; give it ``event_loop="asyncio"``.
        """
        stack = ExitStack()
        self._platform.call(lambda: stack.enter_context(autojump(self._clock, grace=grace, limit=limit)))
        try:
            yield
        finally:
            self._platform.call(stack.close)


class Platform:
    """A platform for a test: ``with`` (on a thread) or ``async with`` (in the running loop).

    ``only`` and ``without`` choose parts; ``settings`` maps ``part.field`` to values; ``parts`` replaces the known parts;
    ``clock`` is ``"real"``, ``"frozen"`` (at the machine's time of day) or a `Clock`; ``data_dir`` keeps the data.
    ``event_loop`` is the one that ``with`` runs the platform on: the product's own, or asyncio's, which a clock that jumps by
    itself (`SteeredClock.autojump`) needs.
    """

    def __init__(
        self,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        clock: str | Clock = "real",
        data_dir: Path | None = None,
        parts: Mapping[str, str | type[Part[Any]]] | None = None,
        one_process: bool = True,
        event_loop: Literal["uvloop", "asyncio"] = "uvloop",
    ) -> None:
        if parts is None:
            from sampan.parts import PARTS

            parts = PARTS
        self._event_loop = event_loop
        self._given_clock = clock
        self._parts = parts
        self._options: dict[str, Any] = {
            "only": only,
            "without": without,
            # a test that is killed must leave no Envoy behind
            "flags": [
                "platform.ports=auto",
                *(["traffic.outlive=false"] if "traffic" in parts else []),
                *(_flag(name, value) for name, value in (settings or {}).items()),
            ],
            "one_process": one_process,
        }
        self._data_dir = data_dir
        self._folder = ExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._home = 0
        self.clock = SteeredClock(self)

    kernel: KernelPlatform
    """The platform itself, from entering on."""

    # -- what a test asks for

    @property
    def data_dir(self) -> Path:
        """The platform's data directory."""
        return self.kernel.directory.path

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with administrator rights."""
        return self.kernel.directory.kubeconfig

    def address(self, name: str) -> str:
        """``host:port`` of a listener.

        Raises:
            LookupError: nothing listens under that name; the message lists what does.
        """
        address = self.kernel.listeners.address(name)
        if address is None:
            known = ", ".join(sorted(self.kernel.listeners.addresses())) or "nothing"
            raise LookupError(f"nothing listens as {name}; there is {known}")
        return f"{address[0]}:{address[1]}"

    def client(self, user: str = "", groups: Sequence[str] = ()) -> HttpClient:
        """A client of the platform's Kubernetes API for the running event loop (`async with` it); as an administrator, or
        impersonating ``user``.
        """
        from sampan.kube.client.http import HttpClient

        client = HttpClient.from_kubeconfig(self.kubeconfig)
        return client.impersonate(user, groups) if user else client

    def get(self, interface: type[T]) -> T:
        """What a part provides in this process, for tests in the platform's own loop."""
        return self.kernel.get(interface)

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function()`` on the platform's event loop and return its result."""

        if threading.get_ident() == self._home:
            return function()

        async def body() -> T:
            return function()

        return self.run(body())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the platform's event loop from another thread and return its result."""
        if self._loop is None:
            work.close()
            raise SampanError("the platform is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # -- life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def __enter__(self) -> Self:
        outcome: list[BaseException] = []
        started = threading.Event()

        def live() -> None:
            with asyncio.Runner(loop_factory=_loop_factory(self._event_loop)) as runner:
                self._loop = runner.get_loop()
                try:
                    runner.run(self._start())
                except BaseException as error:
                    outcome.append(error)
                    return
                finally:
                    started.set()
                try:
                    runner.run(self._until_left())
                finally:
                    runner.run(self._stop())

        self._thread = threading.Thread(target=live, name="sampan-platform", daemon=True)
        self._thread.start()
        started.wait()
        if outcome:
            self._thread.join()
            raise outcome[0]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self.call(self._left.set)
        self._thread.join()
        self._thread = self._loop = None

    async def _until_left(self) -> None:
        await self._left.wait()

    async def _start(self) -> None:
        self._home = threading.get_ident()
        self._left = asyncio.Event()
        path = self._data_dir
        if path is None:
            temporary = tempfile.TemporaryDirectory(prefix="sampan-test-", ignore_cleanup_errors=True)
            path = Path(self._folder.enter_context(temporary))
        clock = self._given_clock if isinstance(self._given_clock, Clock) else Clock()
        if self._given_clock == "frozen":
            clock.freeze()
        self.kernel = KernelPlatform(self._parts, path, clock=clock, **self._options)
        try:
            await self.kernel.start()
        except BaseException:
            self._folder.close()
            raise

    async def _stop(self) -> None:
        try:
            await self.kernel.stop()
        finally:
            self._folder.close()


def _loop_factory(event_loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if event_loop == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def _flag(name: str, value: object) -> str:
    import msgspec

    return f"{name}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
