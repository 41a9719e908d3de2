"""The ingress without a socket: what strangers send costs nothing that stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from aiohttp.test_utils import make_mocked_request
from prometheus_client import CollectorRegistry, generate_latest

from sampan.kernel.clock import Clock
from sampan.parts.eventing.fronts.ingress import Ingress

EVENT = {"Ce-Id": "1", "Ce-Source": "/s", "Ce-Type": "t", "Ce-Specversion": "1.0"}


async def test_names_that_strangers_make_up_do_not_stay_in_the_metrics() -> None:
    registry = CollectorRegistry()
    nothing = cast(Any, SimpleNamespace(get=lambda key: None))
    tracing = cast(Any, SimpleNamespace(context_of=lambda *_: None))
    ingress = Ingress(nothing, nothing, nothing, Clock(), registry, tracing, limit=1000)
    for number in range(20):
        for path, host in ((f"/default/made-up-{number}", "x"), ("/", f"made-up-{number}-kn-channel.default.svc")):
            answer = await ingress.handle(make_mocked_request("POST", path, headers={**EVENT, "Host": host}))
            assert answer.status == 404
    text = generate_latest(registry).decode()
    assert "made-up" not in text
    assert 'event_count_total{namespace_name="unknown",response_code="404"} 40.0' in text
