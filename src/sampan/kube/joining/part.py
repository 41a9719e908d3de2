"""The Kubernetes API in a joined node's process: the same services as on the platform, over the network, with a node's rights.

`JoinedKubePart` takes the place (and the name) of the part that serves the API. It brings the Node object into being, waits
for the pod range that the platform gives it, gets the certificates that are missing, and keeps them current. The node and
network parts of the process find `Client`, `Informers` and `ControlContext` as they do on the platform, and `Joined` besides.

The API server may be away when this starts: the node then waits for it, for as long as it takes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from sampan.kernel import claims
from sampan.kernel.part import Part, PartSettings
from sampan.kube.client import Client
from sampan.kube.client.http import HttpClient
from sampan.kube.control import SharedInformers
from sampan.kube.control.controller import ControlContext
from sampan.kube.control.interface import Informers
from sampan.kube.control.node_departure import LEFT
from sampan.kube.control.node_ranges import TAKEN_RANGES
from sampan.kube.joining.credentials import Credential, Folder, Membership, of_client, of_kubelet, of_network
from sampan.kube.joining.following import keep_following
from sampan.kube.joining.interface import JOINED, Joined
from sampan.kube.joining.membership import resolve
from sampan.kube.joining.tokens import JoinError
from sampan.kube.objects import Object, dig
from sampan.kube.resources import NODES
from sampan.kube.status import ApiError

RETRY_SECONDS = 2.0
"""Between attempts to reach the API server at the start."""
REGISTRATIONS = 5
"""Attempts to be given a pod range that stays free until it is here."""
FOLDER = "joined"
"""Of the data directory: what the node is."""

T = TypeVar("T")


class JoinedKubePart(Part[PartSettings]):
    """Reaches the Kubernetes API of the platform that this node joined."""

    name = "kubernetes"
    settings_type: ClassVar[type[PartSettings]] = PartSettings

    _membership: Membership | None = None
    _serving: Credential | None = None
    _reached = False

    async def provision(self) -> None:
        """Read what the node is, and trust accordingly."""
        self._folder = folder = Folder(self.context.root / FOLDER)
        membership = await asyncio.to_thread(lambda: folder.membership)
        if membership is None:
            raise JoinError(f"{self.context.root} is not a joined node; `sampan node join` makes it one")
        self._membership = membership
        self._server = await asyncio.to_thread(resolve, membership.server)
        clock = self.context.clock
        self._client = Credential(folder.path / "client.pem", of_client(membership.node), clock)
        if not await asyncio.to_thread(self._client.load):
            raise JoinError(
                f"the certificate of {membership.node} in {folder.path} has ended or is missing: join again with a token"
            )
        wanted = of_kubelet(membership.node, [membership.address])
        # versions before served with what the cluster's own authority had signed; the API server does not believe that now
        self._serving = Credential(folder.path / "serving.pem", wanted, clock, not_of=folder.authority)
        self._network = Credential(folder.path / "network.pem", of_network(), clock)

    async def start(self) -> None:
        """Register, get what is missing, and offer it."""
        context, membership = self.context, self._membership
        assert membership is not None
        assert self._serving is not None
        node = membership.node
        client, control = await self._connect(self._client, f"system:node:{node}")
        context.provide(Client, client)
        context.provide(Informers, control.informers)
        context.provide(ControlContext, control)
        found = await self._patiently(lambda: self._register(client, membership))
        keep_following(context.clock, control.informers.informer(NODES), node)
        await self._patiently(lambda: self._serving_certificate(client))
        await self._patiently(lambda: self._network.ensure(client))
        network, network_control = await self._connect(self._network, "sampan-network")
        context.provide(
            Joined,
            Joined(
                node=node,
                address=membership.address,
                server=self._server,
                same_machine=membership.same_machine,
                pod_range=found["spec"]["podCIDR"],
                serving=self._serving_context,
                network=network,
                network_control=network_control,
            ),
        )
        for name, credential in (("client", self._client), ("serving", self._serving), ("network", self._network)):
            context.tasks.keep(f"renew {name}", lambda credential=credential: credential.keep(client))  # type: ignore[misc]

    async def _connect(self, credential: Credential, manager: str) -> tuple[HttpClient, ControlContext]:
        context = self.context
        assert self._membership is not None
        tls = await asyncio.to_thread(self._trusting, credential)
        client = HttpClient(self._membership.server, tls, field_manager=manager, clock=context.clock)

        async def close_at_the_end() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await client.close()

        context.tasks.start(f"{manager}/connections", close_at_the_end())
        informers = SharedInformers(client, context.clock, context.tasks)
        return client, ControlContext(client, informers, context.clock, context.tasks, context.metrics)

    def _trusting(self, credential: Credential) -> ssl.SSLContext:
        return credential.serve(ssl.create_default_context(cafile=str(self._folder.authority)))

    def _serving_context(self) -> ssl.SSLContext:
        assert self._serving is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(self._folder.authority)
        context.verify_mode = ssl.CERT_OPTIONAL
        return self._serving.serve(context)

    async def _serving_certificate(self, client: Client) -> None:
        assert self._serving is not None
        await self._serving.ensure(client)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it as soon as the API server is there."""
        told = False
        while True:
            try:
                done = await work()
            except ApiError as error:
                if error.code not in (429, 500, 502, 503, 504):
                    raise
                if not told:
                    told = True
                    self.context.log.warning("the API server does not answer yet: %s", error)
                await self.context.clock.sleep(RETRY_SECONDS)
                continue
            self._reached = True
            return done

    async def _register(self, client: Client, membership: Membership) -> Object:
        """The Node, with its address and pod range."""
        for _ in range(REGISTRATIONS):
            try:
                node = await self._with_range(client, await client.get(NODES, membership.node))
                break
            except ApiError as error:
                if not error.not_found:
                    raise
            node = await client.create(NODES, await asyncio.to_thread(first_node, membership))
            node = await self._with_range(client, node)
            chosen = dig(node, "spec", "podCIDR")
            if chosen not in await asyncio.to_thread(claims.claimed):
                break
            # another platform of this machine took it between the two; a Node keeps its range, so there has to be another Node
            self.context.log.warning("the pod range %s was taken meanwhile: registering once more", chosen)
            await client.patch(NODES, membership.node, {"metadata": {"annotations": {LEFT: "true"}}})
            await self._gone(client, membership.node)
        else:
            raise JoinError(
                f"other platforms of this machine took {REGISTRATIONS} pod ranges in turn that {membership.node} was given: "
                "start it again"
            )
        addresses = [
            {"type": "InternalIP", "address": membership.address},
            {"type": "Hostname", "address": membership.node},
        ]
        if dig(node, "status", "addresses") != addresses:
            patch = {"status": {"addresses": addresses}}
            node = await client.patch(NODES, membership.node, patch, subresource="status")
        return node

    async def _with_range(self, client: Client, node: Object) -> Object:
        """The Node once it has been given its pod range."""
        while not dig(node, "spec", "podCIDR"):
            await self.context.clock.sleep(0.2)
            node = await client.get(NODES, node["metadata"]["name"])
        return node

    async def _gone(self, client: Client, name: str) -> None:
        """Wait until the platform has deleted a Node that left."""
        while True:
            try:
                await client.get(NODES, name)
            except ApiError as error:
                if error.not_found:
                    return
                raise
            await self.context.clock.sleep(0.2)

    def status(self) -> dict[str, Any]:
        """Which platform, and as whom."""
        if self._membership is None:
            return {}
        return {
            "node": self._membership.node,
            "server": self._membership.server,
            "reached": self._reached,
            "renewals": sum(one.renewals for one in (self._client, self._serving, self._network) if one is not None),
        }


def first_node(membership: Membership) -> Object:
    """The Node as it registers: what the agent knows of the machine follows when it starts. Reads files."""
    labels = {"kubernetes.io/hostname": membership.node, "kubernetes.io/os": "linux", **membership.labels}
    annotations = {JOINED: "true", TAKEN_RANGES: ",".join(claims.claimed())}
    node: Object = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": membership.node, "labels": labels, "annotations": annotations},
        "spec": {"providerID": f"sampan://{membership.node}"},
    }
    if membership.taints:
        node["spec"]["taints"] = membership.taints
    return node
