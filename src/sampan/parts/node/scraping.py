"""What other nodes use: their kubelets' summaries, asked for when somebody wants to know, as the metrics server does."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from sampan.kernel.clock import Clock
from sampan.kube.control.interface import Informer
from sampan.kube.objects import Object, dig

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""Machine seconds for a node's answer; one that is silent is left out."""


class Summary(NamedTuple):
    """One node's ``/stats/summary``."""

    node: str
    content: dict[str, Any]


def kubelet_url(node: Object) -> str:
    """Where a node's kubelet API is, or "" for one that has not said."""
    addresses = dig(node, "status", "addresses", default=())
    internal = next((one["address"] for one in addresses if one.get("type") == "InternalIP"), "")
    port = dig(node, "status", "daemonEndpoints", "kubeletEndpoint", "Port", default=0)
    return f"https://{internal}:{port}" if internal and port else ""


def is_ready(node: Object) -> bool:
    """The node reports, and is well."""
    conditions = dig(node, "status", "conditions", default=())
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


class Scraper:
    """Asks every other node."""

    def __init__(self, nodes: Informer, own: str, context: Callable[[], ssl.SSLContext]) -> None:
        """``own`` is left out; ``context`` makes a TLS context with the API server's certificate, when first needed."""
        self._nodes = nodes
        self._own = own
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._machine = Clock()

    async def summaries(self) -> list[Summary]:
        """What the nodes that are ready and answer in time say."""
        asked = [
            (node["metadata"]["name"], url)
            for node in self._nodes.objects()
            if node["metadata"]["name"] != self._own and is_ready(node) and (url := kubelet_url(node))
        ]
        if not asked:
            return []
        import aiohttp

        if self._context is None:
            self._context = await asyncio.to_thread(self._make_context)
        connector = aiohttp.TCPConnector(ssl=self._context)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:

            async def ask(name: str, url: str) -> Summary | None:
                try:
                    async with self._machine.timeout(ANSWER_SECONDS), session.get(f"{url}/stats/summary") as answer:
                        answer.raise_for_status()
                        return Summary(name, msgspec.json.decode(await answer.read()))
                except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
                    log.warning("node %s does not tell what it uses: %r", name, error)
                    return None

            found = await asyncio.gather(*(ask(name, url) for name, url in asked))
        return [one for one in found if one is not None]
