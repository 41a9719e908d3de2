"""A clock for tests that moves on by itself: when nothing else can happen, it jumps to the next timer.

The event loop is about to block exactly when it asks its selector to wait. `autojump` puts itself between the two: input
that is there, or arrives within a small grace, wins; work in the loop's executor and whatever holds the clock
(`Clock.hold`) wins; otherwise the platform's earliest timer becomes due at once. An hour of retries takes as long as the
retries themselves, and its order of events is that of a real hour.

The selector is asyncio's own affair, so this works with asyncio's selector event loops and not with uvloop, which waits in C.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sampan.kernel.clock import EPSILON, Clock


@contextmanager
def autojump(clock: Clock, *, grace: float = 0.0, limit: float | None = None) -> Iterator[None]:
    """Jump ``clock`` to its next timer whenever the running event loop has nothing else to do, during the body.

    ``grace``: machine seconds to wait for input first; needed where other processes or threads take part.
    ``limit``: platform seconds to jump at most in total; beyond, the clock stands still (against endless periodic work).

    Raises:
        RuntimeError: the running event loop is not one of asyncio's selector loops.
    """
    loop = asyncio.get_running_loop()
    inner = getattr(loop, "_selector", None)
    if not isinstance(inner, selectors.BaseSelector):
        raise RuntimeError(
            f"autojump needs asyncio's own event loop; this one is {type(loop).__module__}'s "
            '(sampan.testing.Platform takes event_loop="asyncio")'
        )
    run_in_executor = loop.run_in_executor
    end = None if limit is None else clock.monotonic() + limit

    def counted(executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        hold = clock.hold()
        hold.__enter__()
        future = run_in_executor(executor, function, *args)
        # released one turn later: whoever waits for the result runs before the clock may move
        future.add_done_callback(lambda _: loop.call_soon(hold.__exit__, None, None, None))
        return future

    vars(loop)["_selector"] = _Selector(inner, clock, grace, end)
    vars(loop)["run_in_executor"] = counted
    try:
        yield
    finally:
        vars(loop)["_selector"] = inner
        if isinstance(getattr(run_in_executor, "__self__", None), asyncio.AbstractEventLoop):
            del vars(loop)["run_in_executor"]
        else:  # an autojump of another clock around this one
            vars(loop)["run_in_executor"] = run_in_executor


class _Selector(selectors.BaseSelector):
    """A selector that moves a clock instead of waiting."""

    def __init__(self, inner: selectors.BaseSelector, clock: Clock, grace: float, end: float | None) -> None:
        self._inner = inner
        self._clock = clock
        self._grace = grace
        self._end = end

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return self._inner.select(timeout)
        clock = self._clock
        due = clock.next_timer()
        if due is None or clock.held or (self._end is not None and due > self._end):
            return self._inner.select(timeout)
        ready = self._inner.select(self._grace if timeout is None else min(self._grace, timeout))
        if not ready:
            ahead = due - clock.monotonic()
            if ahead > EPSILON:
                clock.jump(ahead)
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()
