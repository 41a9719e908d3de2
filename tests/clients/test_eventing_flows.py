"""Channels, flows, sources and sinks as their clients see them."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from sampan.kube.client.http import HttpClient
from sampan.kube.client.resources import (
    CLUSTER_ROLE_BINDINGS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    SECRETS,
)
from sampan.kube.objects import Object, Resource
from sampan.kube.status import ApiError
from sampan.parts.eventing.resources import (
    API_SERVER_SOURCES,
    CHANNELS,
    CONTAINER_SOURCES,
    EVENT_TYPES,
    GITHUB_SOURCES,
    JOB_HOST,
    JOB_SINKS,
    PARALLELS,
    PING_SOURCES,
    ROCKETMQ_SINKS,
    ROCKETMQ_SOURCES,
    SEQUENCES,
    SINK_BINDINGS,
    SUBSCRIPTIONS,
    TOPIC_HOST,
    TRIGGERS,
)
from sampan.testing import Platform
from tests.clients.eventing_harness import broker, event, ready, receiver, send, trigger


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(only=["eventing"]) as running:
        yield running


async def make(client: HttpClient, resource: Resource, kind: str, name: str, **spec: Any) -> Object:
    body = {"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}
    return await client.create(resource, body, "default")


async def test_a_channel_fans_out_and_sends_answers_on(platform: Platform) -> None:
    async with platform.client() as client, receiver() as one, receiver() as other, receiver() as answers:
        await make(client, CHANNELS, "Channel", "news")
        made = await ready(client, CHANNELS, "news")
        assert made["spec"]["channelTemplate"]["kind"] == "InMemoryChannel"
        assert made["status"]["address"]["url"] == "http://news-kn-channel.default.svc.cluster.local"
        reference = {"apiVersion": "messaging.knative.dev/v1", "kind": "Channel", "name": "news"}
        one.reply = event("answer", {"from": "one"})
        for name, spec in (
            ("news-one", {"subscriber": {"uri": one.url}, "reply": {"uri": answers.url}}),
            ("news-other", {"subscriber": {"uri": other.url}}),
        ):
            await make(client, SUBSCRIPTIONS, "Subscription", name, channel=reference, **spec)
            await ready(client, SUBSCRIPTIONS, name)
        host = "news-kn-channel.default.svc.cluster.local"
        assert await send(platform, "/", event("news", {"n": 1}), Host=host) == 202
        assert [(await each.wait(1))[0].data for each in (one, other)] == [{"n": 1}] * 2
        assert (await answers.wait(1))[0].data == {"from": "one"}
        assert await send(platform, "/", event(), Host="nobody-kn-channel.default.svc.cluster.local") == 404
        await client.delete(SUBSCRIPTIONS, "news-other", "default")
        async with asyncio.timeout(20):
            while len((await client.get(CHANNELS, "news", "default"))["status"].get("subscribers") or ()) > 1:
                await asyncio.sleep(0.02)
        assert await send(platform, "/", event("news", {"n": 2}), Host=host) == 202
        await one.wait(2)
        assert len(other.events) == 1


async def test_a_sequence_passes_each_answer_on(platform: Platform) -> None:
    async with platform.client() as client, receiver() as first, receiver() as second, receiver() as end:
        first.reply, second.reply = event("one", {"step": 1}), event("two", {"step": 2})
        steps = [{"uri": first.url}, {"uri": second.url}]
        await make(client, SEQUENCES, "Sequence", "steps", steps=steps, reply={"uri": end.url})
        made = await ready(client, SEQUENCES, "steps")
        assert len(made["status"]["channelStatuses"]) == 2
        host = made["status"]["address"]["url"].removeprefix("http://")
        assert await send(platform, "/", event("zero", {"step": 0}), Host=host) == 202
        assert (await first.wait(1))[0].data == {"step": 0}
        assert (await second.wait(1))[0].data == {"step": 1}
        assert (await end.wait(1))[0].data == {"step": 2}


async def test_a_parallel_serves_every_branch_whose_filter_answers(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sieve, receiver() as sieved, receiver() as plain:
        branches = [
            {"filter": {"uri": sieve.url}, "subscriber": {"uri": sieved.url}},
            {"subscriber": {"uri": plain.url}},
        ]
        await make(client, PARALLELS, "Parallel", "fork", branches=branches)
        made = await ready(client, PARALLELS, "fork")
        host = made["status"]["address"]["url"].removeprefix("http://")
        assert await send(platform, "/", event("e", {"n": 1}), Host=host) == 202
        await plain.wait(1)
        await sieve.wait(1)
        sieve.reply = event("passed", {"n": 2})
        assert await send(platform, "/", event("e", {"n": 2}), Host=host) == 202
        assert (await sieved.wait(1))[0]["type"] == "passed"
        assert len(await plain.wait(2)) == 2
        assert len(sieved.events) == 1


async def test_an_api_server_source_tells_of_objects_with_its_accounts_rights(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        resources = [{"apiVersion": "v1", "kind": "ConfigMap", "selector": {"matchLabels": {"watch": "me"}}}]
        await make(client, API_SERVER_SOURCES, "ApiServerSource", "maps", resources=resources, sink={"uri": sink.url})
        refused = await ready(client, API_SERVER_SOURCES, "maps", "False")
        why = next(one for one in refused["status"]["conditions"] if one["type"] == "SufficientPermissions")
        assert "system:serviceaccount:default:default" in why["message"]
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "maps-view"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        }
        await client.create(CLUSTER_ROLE_BINDINGS, binding)
        await ready(client, API_SERVER_SOURCES, "maps")
        for name, labels in (("unseen", {}), ("seen", {"watch": "me"})):
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}}
            await client.create(CONFIG_MAPS, body, "default")
        await client.delete(CONFIG_MAPS, "seen", "default")
        added, deleted = await sink.wait(2)
        assert added["type"] == "dev.knative.apiserver.ref.add"
        assert deleted["type"] == "dev.knative.apiserver.ref.delete"
        assert added["subject"] == "/api/v1/namespaces/default/configmaps/seen"
        assert added.data == {"kind": "ConfigMap", "namespace": "default", "name": "seen", "apiVersion": "v1"}


async def test_messages_of_a_topic_become_events_and_events_become_messages(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        await make(client, ROCKETMQ_SINKS, "RocketMQSink", "orders", topic="orders")
        made = await ready(client, ROCKETMQ_SINKS, "orders")
        assert made["status"]["address"]["url"] == f"http://{TOPIC_HOST}/default/orders"
        source = {"topic": "orders", "groupName": "billing", "sink": {"uri": sink.url}}
        await make(client, ROCKETMQ_SOURCES, "RocketMQSource", "orders", **source)
        await ready(client, ROCKETMQ_SOURCES, "orders")
        assert await send(platform, "/default/orders", event("order", {"n": 1}), Host=TOPIC_HOST) == 202
        (got,) = await sink.wait(1)
        assert (got["type"], got["source"]) == ("RocketMQEventType", "rocketmq")
        assert got.data["Topic"] == "orders"
        assert json.loads(base64.b64decode(got.data["Body"])) == {"n": 1}
        assert got.data["Properties"]["CE_type"] == "order"
        assert await send(platform, "/default/nothing", event(), Host=TOPIC_HOST) == 404


async def test_a_source_whose_proxy_is_away_says_so(platform: Platform) -> None:
    async with platform.client() as client:
        away = {"namesrvAddr": "127.0.0.1:9", "topic": "orders", "sink": {"uri": "http://sink.example/"}}
        await make(client, ROCKETMQ_SOURCES, "RocketMQSource", "away", **away)
        found = await ready(client, ROCKETMQ_SOURCES, "away", "False")
        (deployed,) = [one for one in found["status"]["conditions"] if one["type"] == "Deployed"]
        assert deployed["reason"] == "ConnectionFailed"
        assert "127.0.0.1:9" in deployed["message"]
        keys = {"accessKey": {"name": "nobody", "key": "k"}, "secretKey": {"name": "nobody", "key": "s"}}
        patch = {"spec": {"accessToken": keys}}
        await client.patch(ROCKETMQ_SOURCES, "away", patch, "default")
        async with asyncio.timeout(20):
            while deployed["reason"] != "SecretMissing":
                found = await ready(client, ROCKETMQ_SOURCES, "away", "False")
                (deployed,) = [one for one in found["status"]["conditions"] if one["type"] == "Deployed"]


async def test_a_container_source_is_told_its_sink_and_loses_it_with_the_binding(platform: Platform) -> None:
    async with platform.client() as client:
        template = {"spec": {"containers": [{"name": "beat", "image": "heartbeats"}]}}
        sink = {"uri": "http://sink.example/"}
        overrides = {"extensions": {"region": "eu"}}
        await make(
            client, CONTAINER_SOURCES, "ContainerSource", "beat", template=template, sink=sink, ceOverrides=overrides
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    made = await client.get(DEPLOYMENTS, "beat-deployment", "default")
                    break
                except ApiError as error:
                    assert error.not_found
                    await asyncio.sleep(0.02)
        env = {one["name"]: one["value"] for one in made["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert env == {"K_SINK": "http://sink.example/", "K_CE_OVERRIDES": '{"extensions":{"region":"eu"}}'}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "later"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        }
        await client.create(DEPLOYMENTS, body, "default")
        subject = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "later"}
        await make(client, SINK_BINDINGS, "SinkBinding", "later", subject=subject, sink=sink)
        await ready(client, SINK_BINDINGS, "later")

        async def bound() -> bool:
            found = await client.get(DEPLOYMENTS, "later", "default")
            return bool(found["spec"]["template"]["spec"]["containers"][0].get("env"))

        async with asyncio.timeout(20):
            while not await bound():
                await asyncio.sleep(0.02)
            await client.delete(SINK_BINDINGS, "later", "default")
            while await bound():
                await asyncio.sleep(0.02)


async def test_a_job_sink_starts_one_job_an_event(platform: Platform) -> None:
    async with platform.client() as client, aiohttp.ClientSession() as session:
        containers = [{"name": "main", "image": "busybox"}]
        await make(
            client, JOB_SINKS, "JobSink", "work", job={"spec": {"template": {"spec": {"containers": containers}}}}
        )
        await ready(client, JOB_SINKS, "work")
        made = event("todo", {"n": 1}, id="same")
        for _ in range(2):
            assert await send(platform, "/default/work", made, Host=JOB_HOST) == 202
        (job,) = (await client.list(JOBS, "default", label_selector="sinks.knative.dev/job-sink-name=work")).items
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert {"name": "K_EVENT_PATH", "value": "/etc/jobsink-event/event"} in container["env"]
        secret = await client.get(SECRETS, job["metadata"]["name"], "default")
        assert json.loads(base64.b64decode(secret["data"]["event"]))["data"] == {"n": 1}
        where = f"http://{platform.address('eventing.ingress')}/namespaces/default/name/work/sources/%2Fshop/ids/same"
        async with session.get(URL(where, encoded=True), headers={"Host": JOB_HOST}) as response:
            assert response.status == 202


async def test_a_github_source_makes_its_webhook_and_takes_only_signed_calls(platform: Platform) -> None:
    calls: list[tuple[str, str, dict[str, Any]]] = []

    async def api(request: web.BaseRequest) -> web.Response:
        """GitHub's API, as far as webhooks are made and deleted."""
        body = await request.read()
        calls.append((request.method, request.path, json.loads(body or b"{}")))
        assert request.headers["Authorization"] == "Bearer token"
        return web.json_response({"id": 77}, status=201) if request.method == "POST" else web.Response(status=204)

    server = TestServer(web.Application())
    server.app.router.add_route("*", "/{path:.*}", api)
    async with platform.client() as client, receiver() as sink, server, aiohttp.ClientSession() as session:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "github"},
            "stringData": {"access": "token", "secret": "hush"},
        }
        await client.create(SECRETS, secret, "default")
        spec = {
            "ownerAndRepository": "boats/sampan",
            "eventTypes": ["issues"],
            "accessToken": {"secretKeyRef": {"name": "github", "key": "access"}},
            "secretToken": {"secretKeyRef": {"name": "github", "key": "secret"}},
            "githubAPIURL": str(server.make_url("/")),
            "sink": {"uri": sink.url},
        }
        await make(client, GITHUB_SOURCES, "GitHubSource", "boats", **spec)
        made = await ready(client, GITHUB_SOURCES, "boats")
        assert made["status"]["webhookIDKey"] == "77"
        ((method, path, hook),) = calls
        assert (method, path, hook["events"]) == ("POST", "/repos/boats/sampan/hooks", ["issues"])
        url, body = hook["config"]["url"], b'{"issue": {"number": 12}}'
        headers = {"X-GitHub-Event": "issues", "X-GitHub-Delivery": "d-1"}
        signed = {"X-Hub-Signature-256": f"sha256={hmac.new(b'hush', body, 'sha256').hexdigest()}"}
        for more, status in (({}, 401), ({"X-Hub-Signature": "sha1=00"}, 401), (signed, 202)):
            async with session.post(url, data=body, headers={**headers, **more}) as response:
                assert response.status == status
        (got,) = await sink.wait(1)
        assert (got["type"], got["subject"], got["id"]) == ("dev.knative.source.github.issues", "12", "d-1")
        assert got["source"] == "https://github.com/boats/sampan"
        await client.delete(GITHUB_SOURCES, "boats", "default")
        async with asyncio.timeout(20):
            while len(calls) < 2:
                await asyncio.sleep(0.02)
        assert calls[1][:2] == ("DELETE", "/repos/boats/sampan/hooks/77")


async def test_event_types_appear_where_the_feature_is_on(platform: Platform) -> None:
    async with platform.client() as client:
        await broker(client, "typed")
        patch = {"data": {"eventtype-auto-create": "enabled"}}
        await client.patch(CONFIG_MAPS, "config-features", patch, "knative-eventing")
        async with asyncio.timeout(20):
            while not (found := (await client.list(EVENT_TYPES, "default")).items):
                assert await send(platform, "/default/typed", event("brand.new")) == 202
                await asyncio.sleep(0.05)
        assert found[0]["metadata"]["name"].startswith("et-typed-")
        assert found[0]["spec"]["type"] == "brand.new"
        await ready(client, EVENT_TYPES, found[0]["metadata"]["name"])


@pytest.mark.parametrize(
    ("resource", "kind", "spec", "why"),
    [
        (TRIGGERS, "Trigger", {"broker": "b"}, "spec.subscriber.ref, spec.subscriber.uri"),
        (TRIGGERS, "Trigger", {"subscriber": {"uri": "http://a/"}, "filters": [{"cesql": "a ="}]}, "spec.filters[0]"),
        (
            TRIGGERS,
            "Trigger",
            {"subscriber": {"uri": "http://a/"}, "delivery": {"backoffDelay": "1s"}},
            "spec.delivery.backoffDelay",
        ),
        (PING_SOURCES, "PingSource", {"schedule": "never", "sink": {"uri": "http://a/"}}, "spec.schedule"),
        (PING_SOURCES, "PingSource", {"timezone": "Mars/One", "sink": {"uri": "http://a/"}}, "spec.timezone"),
        (SUBSCRIPTIONS, "Subscription", {"subscriber": {"uri": "http://a/"}}, "missing field(s): spec.channel"),
        (SEQUENCES, "Sequence", {}, "missing field(s): spec.steps"),
        (SINK_BINDINGS, "SinkBinding", {"sink": {"uri": "http://a/"}}, "spec.subject.apiVersion"),
        (ROCKETMQ_SINKS, "RocketMQSink", {"topic": "t", "namesrvAddr": "somewhere"}, "spec.namesrvAddr"),
        (
            ROCKETMQ_SOURCES,
            "RocketMQSource",
            {"topic": "t", "namesrvAddr": "a:0", "sink": {"uri": "http://a/"}},
            "host:port",
        ),
    ],
)
async def test_an_invalid_object_is_refused_in_upstreams_words(
    platform: Platform, resource: Resource, kind: str, spec: dict[str, Any], why: str
) -> None:
    async with platform.client() as client:
        with pytest.raises(ApiError) as refused:
            await make(client, resource, kind, "bad", **spec)
        assert refused.value.code == 400
        assert 'admission webhook "validation.webhook.eventing.knative.dev" denied the request' in refused.value.message
        assert why in refused.value.message


async def test_a_trigger_waits_for_what_it_refers_to(platform: Platform) -> None:
    async with platform.client() as client, receiver() as sink:
        body = {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": "early"},
            "spec": {"broker": "late", "subscriber": {"uri": sink.url}},
        }
        await client.create(TRIGGERS, body, "default")
        waiting = await ready(client, TRIGGERS, "early", "False")
        messages = [one.get("message") for one in waiting["status"]["conditions"] if one["type"] == "BrokerReady"]
        assert messages == ['Broker "late" does not exist']
        await broker(client, "late")
        await ready(client, TRIGGERS, "early")
        await trigger(client, "late-too", "late", sink.url, filter={"attributes": {"type": "nothing"}})
        assert await send(platform, "/default/late", event()) == 202
        await sink.wait(1)


async def test_a_ping_source_rings_when_the_clock_says_so() -> None:
    with Platform(only=["eventing"]) as platform:
        async with platform.client() as client, receiver() as sink:
            platform.clock.jump(86_400 - platform.clock.time() % 86_400)  # midnight of UTC: eight in Shanghai
            spec = {"schedule": "0 9 * * *", "timezone": "Asia/Shanghai", "data": '{"good": "morning"}'}
            await make(client, PING_SOURCES, "PingSource", "morning", **spec, sink={"uri": sink.url})
            await ready(client, PING_SOURCES, "morning")
            platform.clock.jump(86_400)
            (rung,) = await sink.wait(1)
            assert rung["type"] == "dev.knative.sources.ping"
            assert rung["source"] == "/apis/v1/namespaces/default/pingsources/morning"
            assert rung.data == {"good": "morning"}
