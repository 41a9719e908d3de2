"""The pytest plugin: fixtures that start a real platform for a test.

| fixture | scope | gives |
| --- | --- | --- |
| ``platform`` | function | an isolated platform on free ports; ``@pytest.mark.sampan(only=[...], settings={...})`` shapes it |
| ``shared_platform`` | session | one platform for all tests that do not mind company |
| ``clock`` | function | the clock of ``platform``: ``jump``, ``freeze``, ``run``, ``autojump`` |
| ``kube`` | function | an asyncio client of its Kubernetes API (where pytest-asyncio is installed) |
| ``kubeconfig`` | function | path of the platform's kubeconfig, also set as KUBECONFIG for what the test starts |

The platform runs on a thread of its own, so these work in synchronous and asynchronous tests alike; on uvloop, as the product
does, but for tests that take ``clock``, since a clock that jumps by itself needs asyncio's own event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

try:
    import pytest_asyncio
except ImportError:
    pytest_asyncio = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from sampan.kube.client.http import HttpClient
    from sampan.testing.platform import Platform, SteeredClock


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "sampan(only, without, settings, clock, event_loop): how the test's platform is to be (sampan.testing.Platform)",
    )


@pytest.fixture
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """A platform of the test's own."""
    from sampan.testing.platform import Platform

    marker = request.node.get_closest_marker("sampan")
    wanted = dict(marker.kwargs) if marker is not None else {}
    wanted.setdefault("event_loop", "asyncio" if "clock" in request.fixturenames else "uvloop")
    with Platform(**wanted) as running:
        yield running


@pytest.fixture(scope="session")
def shared_platform() -> Iterator[Platform]:
    """One platform for the whole session (for each worker under pytest-xdist)."""
    from sampan.testing.platform import Platform

    with Platform() as running:
        yield running


@pytest.fixture
def clock(platform: Platform) -> SteeredClock:
    """The clock of the test's platform."""
    return platform.clock


@pytest.fixture
def kubeconfig(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kubeconfig of the test's platform; KUBECONFIG names it for the length of the test."""
    monkeypatch.setenv("KUBECONFIG", str(platform.kubeconfig))
    return platform.kubeconfig


if pytest_asyncio is not None:

    @pytest_asyncio.fixture
    async def kube(platform: Platform) -> AsyncIterator[HttpClient]:
        """A client of the test's platform, as an administrator."""
        async with platform.client() as client:
            yield client
