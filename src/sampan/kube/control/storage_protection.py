"""Claims and volumes in use outlive their deletion: the controllers that take the protection finalizers off.

Admission puts ``kubernetes.io/pvc-protection`` and ``kubernetes.io/pv-protection`` on every new claim and volume. A claim that
is being deleted loses it once no live pod uses the claim, a volume once it is bound to none.
"""

from __future__ import annotations

from collections.abc import Iterable

from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS

CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
VOLUME_FINALIZER = "kubernetes.io/pv-protection"


def claims_of(pod: Object) -> list[Key]:
    """The claims a pod uses."""
    metadata = pod["metadata"]
    names = []
    for volume in dig(pod, "spec", "volumes", default=()):
        if "persistentVolumeClaim" in volume:
            names.append(volume["persistentVolumeClaim"].get("claimName") or "")
        elif "ephemeral" in volume:
            names.append(f"{metadata['name']}-{volume['name']}")
    return [Key(metadata["namespace"], name) for name in names]


class _Protection(Controller):
    """Removes a finalizer from an object that is being deleted."""

    async def _release(self, resource: Resource, obj: Object, finalizer: str) -> None:
        released: Object = copy(obj)
        released["metadata"]["finalizers"] = [each for each in obj["metadata"]["finalizers"] if each != finalizer]
        await self.client.update(resource, released)


class ClaimProtection(_Protection):
    """Lets claims go that no pod uses any more."""

    name = "persistentvolumeclaim-protection"

    def sources(self) -> list[Source]:
        return [For(PERSISTENT_VOLUME_CLAIMS), Watches(PODS, self._claims)]

    def _claims(self, pod: Object) -> Iterable[Key]:
        return claims_of(pod)

    async def reconcile(self, key: Key) -> float | None:
        claim = self.informer(PERSISTENT_VOLUME_CLAIMS).get(key)
        if claim is None or not going(claim, CLAIM_FINALIZER) or self._used(key):
            return None
        await self._release(PERSISTENT_VOLUME_CLAIMS, claim, CLAIM_FINALIZER)
        return None

    def _used(self, key: Key) -> bool:
        for pod in self.informer(PODS).objects(key.namespace):
            # A pod that nobody has placed yet holds nothing; one that has ended has let go.
            placed = bool(dig(pod, "spec", "nodeName"))
            ended = dig(pod, "status", "phase") in ("Succeeded", "Failed")
            if placed and not ended and key in claims_of(pod):
                return True
        return False


class VolumeProtection(_Protection):
    """Lets volumes go that are bound to no claim."""

    name = "persistentvolume-protection"

    def sources(self) -> list[Source]:
        return [For(PERSISTENT_VOLUMES)]

    async def reconcile(self, key: Key) -> float | None:
        volume = self.informer(PERSISTENT_VOLUMES).get(key)
        if volume is None or not going(volume, VOLUME_FINALIZER) or dig(volume, "status", "phase") == "Bound":
            return None
        await self._release(PERSISTENT_VOLUMES, volume, VOLUME_FINALIZER)
        return None


def going(obj: Object, finalizer: str) -> bool:
    """Whether the object is being deleted and still carries the finalizer."""
    metadata = obj["metadata"]
    return bool(metadata.get("deletionTimestamp")) and finalizer in (metadata.get("finalizers") or ())
