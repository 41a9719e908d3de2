"""Knative Services through kubectl, the gateway and a steered clock; only the node is played."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import requests

from sampan.parts.node import ImageDigests
from tests.clients.serving_world import World, service, serving_world

HELLO_WORLD = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: helloworld-go
  namespace: default
spec:
  template:
    spec:
      containers:
        - image: ghcr.io/knative/helloworld-go:latest
          env:
            - name: TARGET
              value: "Go Sample v1"
"""
AUTOSCALE_GO = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: autoscale-go
  namespace: default
spec:
  template:
    metadata:
      annotations:
        # Target 10 in-flight-requests per pod.
        autoscaling.knative.dev/target: "10"
    spec:
      containers:
      - image: ghcr.io/knative/autoscale-go:latest
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(tmp_path_factory.mktemp("home")) as made:
        yield made


def load(world: World, host: str, count: int, path: str, workers: int = 16) -> list[requests.Response]:
    """``count`` requests over as many connections as there are workers."""

    def one(_: int) -> requests.Response:
        return requests.get(f"http://{world.gateway}{path}", headers={"Host": host}, timeout=30)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, range(count)))


# -- a Service's life


def test_the_hello_world_sample_gets_a_url_and_answers(world: World) -> None:
    world.kubectl("apply", "-f", "-", stdin=HELLO_WORLD)
    ready = world.ready("helloworld-go")
    assert ready["status"]["url"] == "http://helloworld-go.default.localhost"
    assert ready["status"]["address"]["url"] == "http://helloworld-go.default.svc.cluster.local"
    assert ready["status"]["latestReadyRevisionName"] == "helloworld-go-00001"
    assert ready["status"]["traffic"] == [
        {"latestRevision": True, "percent": 100, "revisionName": "helloworld-go-00001"}
    ]
    assert {one["type"]: one["status"] for one in ready["status"]["conditions"]} == {
        "ConfigurationsReady": "True",
        "Ready": "True",
        "RoutesReady": "True",
    }
    assert world.get("helloworld-go.default.localhost").text == "Hello Go Sample v1!\n"


def test_the_container_learns_who_it_is_and_never_sees_the_proxies_headers(world: World) -> None:
    world.apply(service("identity", env={"TARGET": "x"}))
    world.ready("identity")
    environment = world.get("identity.default.localhost", "/environment").json()
    assert environment == {
        "TARGET": "x",
        "PORT": "8080",
        "K_SERVICE": "identity",
        "K_CONFIGURATION": "identity",
        "K_REVISION": "identity-00001",
    }
    headers = world.get("identity.default.localhost", "/headers", headers={"Knative-Serving-Revision": "evil"}).json()
    assert headers["host"] == "identity.default.localhost"
    assert headers["x-forwarded-proto"] == "http"
    assert not [name for name in headers if name.startswith("knative-serving-")]


def test_the_objects_behind_a_service_are_there_and_rest(world: World) -> None:
    world.apply(service("graph"))
    world.ready("graph")
    names = world.kubectl("get", "cfg,rt,rev,kpa,sks,king,metric,image.caching.internal.knative.dev", "-o", "name")
    for name in (
        "configuration.serving.knative.dev/graph",
        "route.serving.knative.dev/graph",
        "revision.serving.knative.dev/graph-00001",
        "podautoscaler.autoscaling.internal.knative.dev/graph-00001",
        "serverlessservice.networking.internal.knative.dev/graph-00001",
        "ingress.networking.internal.knative.dev/graph",
        "metric.autoscaling.internal.knative.dev/graph-00001",
        "image.caching.internal.knative.dev/graph-00001-cache-user-container",
    ):
        assert name in names
    assert world.object("deployment", "graph-00001-deployment")["spec"]["replicas"] == 1
    assert world.object("service", "graph")["spec"]["type"] == "ExternalName"

    def versions() -> list[str]:
        kinds = "ksvc,cfg,rt,rev,kpa,sks,king,deploy,svc"
        return [
            one["metadata"]["resourceVersion"] for one in world.objects(kinds) if "graph" in one["metadata"]["name"]
        ]

    def at_rest() -> bool:
        before = versions()
        time.sleep(0.3)
        return versions() == before

    world.until(at_rest)


def test_every_change_of_the_template_makes_a_revision_and_a_change_of_traffic_none(world: World) -> None:
    for text in ("one", "two"):
        world.apply(service("steps", env={"TARGET": text}))
        world.ready("steps")
    assert world.get("steps.default.localhost").text == "Hello two!\n"
    world.apply(service("steps", env={"TARGET": "two"}, traffic=[{"revisionName": "steps-00001", "percent": 100}]))
    world.ready("steps")
    assert world.object("cfg", "steps")["metadata"]["generation"] == 2
    assert world.get("steps.default.localhost").text == "Hello one!\n"
    states = {
        name: world.object("rev", name)["metadata"]["labels"]["serving.knative.dev/routingState"]
        for name in ("steps-00001", "steps-00002")
    }
    assert states == {"steps-00001": "active", "steps-00002": "reserve"}


def test_what_is_taken_out_of_a_template_is_taken_out_of_the_next_revision(world: World) -> None:
    world.apply(service("less", env={"TARGET": "more"}, annotations={"autoscaling.knative.dev/max-scale": "3"}))
    world.ready("less")
    taken = [
        {"op": "remove", "path": "/spec/template/metadata"},
        {"op": "remove", "path": "/spec/template/spec/containers/0/env"},
    ]
    world.kubectl("patch", "ksvc", "less", "--type=json", "-p", json.dumps(taken))
    world.ready("less")
    latest = world.object("rev", "less-00002")
    assert "env" not in latest["spec"]["containers"][0]
    assert "autoscaling.knative.dev/max-scale" not in latest["metadata"]["annotations"]
    assert world.get("less.default.localhost").text == "Hello World!\n"


def test_a_revision_keeps_the_image_its_tag_stood_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stands_for = {"ghcr.io/shop/cart:1": "ghcr.io/shop/cart@sha256:" + "a" * 64}

    class Store:
        async def digest(self, image: str) -> str:
            return stands_for.get(image, "")

    services: dict[type, Any] = world.platform.kernel.services
    monkeypatch.setitem(services, ImageDigests, Store())
    world.apply(service("pinned", container={"image": "ghcr.io/shop/cart:1"}))
    world.ready("pinned")
    before = stands_for["ghcr.io/shop/cart:1"]
    stands_for["ghcr.io/shop/cart:1"] = "ghcr.io/shop/cart@sha256:" + "b" * 64
    world.kubectl("annotate", "rev", "pinned-00001", "touched=yes")

    def image(revision: str) -> str:
        found: str = world.object("deploy", f"{revision}-deployment")["spec"]["template"]["spec"]["containers"][0][
            "image"
        ]
        return found

    world.apply(service("pinned", container={"image": "ghcr.io/shop/cart:1"}, env={"A": "1"}))
    world.until(lambda: world.object("ksvc", "pinned")["status"].get("latestReadyRevisionName") == "pinned-00002")
    assert (image("pinned-00001"), image("pinned-00002")) == (before, stands_for["ghcr.io/shop/cart:1"])
    # registries of development mean what they mean at the moment
    stands_for["dev.local/cart:1"] = before
    world.apply(service("loose", container={"image": "dev.local/cart:1"}))
    world.ready("loose")
    assert image("loose-00001") == "dev.local/cart:1"


def test_the_python_client_makes_watches_changes_and_deletes_services(world: World) -> None:
    from kubernetes import client, config, watch

    config.load_kube_config(str(world.platform.kubeconfig))
    api = client.CustomObjectsApi()
    kind = ("serving.knative.dev", "v1", "default", "services")
    seen = watch.Watch()

    def until_ready(generation: int) -> Any:
        for event in seen.stream(api.list_namespaced_custom_object, *kind, timeout_seconds=20):
            found = event["object"]
            status = found.get("status") or {}
            states = {one["type"]: one["status"] for one in status.get("conditions") or ()}
            current = found["metadata"]["name"] == "pythonic" and status.get("observedGeneration") == generation
            if current and states.get("Ready") == "True":
                return found
        raise AssertionError("never ready")

    made = service("pythonic", env={"TARGET": "1"})
    api.create_namespaced_custom_object(*kind, made)
    assert until_ready(1)["status"]["latestReadyRevisionName"] == "pythonic-00001"
    made["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = "2"
    api.patch_namespaced_custom_object(*kind, "pythonic", {"spec": made["spec"]})
    assert until_ready(2)["status"]["latestReadyRevisionName"] == "pythonic-00002"
    world.until(lambda: world.get("pythonic.default.localhost").text == "Hello 2!\n")
    with pytest.raises(client.ApiException) as refused:
        api.patch_namespaced_custom_object(
            *kind, "pythonic", {"spec": {"traffic": [{"latestRevision": True, "percent": 9}]}}
        )
    assert refused.value.status == 400
    assert refused.value.body is not None
    assert "Traffic targets sum to 9, want 100: spec.traffic" in json.loads(refused.value.body)["message"]
    api.delete_namespaced_custom_object(*kind, "pythonic")
    world.until(lambda: world.get("pythonic.default.localhost").status_code == 404)


def test_deleting_a_service_takes_everything_with_it(world: World) -> None:
    world.apply(service("gone"))
    world.ready("gone")
    world.kubectl("delete", "ksvc", "gone")
    kinds = "cfg,rt,rev,kpa,sks,king,deploy,pods,svc"
    world.until(lambda: not [one for one in world.objects(kinds) if one["metadata"]["name"].startswith("gone")])
    world.until(lambda: world.get("gone.default.localhost").status_code == 404)


# -- traffic


def test_traffic_is_split_as_asked_and_tags_have_urls(world: World) -> None:
    world.apply(service("split", env={"TARGET": "blue"}, revision="split-blue"))
    world.ready("split")
    traffic: list[Any] = [
        {"revisionName": "split-blue", "percent": 80, "tag": "current"},
        {"revisionName": "split-green", "percent": 20},
        {"latestRevision": True, "percent": 0, "tag": "candidate"},
    ]
    world.apply(service("split", env={"TARGET": "green"}, revision="split-green", traffic=traffic))
    ready = world.ready("split")
    urls = {one.get("tag"): one.get("url") for one in ready["status"]["traffic"]}
    assert urls["current"] == "http://current-split.default.localhost"
    assert world.get("current-split.default.localhost").text == "Hello blue!\n"
    assert world.get("candidate-split.default.localhost").text == "Hello green!\n"
    total = 1000
    seen = Counter(world.get("split.default.localhost").text for _ in range(total))
    # four standard deviations of a fair split
    assert abs(seen["Hello green!\n"] / total - 0.2) < 4 * (0.2 * 0.8 / total) ** 0.5
    # without the tag its name is gone again
    world.apply(service("split", env={"TARGET": "green"}, revision="split-green", traffic=traffic[:2]))
    world.ready("split")
    world.until(lambda: world.get("candidate-split.default.localhost").status_code == 404)
    services = world.kubectl("get", "svc", "-o", "name")
    assert "service/candidate-split\n" not in services
    assert "service/current-split\n" in services


def test_a_tag_can_be_chosen_by_header_where_the_feature_is_on(world: World) -> None:
    flag = {"data": {"tag-header-based-routing": "enabled"}}
    world.kubectl("patch", "cm", "config-features", "-n", "knative-serving", "--type=merge", "-p", json.dumps(flag))
    world.apply(service("tagged", env={"TARGET": "old"}, revision="tagged-old"))
    world.ready("tagged")
    traffic: list[Any] = [
        {"revisionName": "tagged-old", "percent": 100},
        {"revisionName": "tagged-new", "percent": 0, "tag": "next"},
    ]
    world.apply(service("tagged", env={"TARGET": "new"}, revision="tagged-new", traffic=traffic))
    world.ready("tagged")
    host = "tagged.default.localhost"
    assert world.get(host).text == "Hello old!\n"
    assert world.get(host, headers={"Knative-Serving-Tag": "next"}).text == "Hello new!\n"
    assert world.get(host, headers={"Knative-Serving-Tag": "unknown"}).text == "Hello old!\n"


def test_a_rollout_moves_traffic_step_by_step_with_the_clock(world: World) -> None:
    slow = {"annotations": {"serving.knative.dev/rollout-duration": "100s"}}
    world.apply(service("gradual", env={"TARGET": "old"}, metadata=slow))
    world.ready("gradual")
    world.apply(service("gradual", env={"TARGET": "new"}, metadata=slow))

    def shares() -> dict[str, int]:
        rows = world.object("ksvc", "gradual")["status"].get("traffic", [])
        return {row["revisionName"]: row["percent"] for row in rows}

    world.until(lambda: shares() == {"gradual-00001": 99, "gradual-00002": 1})
    world.until(lambda: world.condition("route", "gradual", "IngressReady")[1] == "RolloutInProgress")
    assert world.object("rev", "gradual-00001")["metadata"]["labels"]["serving.knative.dev/routingState"] == "active"
    world.pass_time(50, 1)
    assert 30 <= shares()["gradual-00002"] <= 70
    world.pass_time(60, 1)
    world.until(lambda: shares() == {"gradual-00002": 100})
    world.ready("gradual")


def test_cluster_local_services_are_not_served_outside(world: World) -> None:
    world.apply(service("inner", metadata={"labels": {"networking.knative.dev/visibility": "cluster-local"}}))
    ready = world.ready("inner")
    assert ready["status"]["url"] == "http://inner.default.svc.cluster.local"
    assert world.get("inner.default.localhost").status_code == 404
    assert world.get("inner.default.svc.cluster.local").status_code == 404
    inside = world.platform.address("gateway.internal")
    answer = requests.get(f"http://{inside}/", headers={"Host": "inner.default.svc.cluster.local"}, timeout=10)
    assert answer.status_code == 200
    world.kubectl("label", "ksvc", "inner", "networking.knative.dev/visibility-")
    world.until(lambda: world.get("inner.default.localhost").status_code == 200)


def test_who_only_asks_is_told_what_kubernetes_says_of_the_pods(world: World) -> None:
    wrong = service("asked", container={"name": "&InvalidValue"})
    options = ("apply", "--dry-run=server", "-f", "-")
    told = world.kubectl(*options, stdin=json.dumps(wrong), fails=True)
    assert "validation callback failed: dry run failed with" in told
    assert "spec.containers[0].name" in told
    assert "created (server dry run)" in world.kubectl(*options, stdin=json.dumps(service("asked")))
    assert "asked" not in world.kubectl("get", "ksvc,pods", "-o", "name")


def test_an_image_named_by_digest_that_cannot_be_had_is_the_pods_trouble(world: World) -> None:
    image = f"ghcr.io/shop/lost@sha256:{0:064x}"
    world.apply(service("lost", container={"image": image}, annotations={"play/pull": "false"}))
    world.until(
        lambda: world.condition("revision", "lost-00001", "ResourcesAvailable")[:2] == ("False", "ErrImagePull")
    )


def test_each_name_may_be_cluster_local_on_its_own(world: World) -> None:
    traffic = [{"latestRevision": True, "percent": 100, "tag": "tip"}]
    world.apply(
        service("half", traffic=traffic, metadata={"labels": {"team": "sail"}, "annotations": {"juicy": "yes"}})
    )
    world.ready("half")
    metadata = world.object("service", "tip-half")["metadata"]
    assert metadata["labels"]["team"] == "sail"
    assert metadata["labels"]["serving.knative.dev/service"] == "half"
    assert metadata["annotations"]["juicy"] == "yes"
    world.until(lambda: world.get("tip-half.default.localhost").status_code == 200)

    world.kubectl("label", "service", "tip-half", "networking.knative.dev/visibility=cluster-local")
    world.until(lambda: world.get("tip-half.default.localhost").status_code == 404)
    status = world.ready("half")["status"]
    assert status["url"] == "http://half.default.localhost"
    assert status["traffic"][0]["url"] == "http://tip-half.default.svc.cluster.local"
    assert world.get("half.default.localhost").status_code == 200

    world.kubectl("label", "service", "half", "networking.knative.dev/visibility=cluster-local")
    world.until(lambda: world.get("half.default.localhost").status_code == 404)
    world.until(lambda: world.ready("half")["status"]["url"] == "http://half.default.svc.cluster.local")
    for name in ("half", "tip-half"):
        world.kubectl("label", "service", name, "networking.knative.dev/visibility-")
    world.until(lambda: world.get("tip-half.default.localhost").status_code == 200)


def test_a_service_sends_no_traffic_to_the_revisions_of_another(world: World) -> None:
    world.apply(service("mine"), service("theirs"))
    world.ready("mine")
    world.ready("theirs")
    world.apply(service("mine", traffic=[{"revisionName": "theirs-00001", "percent": 100}]))
    expected = ("False", "RevisionNotOwned", 'Revision "theirs-00001" belongs to Service "theirs", not Service "mine".')
    world.until(lambda: world.condition("route", "mine", "AllTrafficAssigned") == expected)


def test_a_domain_of_ones_own(world: World) -> None:
    world.apply(service("shop", env={"TARGET": "shop"}))
    world.ready("shop")
    mapping = {
        "apiVersion": "serving.knative.dev/v1beta1",
        "kind": "DomainMapping",
        "metadata": {"name": "shop.example.com"},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "shop"}},
    }
    world.apply(mapping)
    world.ready("shop.example.com", "domainmapping")
    assert world.get("shop.example.com").text == "Hello shop!\n"
    world.sleep_to_zero("shop")
    assert world.get("shop.example.com").text == "Hello shop!\n"


def test_a_domain_is_one_namespaces_until_it_gives_it_up(world: World) -> None:
    world.kubectl("create", "namespace", "rivals")
    reference = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "first"}
    made: Any = {
        "apiVersion": "serving.knative.dev/v1beta1",
        "kind": "DomainMapping",
        "metadata": {"name": "contested.example.com", "namespace": "default"},
        "spec": {"ref": reference},
    }
    rival = {**made, "metadata": {**made["metadata"], "namespace": "rivals"}}
    for namespace, target in (("default", "one"), ("rivals", "two")):
        world.apply(service("first", env={"TARGET": target}, metadata={"namespace": namespace}))
        world.ready("first", namespace=namespace)
    world.apply(made)
    world.ready("contested.example.com", "domainmapping")
    world.apply(rival)

    def told() -> tuple[str, str, str]:
        return world.condition("domainmapping", "contested.example.com", "DomainClaimed", "rivals")

    refused = ("False", "DomainAlreadyClaimed", "The domain name is already in use by another DomainMapping")
    world.until(lambda: told() == refused)
    assert world.get("contested.example.com").text == "Hello one!\n"
    world.kubectl("delete", "domainmapping", "contested.example.com")
    world.ready("contested.example.com", "domainmapping", "rivals")
    world.until(lambda: world.get("contested.example.com").text == "Hello two!\n")
    world.kubectl("delete", "domainmapping", "contested.example.com", "-n", "rivals")
    world.until(lambda: "contested" not in world.kubectl("get", "clusterdomainclaims", "-o", "name"))

    claim = {
        "apiVersion": "networking.internal.knative.dev/v1alpha1",
        "kind": "ClusterDomainClaim",
        "metadata": {"name": "contested.example.com"},
        "spec": {"namespace": "default"},
    }
    world.apply(claim, made)
    world.ready("contested.example.com", "domainmapping")
    world.kubectl("delete", "domainmapping", "contested.example.com")
    world.until(lambda: world.get("contested.example.com").status_code == 404)
    assert "contested" in world.kubectl("get", "clusterdomainclaims", "-o", "name")  # who claimed it keeps it


def test_a_new_default_domain_reaches_services_that_are_there(world: World) -> None:
    world.apply(service("mover", metadata={"labels": {"app": "mover"}}))
    world.ready("mover")
    domains = {"data": {"apps.example.org": "selector:\n  app: mover\n"}}
    world.kubectl("patch", "cm", "config-domain", "-n", "knative-serving", "--type=merge", "-p", json.dumps(domains))
    world.until(lambda: world.object("ksvc", "mover")["status"]["url"] == "http://mover.default.apps.example.org")
    world.until(lambda: world.get("mover.default.apps.example.org").status_code == 200)


# -- autoscaling


def test_it_sleeps_when_idle_and_wakes_on_the_first_request(world: World) -> None:
    world.apply(service("sleeper"))
    world.ready("sleeper")
    world.sleep_to_zero("sleeper")
    assert world.condition("revision", "sleeper-00001", "Active")[:2] == ("False", "NoTraffic")
    assert world.condition("ksvc", "sleeper")[0] == "True"
    assert world.get("sleeper.default.localhost").status_code == 200
    world.until(lambda: world.condition("revision", "sleeper-00001", "Active")[0] == "True")


def test_the_autoscale_sample_grows_with_its_load_and_falls_back(world: World) -> None:
    world.kubectl("apply", "-f", "-", stdin=AUTOSCALE_GO)
    world.ready("autoscale-go")
    with ThreadPoolExecutor(40) as pool:
        under_way = [pool.submit(world.get, "autoscale-go.default.localhost", "/?seconds=5") for _ in range(40)]
        world.until(lambda: len(world.servers("autoscale-go")) >= 5)
        assert {one.result().status_code for one in under_way} == {200}
    world.sleep_to_zero("autoscale-go")


def test_bounds_hold(world: World) -> None:
    bounds = {"autoscaling.knative.dev/min-scale": "2", "autoscaling.knative.dev/max-scale": "3"}
    world.apply(service("bounded", annotations=bounds, spec={"containerConcurrency": 1}))
    world.ready("bounded")
    assert len(world.servers("bounded")) == 2
    answers = load(world, "bounded.default.localhost", 30, "/?seconds=0.1")
    assert {one.status_code for one in answers} == {200}
    assert len(world.servers("bounded")) <= 3
    world.pass_time(180, 5)
    assert len(world.servers("bounded")) == 2


def test_the_bounds_of_the_revision_that_takes_over_hold_before_it_does(world: World) -> None:
    bounds = {"autoscaling.knative.dev/min-scale": "2"}
    world.apply(service("heir", annotations=bounds))
    world.ready("heir")
    world.apply(service("heir", annotations={**bounds, "play/ready": "false"}))
    world.until(lambda: world.object("cfg", "heir")["status"].get("latestCreatedRevisionName") == "heir-00002")
    # once the Route tells of the tag it has looked at what it uses
    traffic = [{"latestRevision": True, "percent": 100, "tag": "now"}]
    world.apply(service("heir", annotations={**bounds, "play/ready": "false"}, traffic=traffic))
    world.until(lambda: any(one.get("tag") for one in world.object("route", "heir")["status"]["traffic"]))
    assert world.object("route", "heir")["status"]["traffic"][0]["revisionName"] == "heir-00001"
    state = world.object("rev", "heir-00002")["metadata"]["labels"]["serving.knative.dev/routingState"]
    assert state == "active", "who is in reserve has no bounds"
    world.until(lambda: world.object("podautoscaler", "heir-00002")["spec"]["reachability"] == "Reachable")


def test_a_revision_that_was_replaced_gives_up_all_that_its_bounds_held(world: World) -> None:
    bounds = {"autoscaling.knative.dev/min-scale": "4"}
    for text in ("old", "new"):
        world.apply(service("bequest", annotations=bounds, env={"TARGET": text}))
        world.ready("bequest")
    world.pass_time(180, 5)
    assert world.object("deployment", "bequest-00001-deployment")["spec"]["replicas"] == 0
    assert world.condition("podautoscaler", "bequest-00001", "Active")[0] == "False"
    assert world.object("deployment", "bequest-00002-deployment")["spec"]["replicas"] == 4


def test_of_pods_that_wake_together_only_those_that_listen_are_asked(world: World) -> None:
    play = {"play/stagger": "6", "autoscaling.knative.dev/activation-scale": "4"}
    world.apply(service("choir", annotations=play))
    world.ready("choir")
    world.sleep_to_zero("choir")
    old = [one for one in world.player.servers.values() if one.environment.get("K_SERVICE") == "choir"]
    world.until(lambda: all(one.runner is None for one in old))
    assert world.get("choir.default.localhost").status_code == 200
    world.until(lambda: len(world.servers("choir")) == 4)
    assert {one.status_code for one in load(world, "choir.default.localhost", 100, "/")} == {200}
    listening = [one for one in world.servers("choir") if one.runner is not None]
    assert len(listening) < 4, "the pods have to be still on their way for this to tell anything"


def test_a_revision_may_begin_at_zero_where_the_cluster_allows_it(world: World) -> None:
    allow = {"data": {"allow-zero-initial-scale": "true"}}
    world.kubectl("patch", "cm", "config-autoscaler", "-n", "knative-serving", "--type=merge", "-p", json.dumps(allow))
    world.apply(service("lazy", annotations={"autoscaling.knative.dev/initial-scale": "0"}))
    world.ready("lazy")
    assert world.servers("lazy") == []
    assert world.get("lazy.default.localhost").status_code == 200


def test_a_limit_of_one_is_never_exceeded(world: World) -> None:
    world.apply(
        service("single", spec={"containerConcurrency": 1}, annotations={"autoscaling.knative.dev/max-scale": "4"})
    )
    world.ready("single")
    answers = load(world, "single.default.localhost", 200, "/?seconds=0.02", workers=32)
    assert Counter(one.status_code for one in answers) == {200: 200}
    assert max(one.most for one in world.player.servers.values() if one.environment.get("K_SERVICE") == "single") == 1


def test_a_smaller_scale_spares_the_pod_that_works(world: World) -> None:
    scale = {
        "autoscaling.knative.dev/initial-scale": "3",
        "autoscaling.knative.dev/target-utilization-percentage": "100",
    }
    world.apply(service("tasks", spec={"containerConcurrency": 1}, annotations=scale))
    world.ready("tasks")
    world.until(lambda: len(world.servers("tasks")) == 3)
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(world.get, "tasks.default.localhost", "/?held", timeout=60)
        world.until(lambda: [one for one in world.servers("tasks") if one.now])

        def one_left() -> bool:
            world.pass_time(20, 2)
            return len(world.servers("tasks")) == 1

        world.until(one_left)
        assert [one.now for one in world.servers("tasks")] == [1]
        world.release("tasks")
        assert task.result().status_code == 200


def test_clients_that_go_away_free_their_place(world: World) -> None:
    world.apply(
        service("fleeting", spec={"containerConcurrency": 1}, annotations={"autoscaling.knative.dev/max-scale": "1"})
    )
    world.ready("fleeting")
    host, _, port = world.gateway.rpartition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(b"GET /?seconds=0.05 HTTP/1.1\r\nHost: fleeting.default.localhost\r\n\r\n")
            time.sleep(0.005)
    assert world.get("fleeting.default.localhost").status_code == 200


def test_requests_pass_over_cycles_of_sleep_and_revisions(world: World) -> None:
    codes: Counter[int] = Counter()
    for number in range(4):
        world.apply(service("cycle", env={"TARGET": str(number)}))
        codes += (
            Counter(one.status_code for one in load(world, "cycle.default.localhost", 40, "/")) if number else Counter()
        )
        world.ready("cycle")
        codes += Counter(one.status_code for one in load(world, "cycle.default.localhost", 40, "/"))
        world.sleep_to_zero("cycle")
    codes += Counter(one.status_code for one in load(world, "cycle.default.localhost", 40, "/"))
    assert set(codes) == {200}


# -- the way through the gate


@pytest.fixture(scope="module")
def limited(world: World) -> str:
    """A host whose every request passes the gate."""
    world.apply(service("limited", spec={"containerConcurrency": 10}))
    world.ready("limited")
    return "limited.default.localhost"


def test_bodies_pass_in_both_directions(world: World, limited: str) -> None:
    sent = os.urandom(3 << 20)
    assert world.get(limited, "/size", method="POST", data=sent).text == str(len(sent))
    chunks = (sent[start : start + 65536] for start in range(0, len(sent), 65536))
    assert world.get(limited, "/size", method="POST", data=chunks).text == str(len(sent))


def test_a_stream_arrives_as_it_is_written(world: World, limited: str) -> None:
    with world.get(limited, "/stream", stream=True) as answer:
        arrived = [(time.monotonic(), part) for part in answer.iter_lines()]
    assert [part for _, part in arrived] == [f"part {number}".encode() for number in range(5)]
    assert arrived[-1][0] > arrived[0][0]


def test_a_websocket_wakes_a_service_and_passes(world: World) -> None:
    world.apply(service("talker", spec={"containerConcurrency": 1}))
    world.ready("talker")
    world.sleep_to_zero("talker")
    host, _, port = world.gateway.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as one:
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /ws HTTP/1.1", "Host: talker.default.localhost", "Connection: Upgrade", "Upgrade: websocket"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        one.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        reader = one.makefile("rb")
        assert reader.readline().split()[1] == b"101"
        while reader.readline() != b"\r\n":
            pass
        one.sendall(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
        assert reader.read(2 + len("echo hi"))[2:] == b"echo hi"


def test_grpc_wakes_a_service_and_passes_with_streams_and_trailers(world: World) -> None:
    port = {"ports": [{"name": "h2c", "containerPort": 8080}]}
    play = {"play/grpc": "true"}
    world.apply(service("echo", spec={"containerConcurrency": 5}, annotations=play, container=port))
    world.ready("echo")
    world.sleep_to_zero("echo")
    options = (("grpc.default_authority", "echo.default.localhost"),)
    with grpc.insecure_channel(world.gateway, options=options) as channel:
        assert channel.unary_unary("/echo/Once", None, None)(b"hi", timeout=20) == b"hi"
        stream = channel.stream_stream("/echo/Stream", None, None)(iter([b"1", b"2", b"3"]), timeout=20)
        assert list(stream) == [b"1", b"2", b"3"]
        assert ("seen", "all") in stream.trailing_metadata()


def test_who_waits_too_long_gets_504(world: World) -> None:
    waits = {"containerConcurrency": 1, "timeoutSeconds": 20}
    world.apply(service("full", spec=waits, annotations={"autoscaling.knative.dev/max-scale": "1"}))
    world.ready("full")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.get, "full.default.localhost", "/?held")
        world.until(lambda: sum(one.now for one in world.servers("full")))
        second = pool.submit(world.get, "full.default.localhost", "/")
        world.until(lambda: waiting(world) == 1)
        world.platform.clock.jump(21)
        late = second.result()
        assert (late.status_code, late.text) == (504, "activator request timeout")
        world.release("full")
        assert first.result().status_code == 200


def waiting(world: World) -> int:
    parts = world.platform.run(world.platform.kernel.status()).parts
    return int(next(one.facts["waiting"] for one in parts if one.name == "serving"))


# -- what goes wrong


def test_an_image_that_cannot_be_had_is_told(world: World) -> None:
    world.apply(service("noimage", annotations={"play/pull": "false"}))
    world.until(lambda: world.condition("ksvc", "noimage")[0] == "False")
    status, reason, message = world.condition("revision", "noimage-00001")
    assert (status, reason) == ("False", "ContainerMissing")
    assert message == 'Unable to fetch image "ghcr.io/knative/helloworld-go:latest": no such image'
    assert world.condition("cfg", "noimage")[1] == "RevisionFailed"
    assert message in world.condition("cfg", "noimage")[2]
    # and given up after the deadline
    world.pass_time(680, 20)
    world.until(lambda: world.object("deployment", "noimage-00001-deployment")["spec"]["replicas"] == 0)


def test_a_container_that_ends_is_told_with_its_code(world: World) -> None:
    world.apply(service("crash", annotations={"play/exit": "7"}))
    world.until(lambda: world.condition("revision", "crash-00001")[0] == "False")
    assert world.condition("revision", "crash-00001") == ("False", "ExitCode7", "Container failed with: it broke")


def test_a_failed_revision_leaves_the_last_good_one_in_service(world: World) -> None:
    world.apply(service("careful", env={"TARGET": "good"}))
    world.ready("careful")
    world.apply(service("careful", env={"TARGET": "bad"}, annotations={"play/exit": "1"}))
    world.until(lambda: world.condition("ksvc", "careful")[0] == "False")
    assert world.condition("ksvc", "careful", "RoutesReady")[0] == "True"
    assert world.get("careful.default.localhost").text == "Hello good!\n"
    world.apply(service("careful", env={"TARGET": "fixed"}))
    world.ready("careful")
    assert world.get("careful.default.localhost").text == "Hello fixed!\n"


def test_a_taken_revision_name_is_told(world: World) -> None:
    world.apply(service("first-one", revision="first-one-x"))
    world.ready("first-one")
    world.apply(service("first", revision="first-one-x"))
    world.until(lambda: world.condition("ksvc", "first", "RoutesReady")[1] == "RevisionNameTaken")
    assert world.condition("ksvc", "first")[0] == "False"


def test_traffic_to_a_revision_that_is_not_there_is_told(world: World) -> None:
    world.apply(service("lost", traffic=[{"revisionName": "nowhere", "percent": 100}]))
    world.until(lambda: world.condition("ksvc", "lost", "RoutesReady")[0] == "False")
    expected = ("False", "RevisionMissing", 'Revision "nowhere" referenced in traffic not found.')
    assert world.condition("ksvc", "lost", "RoutesReady") == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"traffic": [{"latestRevision": True, "percent": 90}]}, "Traffic targets sum to 90, want 100: spec.traffic"),
        ({"spec": {"containerConcurrency": 1001}}, "expected 0 <= 1001 <= 1000"),
        ({"spec": {"timeoutSeconds": 601}}, "expected 0 <= 601 <= 600"),
        ({"spec": {"nodeSelector": {"a": "b"}}}, "must not set the field(s): spec.template.spec.nodeSelector"),
        ({"annotations": {"autoscaling.knative.dev/min-scale": "-1"}}, "expected 0 <= -1"),
        ({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1"}}}, "autoscaling annotations must be"),
        ({"container": {"ports": [{"containerPort": 8012}]}}, "8012 is a reserved port"),
        ({"env": {"K_SERVICE": "x"}}, '"K_SERVICE" is a reserved environment variable'),
    ],
)
def test_what_cannot_be_is_refused(world: World, change: dict[str, Any], said: str) -> None:
    complaint = world.refused(service("wrong", **change))
    assert (
        'admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed' in complaint
    )
    assert said in complaint


def test_a_configmap_nobody_can_read_is_refused(world: World) -> None:
    bad = json.dumps({"data": {"stable-window": "5s"}})
    complaint = world.kubectl(
        "patch", "cm", "config-autoscaler", "-n", "knative-serving", "--type=merge", "-p", bad, fails=True
    )
    assert "stable-window" in complaint


# -- sized by an HPA and by the time of day


def test_the_hpa_class_makes_a_horizontal_pod_autoscaler_and_never_sleeps(world: World) -> None:
    prefix = "autoscaling.knative.dev/"
    annotations = {
        f"{prefix}class": f"hpa.{prefix}"[:-1],
        f"{prefix}metric": "cpu",
        f"{prefix}target": "70",
        f"{prefix}max-scale": "4",
    }
    world.apply(service("metered", annotations=annotations))
    world.ready("metered")
    spec = world.object("hpa", "metered-00001")["spec"]
    assert spec["scaleTargetRef"]["name"] == "metered-00001-deployment"
    assert spec["maxReplicas"] == 4
    assert spec["metrics"][0]["resource"] == {
        "name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 70},
    }
    world.pass_time(200, 5)
    assert len(world.servers("metered")) == 1


def test_scheduled_bounds_follow_the_clock_and_the_configmap(world: World) -> None:
    def jobs(replicas: int) -> dict[str, Any]:
        slices = [{"timeSlice": "00:00:00", "replicas": replicas}]
        made = [{"name": "all-day", "schedule": "* * *", "timeseries": slices}]
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "cron-autoscaler"},
            "data": {"jobs": json.dumps(made)},
        }

    annotations = {
        "autoscaling.knative.dev/class": "ppa.autoscaling.knative.dev",
        "alicloud.autoscaling.knative.dev/metric-target": "cpu:50,memory:50",
        "autoscaling.knative.dev/maxScale": "5",
    }
    follows = {"annotations": {"alicloud.autoscaling.service.knative.dev/timeseries": "cron-autoscaler"}}
    world.apply(jobs(3), service("timed", annotations=annotations, metadata=follows))
    world.ready("timed")
    assert [one["resource"]["name"] for one in world.object("hpa", "timed-00001")["spec"]["metrics"]] == [
        "cpu",
        "memory",
    ]

    def three() -> bool:
        if len(world.servers("timed")) == 3:
            return True
        world.pass_time(20)
        return False

    world.until(three)
    world.apply(jobs(9))
    world.until(lambda: world.object("hpa", "timed-00001")["spec"]["minReplicas"] == 5)
