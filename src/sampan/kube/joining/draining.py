"""Emptying a node before it leaves, with a node's own rights: cordon, evict, wait."""

from __future__ import annotations

from collections.abc import Callable

from sampan.kernel.clock import Clock
from sampan.kube.client import Client
from sampan.kube.objects import Object, controller_of, dig
from sampan.kube.resources import NODES, PODS
from sampan.kube.status import ApiError

AGAIN_SECONDS = 1.0
"""Between looks at what is left, and attempts that a disruption budget turned down."""
MIRROR = "kubernetes.io/config.mirror"


def to_evict(pod: Object) -> bool:
    """The pod is to go: it has not ended, and neither a DaemonSet nor the node itself would bring it back."""
    owner = controller_of(pod)
    if owner is not None and owner["kind"] == "DaemonSet":
        return False
    if MIRROR in (pod["metadata"].get("annotations") or {}):
        return False
    return dig(pod, "status", "phase") not in ("Succeeded", "Failed")


async def drain(
    client: Client, node: str, clock: Clock, *, seconds: float, tell: Callable[[str], object] = lambda _: None
) -> None:
    """Cordon the node and evict its pods until none is left that should go.

    Raises:
        TimeoutError: some are still there after ``seconds``.
        ApiError: the API server refuses.
    """
    await client.patch(NODES, node, {"spec": {"unschedulable": True}})
    tell(f"{node} cordoned")
    asked: set[str] = set()
    async with clock.timeout(seconds):
        while True:
            found = await client.list(PODS, field_selector=f"spec.nodeName={node}")
            left = [pod for pod in found.items if to_evict(pod)]
            if not left:
                return
            for pod in left:
                metadata = pod["metadata"]
                going = metadata["uid"] in asked or metadata.get("deletionTimestamp")
                if not going and await _evict(client, pod):
                    asked.add(metadata["uid"])
                    tell(f"evicting pod {metadata['namespace']}/{metadata['name']}")
            await clock.sleep(AGAIN_SECONDS)


async def clear(client: Client, node: str, *, tell: Callable[[str], object] = lambda _: None) -> None:
    """Cordon a node on which nothing runs any more and take its pods out; nobody could end them in order.

    Raises:
        ApiError: the API server refuses.
    """
    await client.patch(NODES, node, {"spec": {"unschedulable": True}})
    for pod in (await client.list(PODS, field_selector=f"spec.nodeName={node}")).items:
        metadata = pod["metadata"]
        try:
            await client.delete(PODS, metadata["name"], metadata["namespace"], grace_period=0, uid=metadata["uid"])
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise
        tell(f"pod {metadata['namespace']}/{metadata['name']} has ended with {node}")


async def _evict(client: Client, pod: Object) -> bool:
    """Whether the pod is on its way."""
    metadata = pod["metadata"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    }
    try:
        await client.create(PODS, eviction, metadata["namespace"], name=metadata["name"], subresource="eviction")
    except ApiError as error:
        if error.code == 429:
            return False  # a disruption budget; later
        if not error.not_found:
            raise
    return True
