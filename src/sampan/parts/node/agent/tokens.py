"""Service account tokens of pods: asked for when a volume wants one, renewed at 80 % of their life."""

from __future__ import annotations

from sampan.kernel.clock import Clock
from sampan.kube.client import Client
from sampan.kube.objects import Object
from sampan.kube.resources import SERVICE_ACCOUNTS
from sampan.parts.node.agent.payload import audiences


class Tokens:
    """The tokens of a node's pods."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self.held: dict[str, dict[str, tuple[str, float]]] = {}
        """Pod uid → audience → token and the wall second of its renewal."""

    def drop(self, uid: str) -> None:
        """A pod is gone."""
        self.held.pop(uid, None)

    async def fetch(self, pod: Object) -> dict[str, str]:
        """The service account tokens a pod's volumes hold, by audience; asks for those that are missing or due."""
        wanted = audiences(pod["spec"].get("volumes") or [])
        metadata = pod["metadata"]
        held = self.held.setdefault(metadata["uid"], {})
        for audience, seconds in wanted.items():
            if audience in held and held[audience][1] > self._clock.time():
                continue
            request = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "audiences": [audience] if audience else [],
                    "expirationSeconds": seconds,
                    "boundObjectRef": {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    },
                },
            }
            account = pod["spec"].get("serviceAccountName") or "default"
            answer = await self._client.create(
                SERVICE_ACCOUNTS, request, metadata["namespace"], name=account, subresource="token"
            )
            # renewed at 80 % of its life, or after a day
            held[audience] = (answer["status"]["token"], self._clock.time() + min(seconds * 0.8, 86400.0))
        return {audience: token for audience, (token, _until) in held.items()}
