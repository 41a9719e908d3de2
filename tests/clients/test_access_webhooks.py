"""Admission webhooks over real HTTPS: the platform asks a server that is nobody's stub."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import sampan.testing
from sampan.kernel.certificates import Authority
from tests.clients.kubectl import kubectl as kubectl_binary

SERVICE = "hook.hooks.svc"


class Hook:
    """An HTTPS webhook server on a thread of its own; ``answer`` decides, path by path."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.answer: Callable[[str, Any], dict[str, Any]] = lambda path, request: {"allowed": True}
        self.reviews: list[tuple[str, Any]] = []
        self.release = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._started.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        tls = self.authority.server_context([SERVICE, "localhost", "127.0.0.1"])
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.Response:
        review = await request.json()
        self.reviews.append((request.path_qs, review))
        if request.path == "/slow":
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        if request.path == "/huge":
            return web.Response(body=b"x" * (4 << 20))
        if request.path == "/cut":
            assert request.transport is not None
            request.transport.close()
        if request.path == "/elsewhere":
            raise web.HTTPFound("https://localhost/")
        if request.path == "/broken":
            return web.Response(text="not JSON")
        response = {"uid": review["request"]["uid"], **self.answer(request.path, review["request"])}
        kind = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        return web.json_response({**kind, "response": response})

    def stop(self) -> None:
        self.release.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def client(self, path: str, **changes: Any) -> dict[str, Any]:
        bundle = base64.b64encode(self.authority.certificate_pem).decode()
        return {"url": f"https://localhost:{self.port}{path}", "caBundle": bundle, **changes}


@pytest.fixture(scope="module")
def platform() -> Iterator[sampan.testing.Platform]:
    with sampan.testing.Platform(only=["kubernetes"]) as running:
        yield running


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    running = Hook(tmp_path / "pki")
    yield running
    running.stop()


class Kubectl:
    def __init__(self, platform: sampan.testing.Platform) -> None:
        self._command = [str(kubectl_binary()), "--kubeconfig", str(platform.kubeconfig)]

    def __call__(self, *arguments: str, stdin: Any = None) -> str:
        """Output and errors together."""
        given = None if stdin is None else json.dumps(stdin)
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, input=given, timeout=60)
        return done.stdout + done.stderr

    def configure(self, kind: str, name: str, *webhooks: dict[str, Any]) -> None:
        metadata = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}}
        created = self("create", "--validate=false", "-f", "-", stdin={**metadata, "webhooks": list(webhooks)})
        assert "created" in created, created


@pytest.fixture
def kubectl(platform: sampan.testing.Platform) -> Iterator[Kubectl]:
    run = Kubectl(platform)
    yield run
    run("delete", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "--all")
    run("delete", "configmaps", "-l", "test=webhooks", "-n", "default")


def webhook(client: dict[str, Any], name: str = "w.example.com", **fields: Any) -> dict[str, Any]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}
    made = {
        "name": name,
        "clientConfig": client,
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "objectSelector": {"matchLabels": {"test": "webhooks"}},
    }
    return {**made, **fields}


def colours(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default", "labels": {"test": "webhooks"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"sea": "blue"}}


def make(kubectl: Kubectl, name: str, *options: str) -> str:
    return kubectl("create", "--validate=false", "-f", "-", *options, stdin=colours(name))


def test_a_webhook_changes_and_another_refuses(kubectl: Kubectl, hook: Hook) -> None:
    patch = [{"op": "add", "path": "/data/sky", "value": "grey"}]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()

    def answer(path: str, request: Any) -> dict[str, Any]:
        if path == "/mutate":
            return {"allowed": True, "patchType": "JSONPatch", "patch": encoded, "warnings": ["the sky is not yours"]}
        if request["name"] == "bad":
            return {"allowed": False, "status": {"code": 403, "reason": "Forbidden", "message": "no bad colours"}}
        assert request["object"]["data"]["sky"] == "grey"
        return {"allowed": True}

    hook.answer = answer
    kubectl.configure("MutatingWebhookConfiguration", "m", webhook(hook.client("/mutate")))
    kubectl.configure("ValidatingWebhookConfiguration", "v", webhook(hook.client("/validate")))
    said = make(kubectl, "good")
    assert "configmap/good created" in said
    assert "Warning: the sky is not yours" in said
    assert kubectl("get", "configmap", "good", "-o", "jsonpath={.data.sky}") == "grey"
    refused = make(kubectl, "bad")
    assert (
        '(Forbidden): error when creating "STDIN": admission webhook "w.example.com" denied the request: no bad'
        in refused
    )
    assert "NotFound" in kubectl("get", "configmap", "bad")
    assert [path for path, _ in hook.reviews[:2]] == ["/mutate?timeout=10s", "/validate?timeout=10s"]


def test_a_webhook_behind_a_service_is_reached_without_dns(kubectl: Kubectl, hook: Hook) -> None:
    kubectl("create", "namespace", "hooks")
    kubectl("create", "service", "externalname", "hook", "-n", "hooks", "--external-name=localhost")
    service = {"namespace": "hooks", "name": "hook", "port": hook.port, "path": "/by-service"}
    client = {"service": service, "caBundle": hook.client("/")["caBundle"]}
    kubectl.configure("ValidatingWebhookConfiguration", "v", webhook(client))
    assert "created" in make(kubectl, "served")
    assert hook.reviews[0][0] == "/by-service?timeout=10s"


def test_a_webhook_that_cannot_be_asked_refuses_or_is_ignored(kubectl: Kubectl, hook: Hook, tmp_path: Path) -> None:
    stranger = base64.b64encode(Authority(tmp_path / "stranger").certificate_pem).decode()
    for name, client, words in (
        ("stranger", hook.client("/", caBundle=stranger), "tls: failed to verify certificate"),
        ("broken", hook.client("/broken"), "the response is not JSON"),
        ("huge", hook.client("/huge"), "the response is larger than 3145728 bytes"),
        ("cut", hook.client("/cut"), "failed to call webhook"),
        ("elsewhere", hook.client("/elsewhere"), "(code 302)"),
        ("closed", hook.client("/", url="https://127.0.0.1:1/"), "connection refused"),
    ):
        kubectl.configure("ValidatingWebhookConfiguration", name, webhook(client))
        refused = make(kubectl, name)
        assert 'Internal error occurred: failed calling webhook "w.example.com"' in refused
        assert words in refused
        kubectl("delete", "validatingwebhookconfiguration", name)
        kubectl.configure("ValidatingWebhookConfiguration", name, webhook(client, failurePolicy="Ignore"))
        assert "created" in make(kubectl, name)
        kubectl("delete", "validatingwebhookconfiguration", name)


def test_a_slow_webhook_is_given_up_although_the_platforms_clock_stands_still(
    platform: sampan.testing.Platform, kubectl: Kubectl, hook: Hook
) -> None:
    kubectl.configure("ValidatingWebhookConfiguration", "v", webhook(hook.client("/slow"), timeoutSeconds=1))
    said: list[str] = []
    platform.clock.freeze()
    try:
        creating = threading.Thread(target=lambda: said.append(make(kubectl, "slow")))
        creating.start()
        while not hook.reviews:
            creating.join(0.01)
        platform.clock.jump(3600)  # it has no part in this either
        creating.join(60)
    finally:
        platform.clock.run()
    assert "context deadline exceeded" in said[0]


def test_a_dry_run_tells_the_webhook_and_spares_side_effects(kubectl: Kubectl, hook: Hook) -> None:
    kubectl.configure("ValidatingWebhookConfiguration", "v", webhook(hook.client("/v"), sideEffects="NoneOnDryRun"))
    assert "created (server dry run)" in make(kubectl, "dry", "--dry-run=server")
    assert hook.reviews[0][1]["request"]["dryRun"] is True
    assert "NotFound" in kubectl("get", "configmap", "dry")


def test_a_platform_starts_although_a_webhook_that_is_gone_guards_everything(tmp_path: Path) -> None:
    everything = {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}
    guard = webhook({"url": "https://127.0.0.1:1/"}, rules=[everything, {**everything, "resources": ["*"]}])
    del guard["objectSelector"]
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path) as platform:
        Kubectl(platform).configure("ValidatingWebhookConfiguration", "guard", guard)
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path) as platform:
        kubectl = Kubectl(platform)
        assert "connection refused" in make(kubectl, "guarded")
        assert "deleted" in kubectl("delete", "validatingwebhookconfiguration", "guard")
        assert "created" in make(kubectl, "guarded")
