"""The network part: cluster DNS, Services and NetworkPolicy.

Read this first. ``dns`` answers names from informer state; ``records`` says what it answers.
"""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar

import msgspec

from sampan.kernel.errors import SettingsError
from sampan.kernel.part import Part, PartSettings
from sampan.kube.control.controller import ControlContext
from sampan.kube.objects import Key
from sampan.kube.resources import SERVICES
from sampan.parts.network.control import dns_service
from sampan.parts.network.directory import ClusterDirectory
from sampan.parts.network.dns.server import NameServer
from sampan.parts.network.dns.upstream import Upstream, host_resolvers
from sampan.parts.network.dns.zone import Zone

DNS_PLACE = 9
"""How far the name server's address is behind that of the API server's Service: the tenth address by convention."""


class NetworkSettings(PartSettings, kw_only=True):
    """Settings of the network (section ``network``)."""

    dns_host: Annotated[str, msgspec.Meta(description="address the cluster's name server listens on")] = "127.0.0.1"
    dns_port: Annotated[
        int, msgspec.Meta(description="its port, UDP and TCP; pods reach it at port 53 of `kube-dns`", ge=0, le=65535)
    ] = 9053
    domain: Annotated[str, msgspec.Meta(description="the cluster's domain")] = "cluster.local"
    dns_ttl: Annotated[int, msgspec.Meta(description="seconds clients may keep the cluster's names", ge=0)] = 5
    upstream: Annotated[
        list[str],
        msgspec.Meta(description="addresses of name servers for other names; those of /etc/resolv.conf where empty"),
    ] = msgspec.field(default_factory=list)


class NetworkPart(Part[NetworkSettings]):
    """Cluster DNS, Services, NetworkPolicy."""

    name = "network"
    needs = ("kubernetes",)
    settings_type: ClassVar[type[PartSettings]] = NetworkSettings

    _udp: socket.socket | None = None
    _tcp: socket.socket | None = None
    _names: NameServer | None = None

    async def provision(self) -> None:
        """Bind the name server's sockets."""
        self._upstream = self._resolvers()
        context, settings = self.context, self.context.settings
        self._tcp = context.listeners.bind("dns", settings.dns_port, settings.dns_host)
        self._udp = _bind_udp(settings.dns_host, self._tcp.getsockname()[1])

    async def start(self) -> None:
        """Serve names and announce where."""
        context, settings = self.context, self.context.settings
        control = context.get(ControlContext)
        directory = ClusterDirectory(control.informers)
        await directory.wait_synced()
        api_server = control.informers.informer(SERVICES).get(Key("default", "kubernetes"))
        assert api_server is not None  # made by the API server before it is ready
        address = str(ip_address(api_server["spec"]["clusterIP"]) + DNS_PLACE)
        zone = Zone(directory, settings.domain, settings.dns_ttl, address)
        upstream = Upstream(context.clock, self._upstream)
        self._names = NameServer(zone, upstream, context.clock, context.tasks, context.metrics)
        assert self._udp is not None
        assert self._tcp is not None
        udp, tcp = self._udp.getsockname()[1], self._tcp.getsockname()[1]
        await self._names.serve(self._udp, self._tcp)
        host = "127.0.0.1" if settings.dns_host == "0.0.0.0" else settings.dns_host  # noqa: S104
        await dns_service.announce(control.client, address, host, udp, tcp)

    async def stop(self) -> None:
        """Close the sockets."""
        if self._names is not None:
            self._names.close()
        for bound in (self._udp, self._tcp):
            if bound is not None:
                bound.close()

    def status(self) -> dict[str, Any]:
        """Names answered."""
        return {"names answered": self._names.answered if self._names is not None else 0}

    def _resolvers(self) -> list[tuple[str, int]]:
        given = self.context.settings.upstream
        if not given:
            return host_resolvers()
        found = []
        for one in given:
            host, _, port = one.rpartition(":") if one.count(":") == 1 else (one, "", "53")
            try:
                found.append((str(ip_address(host)), int(port)))
            except ValueError:
                raise SettingsError(
                    f"network.upstream: {one} is not an address; give 10.0.0.2 or 10.0.0.2:53"
                ) from None
        return found


def _bind_udp(host: str, port: int) -> socket.socket:
    """A UDP socket at a port, or any other where that one is taken (pods find it through the Service)."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    bound.setblocking(False)
    with contextlib.suppress(OSError):
        bound.bind((host, port))
        return bound
    bound.bind((host, 0))
    return bound
