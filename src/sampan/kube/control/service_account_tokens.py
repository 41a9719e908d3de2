"""Secrets of type ``kubernetes.io/service-account-token``: filled with a lasting token, gone with their ServiceAccount.

Who needs a token that never expires makes such a Secret, annotated with the account's name; this controller puts the token,
the authority's certificate and the namespace in.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Protocol

from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, copy
from sampan.kube.resources import SECRETS, SERVICE_ACCOUNTS
from sampan.kube.status import ApiError

TOKEN_TYPE = "kubernetes.io/service-account-token"  # noqa: S105 (a type, no secret)
_TOKENS = f"type={TOKEN_TYPE}"
NAME = "kubernetes.io/service-account.name"
UID = "kubernetes.io/service-account.uid"


class TokenMaker(Protocol):
    """Makes the tokens (``access.tokens.Tokens``)."""

    def legacy(self, service_account: Object, secret: Object) -> str: ...


class ServiceAccountTokens(Controller):
    """Fills and removes token Secrets."""

    name = "serviceaccount-token"

    def __init__(self, context: ControlContext, tokens: TokenMaker, authority_certificate: bytes) -> None:
        super().__init__(context)
        self._tokens = tokens
        self._authority_certificate = authority_certificate

    def sources(self) -> list[Source]:
        return [For(SECRETS, _TOKENS), Watches(SERVICE_ACCOUNTS, self._secrets_of)]

    def _secrets_of(self, account: Object) -> Iterable[Key]:
        metadata = account["metadata"]
        for secret in self.informer(SECRETS, _TOKENS).objects(metadata["namespace"]):
            if account_name(secret) == metadata["name"]:
                yield Key.of(secret)

    async def reconcile(self, key: Key) -> float | None:
        secret = self.informer(SECRETS, _TOKENS).get(key)
        if secret is None or secret["metadata"].get("deletionTimestamp"):
            return None
        name = account_name(secret)
        if name is None:
            return None
        # The account may be newer than the informer's cache: a Secret is deleted on the API's word only.
        try:
            account = await self.client.get(SERVICE_ACCOUNTS, name, key.namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            account = None
        wanted_uid = (secret["metadata"].get("annotations") or {}).get(UID)
        if account is None or (wanted_uid and wanted_uid != account["metadata"]["uid"]):
            await self._delete(secret)
            return None
        filled = self._filled(secret, account)
        if filled is not None:
            await self.client.update(SECRETS, filled)
        return None

    def _filled(self, secret: Object, account: Object) -> Object | None:
        """The Secret with what it lacks, or None when it lacks nothing."""
        data = secret.get("data") or {}
        wanted = {
            "ca.crt": base64.b64encode(self._authority_certificate).decode(),
            "namespace": base64.b64encode(secret["metadata"]["namespace"].encode()).decode(),
        }
        changed: Object = copy(secret)
        changed["data"] = {**data, **wanted}
        changed["metadata"].setdefault("annotations", {})[UID] = account["metadata"]["uid"]
        if not data.get("token"):
            token = self._tokens.legacy(account, secret)
            changed["data"]["token"] = base64.b64encode(token.encode()).decode()
        return None if changed == secret else changed

    async def _delete(self, secret: Object) -> None:
        metadata = secret["metadata"]
        try:
            await self.client.delete(SECRETS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise


def account_name(secret: Object) -> str | None:
    """The ServiceAccount that a token Secret is for; None for other Secrets."""
    if secret.get("type") != TOKEN_TYPE:
        return None
    name: str | None = (secret["metadata"].get("annotations") or {}).get(NAME)
    return name or None
