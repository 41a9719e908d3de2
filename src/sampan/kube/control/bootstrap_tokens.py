"""Bootstrap tokens at work: ``cluster-info`` signed by each that may sign, and tokens deleted when they end.

`ClusterInfo` keeps the ConfigMap ``kube-public/cluster-info`` (upstream's bootstrapsigner, plus making it); `TokenCleaner`
deletes a token's Secret when its time is over. Both follow the clock.
"""

from __future__ import annotations

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.joining import discovery, tokens
from sampan.kube.objects import Key, Object, copy
from sampan.kube.resources import CONFIG_MAPS, SECRETS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import parse_time

_INFO = Key(discovery.NAMESPACE, discovery.NAME)
_NAMED = f"metadata.name={discovery.NAME}"
_TOKENS = f"type={tokens.TYPE}"
"""Among perhaps many thousand Secrets and ConfigMaps these controllers are about a handful."""


def expires_at(secret: Object) -> float | None:
    """When a token ends, in seconds since the epoch; None: never. An unreadable time has come."""
    text = tokens.secret_data(secret).get("expiration")
    if not text:
        return None
    try:
        return parse_time(text).timestamp()
    except ValueError:
        return 0.0


class TokenCleaner(Controller):
    """Deletes tokens that have expired."""

    name = "token-cleaner"

    def sources(self) -> list[Source]:
        return [For(SECRETS, _TOKENS)]

    async def reconcile(self, key: Key) -> float | None:
        secret = self.informer(SECRETS, _TOKENS).get(key)
        if secret is None or key.namespace != tokens.NAMESPACE:
            return None
        ends = expires_at(secret)
        if ends is None:
            return None
        left = ends - self.clock.time()
        if left > 0:
            return left
        try:
            await self.client.delete(SECRETS, key.name, key.namespace, uid=secret["metadata"]["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise
        return None


class ClusterInfo(Controller):
    """Keeps the cluster's public description and its signatures."""

    name = "bootstrap-signer"

    def __init__(self, context: ControlContext, server: str, authority: str) -> None:
        """``server`` is the base URL under which joining machines reach the API server."""
        super().__init__(context)
        self._text = discovery.described(server, authority)

    def sources(self) -> list[Source]:
        return [For(CONFIG_MAPS, _NAMED), Watches(SECRETS, lambda _: [_INFO], _TOKENS)]

    async def start(self) -> None:
        """See `Controller`; the description is made though nothing has changed yet."""
        await super().start()
        self.queue.add(_INFO)

    async def reconcile(self, key: Key) -> float | None:
        if key != _INFO:
            return None
        wanted = {discovery.KUBECONFIG: self._text}
        soonest: float | None = None
        for secret in self.informer(SECRETS, _TOKENS).objects(tokens.NAMESPACE):
            token = tokens.token_of(secret)
            if token is None or tokens.secret_data(secret).get("usage-bootstrap-signing") != "true":
                continue
            ends = expires_at(secret)
            if ends is not None:
                left = ends - self.clock.time()
                if left <= 0:
                    continue
                soonest = left if soonest is None else min(soonest, left)
            wanted[f"{discovery.SIGNATURE}{token.id}"] = tokens.signature(self._text, token)
        await self._write(wanted)
        return soonest

    async def _write(self, wanted: dict[str, str]) -> None:
        found = self.informer(CONFIG_MAPS, _NAMED).get(_INFO)
        if found is None:
            made = {"metadata": {"name": _INFO.name, "namespace": _INFO.namespace}, "data": wanted}
            try:
                await self.client.create(CONFIG_MAPS, made, _INFO.namespace)
            except ApiError as error:
                if not error.already_exists:
                    raise
        elif found.get("data") != wanted:
            changed: Object = copy(found)
            changed["data"] = wanted
            await self.client.update(CONFIG_MAPS, changed)
