"""GitHubSource: a repository's webhook, made through GitHub's API, and its calls as events.

GitHub calls ``<public address>/github/<namespace>/<name>``; the public address is a setting, since a laptop has none by itself. A
call is answered when the sink has taken the event, so that GitHub shows what went wrong.
"""

from __future__ import annotations

import base64

import msgspec
from aiohttp import web

from sampan.kube.client.resources import SECRETS
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.eventing import github
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import emit, overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.delivery import Delivery
from sampan.parts.eventing.resources import GITHUB_SOURCES

FINALIZER = "githubsources.sources.knative.dev"
API = "https://api.github.com/"
PREFIX = "github"
DELIVERY = Delivery(retry=3, delay=0.1, timeout=8.0)
"""GitHub waits ten seconds for an answer."""
AGAIN = 10.0
"""Seconds until GitHub, or a Secret, is asked again."""


class GitHubSourceController(Controller):
    """Makes webhooks, and takes their calls."""

    name = "githubsource-controller"

    def __init__(self, shared: Shared, public_url: str) -> None:
        super().__init__(shared.context)
        self._shared = shared
        self._public_url = public_url.rstrip("/")

    def sources(self) -> list[Source]:
        return [For(GITHUB_SOURCES)]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(GITHUB_SOURCES).get(key)
        if source is None:
            return None
        finalizers: list[str] = source["metadata"].get("finalizers") or []
        if source["metadata"].get("deletionTimestamp"):
            if FINALIZER in finalizers:
                await self._unhook(source)
                await self._finalizers(source, [one for one in finalizers if one != FINALIZER])
            return None
        if FINALIZER not in finalizers:
            await self._finalizers(source, [*finalizers, FINALIZER])
            return None
        conditions = ConditionSet(source, ("SecretsProvided", "SinkProvided", "WebhookConfigured"), self.clock.now())
        url = await resolve_sink(self, self._shared, source, conditions)
        hook: str = dig(source, "status", "webhookIDKey", default="")
        again: float | None = None
        try:
            token, secret = await self._secret(source, "accessToken"), await self._secret(source, "secretToken")
            conditions.true("SecretsProvided")
        except ApiError as error:
            conditions.false("SecretsProvided", "AccessTokenNotFound", str(error))
            conditions.unknown("WebhookConfigured")
            again = AGAIN
        else:
            if not hook and url:
                hook, why = await self._hook(source, token, secret)
                if not hook:
                    conditions.false("WebhookConfigured", "CreationFailed", why)
                    again = AGAIN
            if hook:
                conditions.true("WebhookConfigured")
        types = [
            (f"{github.TYPE}{kind}", f"https://github.com/{source['spec']['ownerAndRepository']}")
            for kind in source["spec"]["eventTypes"]
        ]
        fields = {**source_fields(url, types), **address(self._url(key)), "webhookIDKey": hook or None}
        await write_status(self, GITHUB_SOURCES, source, conditions, fields)
        return again

    async def take(self, request: web.BaseRequest, body: bytes) -> web.Response:
        """Answer a call of a webhook."""
        parts = [part for part in request.path.split("/") if part]
        source = self.informer(GITHUB_SOURCES).get(Key(parts[1], parts[2])) if len(parts) == 3 else None
        if source is None:
            return web.Response(status=404)
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        if not github.verified(request.headers, body, await self._secret(source, "secretToken")):
            return web.Response(status=401, text="the signature is missing or wrong\n")
        if request.headers.get("X-GitHub-Event") not in source["spec"]["eventTypes"]:
            return web.Response(status=200, text="the source does not ask for this event\n")
        event = github.event_of(request.headers, body, source["spec"]["ownerAndRepository"])
        sink = dig(source, "status", "sinkUri", default="")
        if not sink:
            return web.Response(status=503, text="the source has no sink\n")
        outcome = await emit(
            self._shared,
            sink,
            event,
            overrides(source),
            DELIVERY,
            source["metadata"]["namespace"],
            origin=f"githubsource {Key.of(source)}",
        )
        return web.Response(status=202 if outcome.ok else 502)

    def _url(self, key: Key) -> str:
        return f"{self._public_url}/{PREFIX}/{key.namespace}/{key.name}"

    async def _finalizers(self, source: Object, finalizers: list[str]) -> None:
        changed: Object = copy(source)
        changed["metadata"]["finalizers"] = finalizers
        await self.client.update(GITHUB_SOURCES, changed)

    async def _secret(self, source: Object, field: str) -> str:
        """The value of a Secret that the source names; empty where it names none."""
        selector = dig(source, "spec", field, "secretKeyRef")
        if not selector:
            return ""
        secret = await self.client.get(SECRETS, selector["name"], source["metadata"]["namespace"])
        data = secret.get("data") or {}
        if selector["key"] not in data:
            raise ApiError(404, "NotFound", f'Secret "{selector["name"]}" has no key {selector["key"]}')
        return base64.b64decode(data[selector["key"]]).decode().strip()

    def _hooks(self, source: Object) -> str:
        api = (source["spec"].get("githubAPIURL") or API).rstrip("/")
        repository = source["spec"]["ownerAndRepository"]
        return f"{api}/repos/{repository}/hooks" if "/" in repository else f"{api}/orgs/{repository}/hooks"

    async def _hook(self, source: Object, token: str, secret: str) -> tuple[str, str]:
        """The made webhook's id, or why there is none."""
        config = {
            "url": self._url(Key.of(source)),
            "content_type": "json",
            "secret": secret,
            "insecure_ssl": "0" if source["spec"].get("secure") else "1",
        }
        wanted = {"name": "web", "active": True, "events": source["spec"]["eventTypes"], "config": config}
        answer = await self._shared.transport.post(
            self._hooks(source), _headers(token), msgspec.json.encode(wanted), timeout=10.0
        )
        if not answer.outcome.ok:
            said = answer.outcome.status or answer.outcome.reason
            return "", f"GitHub did not make the webhook: {said} {answer.body[:200].decode(errors='replace')}"
        return str(msgspec.json.decode(answer.body, type=dict[str, object]).get("id") or ""), ""

    async def _unhook(self, source: Object) -> None:
        hook = dig(source, "status", "webhookIDKey")
        if not hook:
            return
        try:
            token = await self._secret(source, "accessToken")
        except ApiError as error:
            if not error.not_found:
                raise
            self.recorder.event(source, "Warning", "WebhookLeft", "the token is gone, so the webhook stays at GitHub")
            return
        answer = await self._shared.transport.post(
            f"{self._hooks(source)}/{hook}", _headers(token), b"", timeout=10.0, method="DELETE"
        )
        if not answer.outcome.ok:
            said = answer.outcome.status or answer.outcome.reason
            self.recorder.event(source, "Warning", "WebhookLeft", f"GitHub did not delete the webhook: {said}")


def _headers(token: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {token}",
        "Accept": "application/vnd.github+json",
        "Content-Type": "application/json",
    }
