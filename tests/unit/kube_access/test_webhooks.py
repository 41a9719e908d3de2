"""Webhooks are matched, asked, believed and survived as upstream does it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER, AdmissionRequest, Operation
from sampan.kube.access.rbac import AuthorizerChain, RbacAuthorizer
from sampan.kube.access.service_endpoints import ServiceEndpoints, ServiceError
from sampan.kube.access.webhook_call import WebhookCallError
from sampan.kube.access.webhooks import MutatingWebhooks, ValidatingWebhooks, WebhookMetrics
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.resources import (
    ENDPOINT_SLICES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    SERVICES,
    VALIDATING_WEBHOOKS,
)
from sampan.kube.status import ApiError
from sampan.kube.types.resource import ResourceType, Strategy, TypeRegistry
from tests.unit.kube_access.worlds import Cache, named

Answer = Callable[[Object], Mapping[str, Any]]
V1 = Resource("example.com", "v1", "boats")
V2 = Resource("example.com", "v2", "boats")


def renamed(old: str, new: str) -> Callable[[Object], Object]:
    def convert(obj: Object) -> Object:
        made: Object = copy(obj)
        if old in made.get("spec", {}):
            made["spec"][new] = made["spec"].pop(old)
        return made

    return convert


class Caller:
    """Answers instead of a webhook server; remembers every review."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.reviews: list[tuple[str, Object]] = []

    async def post(self, client: Mapping[str, Any], body: Mapping[str, Any], seconds: float) -> Object:
        url = client["url"]
        review = json.loads(json.dumps(body))
        self.reviews.append((url, review))
        answer = self.answers.get(url)
        response = {"uid": review["request"]["uid"], "allowed": True, **(answer(review) if answer else {})}
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

    @property
    def asked(self) -> list[str]:
        return [url for url, _ in self.reviews]


class World:
    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.put(NAMESPACES, {"metadata": {"name": "ns", "labels": {"team": "a"}}})
        self.caller = Caller()
        self.registry = CollectorRegistry()
        # v1 says "mast", v2 (which is stored) says "masts"
        self.types = TypeRegistry(
            [
                ResourceType(PODS, "Pod", "pod", True, Strategy()),
                ResourceType(NAMESPACES, "Namespace", "namespace", False, Strategy()),
                ResourceType(
                    V1,
                    "Boat",
                    "boat",
                    True,
                    Strategy(),
                    storage=V2,
                    to_storage=renamed("mast", "masts"),
                    from_storage=renamed("masts", "mast"),
                ),
                ResourceType(V2, "Boat", "boat", True, Strategy()),
            ]
        )
        authorizer = AuthorizerChain([RbacAuthorizer(self.cache)])
        shared: Any = (self.cache, self.types, authorizer, self.caller, WebhookMetrics(self.registry))
        self.chain = AdmissionChain([], [MutatingWebhooks(*shared), ValidatingWebhooks(*shared)])

    def mutating(self, *webhooks: Object, name: str = "m") -> None:
        self.cache.put(MUTATING_WEBHOOKS, {"metadata": {"name": name}, "webhooks": list(webhooks)})

    def validating(self, *webhooks: Object, name: str = "v") -> None:
        self.cache.put(VALIDATING_WEBHOOKS, {"metadata": {"name": name}, "webhooks": list(webhooks)})

    async def write(
        self, obj: Object | None, old: Object | None = None, resource: Resource = PODS, **fields: Any
    ) -> AdmissionRequest:
        operation: Operation = "DELETE" if obj is None else "UPDATE" if old is not None else "CREATE"
        found = self.types.find(resource)
        assert found is not None
        metadata = (obj or old or {})["metadata"]
        request = AdmissionRequest(
            operation, found, MASTER, metadata.get("namespace", ""), metadata["name"], copy(obj), old, **fields
        )
        await self.chain.admit(request)
        await self.chain.validate(request)
        return request


@pytest.fixture
def world() -> World:
    return World()


def webhook(name: str = "w", resources: list[str] | None = None, **fields: Any) -> Object:
    rule = {
        "apiGroups": ["*"],
        "apiVersions": ["*"],
        "resources": resources or ["pods"],
        "operations": fields.pop("operations", ["*"]),
        "scope": fields.pop("scope", "*"),
    }
    made = {
        "name": name,
        "clientConfig": {"url": name},
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    return {**made, **fields}


def patch(*operations: Object) -> Object:
    encoded = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"patchType": "JSONPatch", "patch": encoded}


def add(path: str, value: Any) -> Object:
    return {"op": "add", "path": path, "value": value}


def failing(_: Object) -> Mapping[str, Any]:
    raise WebhookCallError('failed to call webhook: Post "https://x": context deadline exceeded')


POD: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "x"}},
    "spec": {},
}


async def test_a_review_shows_the_write_as_upstream_does(world: World) -> None:
    world.validating(webhook())
    await world.write(POD, options={"fieldManager": "kubectl"})
    review = world.caller.reviews[0][1]
    assert (review["apiVersion"], review["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    request = review["request"]
    uid = request.pop("uid")
    assert len(uid) == 36
    assert request == {
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
        "requestResource": {"group": "", "version": "v1", "resource": "pods"},
        "name": "p",
        "namespace": "ns",
        "operation": "CREATE",
        "userInfo": {"username": "system:admin", "groups": ["system:masters", "system:authenticated"]},
        "object": POD,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "kubectl"},
    }


@pytest.mark.parametrize(
    ("fields", "subresource", "asked"),
    [
        ({}, "", True),
        ({"resources": ["pods/status"]}, "", False),
        ({"resources": ["pods/*"]}, "", True),
        ({"resources": ["*"]}, "status", False),
        ({"resources": ["*/*"]}, "status", True),
        ({"resources": ["*/status"]}, "status", True),
        ({"operations": ["DELETE"]}, "", False),
        ({"scope": "Cluster"}, "", False),
        ({"scope": "Namespaced"}, "", True),
        ({"namespaceSelector": {"matchLabels": {"team": "a"}}}, "", True),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, "", False),
        ({"objectSelector": {"matchLabels": {"app": "x"}}}, "", True),
        ({"objectSelector": {"matchLabels": {"app": "y"}}}, "", False),
        ({"matchConditions": [{"name": "c", "expression": "object.metadata.name == 'p'"}]}, "", True),
        ({"matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'system:admin'"}]}, "", False),
        (
            {
                "matchConditions": [
                    {"name": "c", "expression": "!authorizer.group('').resource('pods').check('get').allowed()"}
                ]
            },
            "",
            False,
        ),
        (
            {"matchConditions": [{"name": "c", "expression": "authorizer.requestResource.check('create').allowed()"}]},
            "",
            True,
        ),
    ],
)
async def test_a_webhook_is_asked_about_what_it_matches(
    world: World, fields: Any, subresource: str, asked: bool
) -> None:
    world.validating(webhook(**fields))
    await world.write(POD, subresource=subresource)
    assert bool(world.caller.asked) is asked


async def test_a_namespaces_own_labels_select_it(world: World) -> None:
    world.validating(webhook(resources=["namespaces"], namespaceSelector={"matchLabels": {"new": "yes"}}))
    await world.write({"metadata": {"name": "other", "labels": {"new": "yes"}}}, resource=NAMESPACES)
    await world.write({"metadata": {"name": "ns", "labels": {}}}, resource=NAMESPACES)
    assert len(world.caller.asked) == 1


async def test_an_equivalent_version_is_shown_and_patched_in_the_webhooks_own(world: World) -> None:
    rule = {"apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["boats"], "operations": ["*"]}
    world.mutating(webhook(rules=[rule]))
    world.caller.answers["w"] = lambda review: patch(
        add("/spec/masts", review["request"]["object"]["spec"]["masts"] + 1)
    )
    boat = {
        "apiVersion": "example.com/v1",
        "kind": "Boat",
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"mast": 1},
    }
    request = await world.write(boat, resource=V1)
    assert request.object == {**boat, "spec": {"mast": 2}}
    about = world.caller.reviews[0][1]["request"]
    assert about["object"]["apiVersion"] == "example.com/v2"
    assert (about["resource"]["version"], about["requestResource"]["version"]) == ("v2", "v1")
    world.mutating(webhook(rules=[rule], matchPolicy="Exact"))
    assert (await world.write(boat, resource=V1)).object == boat


async def test_mutating_webhooks_follow_each_other_by_name_then_place(world: World) -> None:
    def append(review: Object) -> Mapping[str, Any]:
        seen = review["request"]["object"]["metadata"]["annotations"]["seen"]
        return patch(add("/metadata/annotations/seen", f"{seen}{world.caller.asked[-1]}"))

    world.mutating(webhook("c"), name="z")
    world.mutating(webhook("b"), webhook("a"), name="a")
    world.caller.answers = {"a": append, "b": append, "c": append}
    pod = {**POD, "metadata": {**POD["metadata"], "annotations": {"seen": ""}}}
    request = await world.write(pod)
    assert request.object is not None
    assert request.object["metadata"]["annotations"]["seen"] == "bac"


async def test_a_webhook_that_asks_for_it_sees_later_changes(world: World) -> None:
    world.mutating(webhook("first", reinvocationPolicy="IfNeeded"), webhook("other"), webhook("second"))
    world.caller.answers["second"] = lambda _: patch(add("/spec/x", 1))
    await world.write(POD)
    assert world.caller.asked == ["first", "other", "second", "first"]
    assert world.caller.reviews[-1][1]["request"]["object"]["spec"] == {"x": 1}


async def test_a_built_in_plugins_answer_to_a_webhook_is_shown_too(world: World) -> None:
    class Counting:
        async def admit(self, request: AdmissionRequest) -> None:
            assert request.object is not None
            request.object["spec"]["containers"] = len(request.object["spec"]) + 1

        async def validate(self, request: AdmissionRequest) -> None:
            pass

    world.chain.add(Counting())
    world.mutating(webhook("only", reinvocationPolicy="IfNeeded"))
    world.caller.answers["only"] = lambda _: patch(add("/spec/x", 1))
    await world.write(POD)
    assert world.caller.asked == ["only", "only"]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ({"message": "no", "code": 403, "reason": "Forbidden"}, 403, 'admission webhook "w" denied the request: no'),
        ({"message": "no"}, 400, 'admission webhook "w" denied the request: no'),
        ({"code": 200}, 400, 'admission webhook "w" denied the request without explanation'),
    ],
)
async def test_a_refusal_carries_the_webhooks_words(world: World, status: Object, code: int, message: str) -> None:
    world.validating(webhook())
    world.caller.answers["w"] = lambda _: {"allowed": False, "status": status}
    with pytest.raises(ApiError) as refused:
        await world.write(POD)
    assert (refused.value.code, refused.value.message) == (code, message)


async def test_a_webhook_that_fails_refuses_or_is_ignored(world: World) -> None:
    world.caller.answers["w"] = failing
    world.validating(webhook())
    with pytest.raises(ApiError) as refused:
        await world.write(POD)
    assert refused.value.code == 500
    assert refused.value.message == (
        'Internal error occurred: failed calling webhook "w": failed to call webhook: Post "https://x": '
        "context deadline exceeded"
    )
    world.validating(webhook(failurePolicy="Ignore"))
    world.mutating(webhook(failurePolicy="Ignore"))
    await world.write(POD)
    opened = world.registry.get_sample_value(
        "apiserver_admission_webhook_fail_open_count", {"name": "w", "type": "validating"}
    )
    assert opened == 1
    rejected = world.registry.get_sample_value(
        "apiserver_admission_webhook_rejection_count",
        {
            "name": "w",
            "type": "validating",
            "operation": "CREATE",
            "error_type": "calling_webhook_error",
            "rejection_code": "0",
        },
    )
    assert rejected == 1
    labels = {"name": "w", "type": "validating", "operation": "CREATE", "code": "500", "rejected": "true"}
    assert world.registry.get_sample_value("apiserver_admission_webhook_request_total", labels) == 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"uid": "other"}, "expected response.uid="),
        ({"allowed": "yes"}, "could not read the webhook's response"),
        ({"warnings": "careful"}, "could not read the webhook's response"),
        ({"auditAnnotations": {"k": 1}}, "could not read the webhook's response"),
        ({"allowed": False, "status": {"code": "403"}}, "could not read the webhook's response"),
        ({"patch": {"op": "add"}, "patchType": "JSONPatch"}, "could not read the webhook's response"),
        (patch("add"), "cannot apply its patch"),  # type: ignore[arg-type]
        ({"patch": "W10=", "patchType": "Merge"}, "expected response.patchType"),
        ({"patch": "!", "patchType": "JSONPatch"}, "cannot apply its patch"),
        (patch({"op": "remove", "path": "/spec/none"}), "cannot apply its patch"),
        (patch({"op": "replace", "path": "", "value": 3}), "its patch leaves no object"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_failure(world: World, answer: Object, text: str) -> None:
    world.mutating(webhook())
    world.caller.answers["w"] = lambda _: answer
    with pytest.raises(ApiError, match=text) as refused:
        await world.write(POD)
    assert refused.value.code == 500


async def test_dry_runs_spare_webhooks_with_side_effects(world: World) -> None:
    world.validating(webhook(sideEffects="Some"))
    with pytest.raises(ApiError, match='admission webhook "w" does not support dry run') as refused:
        await world.write(POD, dry_run=True)
    assert refused.value.code == 400
    world.validating(webhook(sideEffects="NoneOnDryRun"))
    await world.write(POD, dry_run=True)
    assert world.caller.reviews[0][1]["request"]["dryRun"] is True


async def test_warnings_and_audit_annotations_are_passed_on(world: World) -> None:
    world.validating(webhook())
    world.caller.answers["w"] = lambda _: {"warnings": ["careful", "x" * 1000], "auditAnnotations": {"k": "v"}}
    request = await world.write(POD)
    assert request.warnings == ["careful", "x" * 256]
    assert request.audit == {"w/k": "v"}


async def test_of_several_refusals_the_first_in_order_is_told(world: World) -> None:
    world.validating(webhook("a"), webhook("b"))
    for name in ("a", "b"):
        world.caller.answers[name] = lambda _: {"allowed": False}
    with pytest.raises(ApiError, match='admission webhook "a" denied'):
        await world.write(POD)
    assert world.caller.asked == ["a", "b"]


async def test_deletes_show_the_old_object_only(world: World) -> None:
    world.validating(webhook())
    await world.write(None, POD)
    request = world.caller.reviews[0][1]["request"]
    assert (request["operation"], request["object"], request["oldObject"]) == ("DELETE", None, POD)


async def test_webhooks_cannot_lock_their_own_configuration(world: World) -> None:
    world.types.add([ResourceType(VALIDATING_WEBHOOKS, "ValidatingWebhookConfiguration", "v", False, Strategy())])
    world.validating(webhook(resources=["*"]))
    await world.write(None, {"metadata": {"name": "v"}}, resource=VALIDATING_WEBHOOKS)
    assert world.caller.asked == []


async def test_a_match_condition_that_cannot_be_evaluated_refuses_unless_failure_is_ignored(world: World) -> None:
    conditions = [{"name": "c", "expression": "object.spec.none == 1"}]
    world.validating(webhook(matchConditions=conditions))
    with pytest.raises(ApiError, match="no such key: none") as refused:
        await world.write(POD)
    assert refused.value.code == 403
    world.validating(webhook(matchConditions=conditions, failurePolicy="Ignore"))
    await world.write(POD)
    assert world.caller.asked == []


async def test_a_service_is_reached_at_its_ready_endpoints_in_turn() -> None:
    cache = Cache()
    service = named("hook", "ns", spec={"ports": [{"name": "https", "port": 443, "targetPort": 8443}]})
    cache.put(SERVICES, service)
    endpoints = ServiceEndpoints(cache)
    with pytest.raises(ServiceError, match='no endpoints available for service "hook"'):
        await endpoints.resolve("ns", "hook", 443)
    piece = named("hook-1", "ns", ports=[{"name": "https", "port": 8443}])
    piece["metadata"]["labels"] = {"kubernetes.io/service-name": "hook"}
    piece["endpoints"] = [
        {"addresses": ["127.0.0.2"], "conditions": {"ready": True}},
        {"addresses": ["127.0.0.3"], "conditions": {"ready": False}},
        {"addresses": ["127.0.0.4"]},
    ]
    cache.put(ENDPOINT_SLICES, piece)
    found = [await endpoints.resolve("ns", "hook", 443) for _ in range(3)]
    assert found == [("127.0.0.2", 8443), ("127.0.0.4", 8443), ("127.0.0.2", 8443)]
    with pytest.raises(ServiceError, match="no service port 80 found"):
        await endpoints.resolve("ns", "hook", 80)
    with pytest.raises(ServiceError, match='service "other" not found'):
        await endpoints.resolve("ns", "other", 80)
