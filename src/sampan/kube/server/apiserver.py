"""One API server, put together: the verbs, the HTTP front, and what both need.

server = ApiServer(store, types, clock, authenticator=..., authorizer=..., admission=..., registry=...)
await server.start(listener, ssl_context)  # serve HTTP
await server.stop()
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from sampan.kernel.addresses import advertised
from sampan.kernel.clock import Clock
from sampan.kernel.http import HttpServer
from sampan.kernel.tasks import Tasks
from sampan.kube.access.interface import (
    Admission,
    Authenticator,
    Authorizer,
    ObjectCache,
    Reviews,
    ServiceAccountTokens,
)
from sampan.kube.server.aggregation import Aggregation
from sampan.kube.server.allocation import SERVICE_RANGE
from sampan.kube.server.connect import KubeletConnector
from sampan.kube.server.discovery import Discovery
from sampan.kube.server.endpoints import Check, Endpoints
from sampan.kube.server.front import Front
from sampan.kube.server.metrics import Metrics
from sampan.kube.server.openapi import OpenApi
from sampan.kube.server.verbs import Api
from sampan.kube.store.interface import Store
from sampan.kube.types.resource import TypeRegistry


class ApiServer:
    """The Kubernetes API over one store."""

    def __init__(
        self,
        store: Store,
        types: TypeRegistry,
        clock: Clock,
        *,
        cache: ObjectCache,
        authenticator: Authenticator,
        authorizer: Authorizer,
        admission: Admission,
        registry: CollectorRegistry,
        reviews: Reviews | None = None,
        tokens: ServiceAccountTokens | None = None,
        service_range: str = SERVICE_RANGE,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self.clock = clock
        self._tasks = Tasks(clock, "apiserver")
        self.api = Api(
            store,
            types,
            clock,
            cache=cache,
            authorizer=authorizer,
            admission=admission,
            reviews=reviews,
            tokens=tokens,
            service_range=service_range,
        )
        self._http: HttpServer | None = None
        self.booted = False
        """The objects that every cluster has are there; until then the server is up but not ready."""
        self._address = "127.0.0.1:6443"
        self.discovery = Discovery(types, lambda: self._address, lambda: self._aggregation.remotes())
        self._aggregation = Aggregation(self.api, self.discovery, clock, self._tasks)
        self._connector = KubeletConnector(self.api, clock)
        self.endpoints = Endpoints(self.discovery, OpenApi(types), registry, tokens=tokens, checks=checks)
        self.endpoints.checks["poststarthook/bootstrap"] = lambda: "" if self.booted else "not finished"
        self.front = Front(
            self.api,
            authenticator,
            self.endpoints,
            Metrics(registry, lambda: self.api.hub.count),
            clock,
            connector=self._connector,
            aggregator=self._aggregation,
        )

    def identify(
        self, kubelet_context: ssl.SSLContext, joined_context: ssl.SSLContext, proxy_certificate: tuple[str, str]
    ) -> None:
        """Say as whom the API server calls others.

        ``kubelet_context`` trusts the platform's own kubelet and presents the API server's client certificate,
        ``joined_context`` those of nodes that joined; ``proxy_certificate`` (files of certificate and key) vouches for users
        to aggregated API servers.
        """
        self._connector.context, self._connector.joined_context = kubelet_context, joined_context
        self._aggregation.certificate = proxy_certificate

    async def start(self, listener: socket.socket, ssl_context: ssl.SSLContext | None) -> None:
        """Serve HTTP (TLS with a context) on a bound socket."""
        host, port = listener.getsockname()[:2]
        self._address = f"{advertised(host)}:{port}"
        self._http = HttpServer(
            self.front.handle, listener, Clock(), ssl_context=ssl_context, cancel_on_disconnect=True
        )
        await self._http.start()
        self._aggregation.start()

    async def drain(self, seconds: float = 5.0) -> None:
        """End the watches, let the other requests finish, and accept no more."""
        self.api.hub.end_all()
        if self._http is not None:
            await self._http.drain(seconds)

    async def stop(self) -> None:
        """Stop serving and following the store."""
        self.api.hub.end_all()
        if self._http is not None:
            await self._http.stop()
            self._http = None
        await self._tasks.cancel()
        await self._aggregation.close()
        await self._connector.close()
        self.api.close()
