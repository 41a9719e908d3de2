"""The RocketMQ sink's connections to brokers elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from sampan.kernel.clock import Clock
from sampan.kube.objects import Object
from sampan.parts.eventing.fronts.rocketmq_sink import CONNECTIONS, RocketMQSink


class Connection:
    """A client that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


async def test_connections_whose_keys_were_replaced_are_closed() -> None:
    made: list[Connection] = []

    def connect(address: str, access: str, secret: str) -> tuple[Connection, Clock]:
        made.append(Connection())
        return made[-1], Clock()

    async def secret(sink: object, selector: object) -> str:
        return str(selector or "")

    informers = SimpleNamespace(informer=lambda resource: None)
    streams = SimpleNamespace(connect=connect)
    sink = RocketMQSink(cast(Any, informers), cast(Any, streams), Clock(), cast(Any, None), secret)

    def spec(key: int) -> Object:
        return {"spec": {"namesrvAddr": "broker:8081", "accessToken": {"secretKey": f"key-{key}"}}}

    first = await sink._client(spec(0))
    for key in range(1, CONNECTIONS + 10):
        await sink._client(spec(key))
        assert await sink._client(spec(0)) is first  # in use all the time
    assert [one.closed for one in made] == [False, *[True] * 10, *[False] * (CONNECTIONS - 1)]
    await sink.close()
    assert all(one.closed for one in made)
