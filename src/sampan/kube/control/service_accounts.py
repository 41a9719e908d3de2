"""What every namespace has from the start: the ServiceAccount ``default`` and the root certificate's ConfigMap.

Pods cannot be created in a namespace before its ServiceAccount exists, so this controller is quick; both come back when
somebody deletes them, and a changed certificate is put right.
"""

from __future__ import annotations

import asyncio

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Informer, Source
from sampan.kube.objects import Key, Object, Resource, copy
from sampan.kube.resources import CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS
from sampan.kube.status import ApiError

ACCOUNT = "default"
CERTIFICATE = "kube-root-ca.crt"
_NOTE = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the "
    "internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes "
    "clusters."
)


class ServiceAccountController(Controller):
    """Keeps each live namespace's default ServiceAccount and root certificate."""

    name = "serviceaccount-controller"
    workers = 4

    def __init__(self, context: ControlContext, certificate: str) -> None:
        super().__init__(context)
        self._certificate = certificate
        informers = context.informers
        self._accounts = informers.informer(SERVICE_ACCOUNTS, field_selector=f"metadata.name={ACCOUNT}")
        self._maps = informers.informer(CONFIG_MAPS, field_selector=f"metadata.name={CERTIFICATE}")

    def sources(self) -> list[Source]:
        """Namespaces (and, through `start`, the two objects)."""
        return [For(NAMESPACES)]

    async def start(self) -> None:
        """Watch the two objects as well, then start."""

        def changed(old: Object | None, new: Object | None) -> None:
            obj = new or old
            assert obj is not None
            self.queue.add(Key("", obj["metadata"]["namespace"]))

        for informer in (self._accounts, self._maps):
            informer.on_change(changed)
            await informer.wait_synced()
        await super().start()

    async def reconcile(self, key: Key) -> float | None:
        """Make what is missing in one namespace."""
        namespace = self.informer(NAMESPACES).get(key)
        if namespace is None or "deletionTimestamp" in namespace["metadata"]:
            return None
        account: Object = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": key.name},
        }
        bundle: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": CERTIFICATE,
                "namespace": key.name,
                "annotations": {"kubernetes.io/description": _NOTE},
            },
            "data": {"ca.crt": self._certificate},
        }
        await asyncio.gather(
            self._ensure(SERVICE_ACCOUNTS, self._accounts, account), self._ensure(CONFIG_MAPS, self._maps, bundle)
        )
        return None

    async def _ensure(self, resource: Resource, cache: Informer, wanted: Object) -> None:
        found = cache.get(Key.of(wanted))
        try:
            if found is None:
                await self.client.create(resource, wanted)
            elif "data" in wanted and found.get("data") != wanted["data"]:
                await self.client.update(resource, copy(found) | {"data": wanted["data"]})
        except ApiError as error:
            # Somebody else made it, or the namespace is on its way out: either way there is nothing left to do here.
            if not error.already_exists and not error.not_found and not _terminating(error):
                raise


def _terminating(error: ApiError) -> bool:
    causes = error.details.get("causes") or ()
    return error.code == 403 and any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
