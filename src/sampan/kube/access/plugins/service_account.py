"""ServiceAccount: every pod runs as an account of its namespace and finds its token at the usual place."""

from __future__ import annotations

import secrets
from typing import Any

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.refusal import refused
from sampan.kube.access.tokens import SECONDS_POD
from sampan.kube.objects import Object, copy
from sampan.kube.resources import PODS, SERVICE_ACCOUNTS
from sampan.kube.types.names import ALPHABET

MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
DEFAULT = "default"
MIRROR = "kubernetes.io/config.mirror"
ATTEMPTS = 10
RETRY_SECONDS = 0.1
"""How often and at what distance the ``default`` account is looked for: in a fresh namespace it is about to be made."""


class ServiceAccount(Plugin):
    """Fills ``serviceAccountName``, the projected token volume and its mounts, and the account's image pull secrets."""

    operations = ("CREATE",)
    resources = (PODS,)

    async def admit(self, request: AdmissionRequest) -> None:
        pod = request.object
        assert pod is not None
        spec = pod.setdefault("spec", {})
        if MIRROR in (pod["metadata"].get("annotations") or {}):
            return
        if not spec.get("serviceAccountName"):
            spec["serviceAccountName"] = spec.get("serviceAccount") or DEFAULT
        spec["serviceAccount"] = spec["serviceAccountName"]
        account = await self._account(request, spec["serviceAccountName"])
        if _automount(spec, account):
            _mount(spec)
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = copy(account["imagePullSecrets"])

    async def validate(self, request: AdmissionRequest) -> None:
        pod = request.object
        assert pod is not None
        spec = pod["spec"]
        if MIRROR in (pod["metadata"].get("annotations") or {}):
            if spec.get("serviceAccountName"):
                raise refused(request, "a mirror pod may not reference service accounts")
            return
        await self._account(request, spec.get("serviceAccountName") or DEFAULT)

    async def _account(self, request: AdmissionRequest, name: str) -> Object:
        clock = self.context.clock
        account = self.cache.get(SERVICE_ACCOUNTS, request.namespace, name)
        # On a clock that stands still nobody would wake the waiting.
        if account is None and name == DEFAULT and clock.timeline.rate > 0:
            for _ in range(ATTEMPTS):
                await clock.sleep(RETRY_SECONDS)
                account = self.cache.get(SERVICE_ACCOUNTS, request.namespace, name)
                if account is not None:
                    break
        if account is None:
            where = f"{request.namespace}/{name}"
            raise refused(request, f'error looking up service account {where}: serviceaccount "{name}" not found')
        return account


def _automount(spec: Object, account: Object) -> bool:
    for holder in (spec, account):
        if holder.get("automountServiceAccountToken") is not None:
            return bool(holder["automountServiceAccountToken"])
    return True


def _mount(spec: Object) -> None:
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    volumes: list[Any] = spec.get("volumes") or []
    name = next((volume["name"] for volume in volumes if volume["name"].startswith("kube-api-access-")), None)
    missing = [container for container in containers if not _mounted(container)]
    if not missing:
        return
    if name is None:
        name = "kube-api-access-" + "".join(secrets.choice(ALPHABET) for _ in range(5))
        spec["volumes"] = [*volumes, token_volume(name)]
    for container in missing:
        mount = {"name": name, "readOnly": True, "mountPath": MOUNT_PATH}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]


def _mounted(container: Object) -> bool:
    return any(mount.get("mountPath") == MOUNT_PATH for mount in container.get("volumeMounts") or ())


def token_volume(name: str) -> Object:
    """The projected volume with the account's token, the authority's certificate and the namespace."""
    field = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    authority = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return {
        "name": name,
        "projected": {
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": SECONDS_POD, "path": "token"}},
                {"configMap": authority},
                {"downwardAPI": {"items": [field]}},
            ],
            "defaultMode": 420,
        },
    }
