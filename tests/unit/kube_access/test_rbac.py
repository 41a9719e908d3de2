"""Roles and bindings decide as upstream's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sampan.kube.access import bootstrap
from sampan.kube.access.interface import MASTER, Attributes, User
from sampan.kube.access.rbac import AuthorizerChain, NodeAuthorizer, RbacAuthorizer, uncovered
from sampan.kube.access.refusal import denied
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, NAMESPACES, PODS, ROLE_BINDINGS, ROLES, SECRETS
from tests.unit.kube_access.worlds import Cache, binding, named, rule

ANN = User("ann", ("dev", "system:authenticated"))
APPS = Resource("apps", "v1", "deployments")


def ask(verb: str, resource: Resource = PODS, user: User = ANN, **fields: str) -> Attributes:
    return Attributes(user, verb, resource, **fields)


def world(*rules: Object) -> tuple[Cache, RbacAuthorizer]:
    cache = Cache()
    cache.put(CLUSTER_ROLES, named("r", rules=list(rules)))
    cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "r"), ("Group", "dev")))
    return cache, RbacAuthorizer(cache)


@pytest.mark.parametrize(
    ("given", "asked", "allowed"),
    [
        (rule([""], ["pods"], ["get"]), ask("get", namespace="a", name="x"), True),
        (rule([""], ["pods"], ["get"]), ask("list", namespace="a"), False),
        (rule([""], ["pods"], ["get"]), ask("get", APPS, namespace="a"), False),
        (rule([""], ["pods"], ["get"]), ask("get", subresource="log", namespace="a", name="x"), False),
        (rule([""], ["pods/log"], ["get"]), ask("get", subresource="log", namespace="a", name="x"), True),
        (rule([""], ["pods/log"], ["get"]), ask("get", namespace="a", name="x"), False),
        (rule(["apps"], ["*/scale"], ["update"]), ask("update", APPS, subresource="scale", name="x"), True),
        (rule(["apps"], ["*/scale"], ["update"]), ask("update", APPS, subresource="status", name="x"), False),
        (rule(["*"], ["*"], ["*"]), ask("delete", APPS, subresource="anything", name="x"), True),
        (rule([""], ["*"], ["get"]), ask("get", APPS, name="x"), False),
        (rule([""], ["pods"], ["get"], ["x"]), ask("get", name="x"), True),
        (rule([""], ["pods"], ["get"], ["x"]), ask("get", name="y"), False),
        (rule([""], ["pods"], ["list"], ["x"]), ask("list"), False),
    ],
)
def test_a_rule_allows_what_it_names(given: Object, asked: Attributes, allowed: bool) -> None:
    _, rbac = world(given)
    assert rbac.authorize(asked).allowed is allowed


def test_a_role_binding_holds_in_its_namespace_only_also_for_a_cluster_role() -> None:
    cache = Cache()
    cache.put(CLUSTER_ROLES, named("view", rules=[rule([""], ["pods"], ["list"])]))
    cache.put(ROLES, named("logs", "a", rules=[rule([""], ["pods/log"], ["get"])]))
    cache.put(
        ROLE_BINDINGS,
        binding("v", ("ClusterRole", "view"), ("User", "ann"), namespace="a"),
        binding("l", ("Role", "logs"), ("ServiceAccount", "a/robot"), namespace="a"),
    )
    rbac = RbacAuthorizer(cache)
    assert rbac.authorize(ask("list", namespace="a")).allowed
    assert not rbac.authorize(ask("list", namespace="b")).allowed
    assert not rbac.authorize(ask("list")).allowed
    robot = User("system:serviceaccount:a:robot")
    decision = rbac.authorize(ask("get", user=robot, subresource="log", namespace="a", name="x"))
    assert decision.allowed
    assert decision.reason == 'RBAC: allowed by RoleBinding "l/a" of Role "logs" to ServiceAccount "robot/a"'


def test_a_changed_role_is_seen_at_the_next_question() -> None:
    cache, rbac = world(rule([""], ["pods"], ["get"]))
    assert not rbac.authorize(ask("list")).allowed
    cache.put(CLUSTER_ROLES, named("r", rules=[rule([""], ["pods"], ["list"])]))
    assert rbac.authorize(ask("list")).allowed
    assert not rbac.authorize(ask("get")).allowed
    cache.drop(CLUSTER_ROLE_BINDINGS, "", "b")
    assert not rbac.authorize(ask("list")).allowed


def test_paths_outside_the_api_match_exactly_or_by_a_final_star() -> None:
    _, rbac = world({"nonResourceURLs": ["/healthz", "/metrics/*"], "verbs": ["get"]})
    answers = {
        path: rbac.authorize(Attributes(ANN, "get", path=path)).allowed
        for path in ("/healthz", "/healthz/etcd", "/metrics/cadvisor", "/metrics")
    }
    assert answers == {"/healthz": True, "/healthz/etcd": False, "/metrics/cadvisor": True, "/metrics": False}


def test_a_refusal_reads_as_upstreams_and_names_a_missing_role() -> None:
    cache = Cache()
    cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "gone"), ("User", "ann")))
    chain = AuthorizerChain([NodeAuthorizer(cache), RbacAuthorizer(cache)])
    asked = ask("get", APPS, namespace="ns", name="web")
    error = denied(asked, chain.authorize(asked).reason)
    assert error.code == 403
    assert error.message == (
        'deployments.apps "web" is forbidden: User "ann" cannot get resource "deployments" in API group "apps" in the '
        'namespace "ns": RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found'
    )
    assert denied(Attributes(ANN, "get", path="/x")).message == 'forbidden: User "ann" cannot get path "/x"'
    assert chain.authorize(ask("delete", user=MASTER)).allowed


def test_escalation_compares_rules_part_by_part() -> None:
    held = [rule([""], ["pods"], ["get", "list"]), rule(["apps"], ["*/scale"], ["*"])]
    assert uncovered(held, [rule([""], ["pods"], ["get"], ["x"])]) == []
    assert uncovered(held, [rule(["apps"], ["deployments/scale"], ["patch"])]) == []
    assert uncovered(held, [rule(["", "apps"], ["pods"], ["get", "watch"])]) == [
        {"apiGroups": ["apps"], "resources": ["pods"], "verbs": ["get", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["watch"]},
    ]


def test_a_node_reads_the_secrets_its_own_pods_mount() -> None:
    cache = Cache()
    volumes = [{"name": "v", "secret": {"secretName": "mounted"}}]
    env = [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}]
    spec = {"nodeName": "n1", "volumes": volumes, "containers": [{"name": "c", "env": env}]}
    cache.put(PODS, named("p", "a", spec=spec))
    nodes = NodeAuthorizer(cache)
    n1 = User("system:node:n1", ("system:nodes",))
    n2 = User("system:node:n2", ("system:nodes",))
    for name, user, allowed in [("mounted", n1, True), ("env", n1, True), ("other", n1, False), ("mounted", n2, False)]:
        assert nodes.authorize(ask("get", SECRETS, user=user, namespace="a", name=name)).allowed is allowed
    assert not nodes.authorize(ask("list", SECRETS, user=n1, namespace="a")).allowed
    assert nodes.authorize(ask("list", PODS, user=n1)).allowed


class Writer:
    """Writes into a cache."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    async def create(self, resource: Resource, obj: Mapping[str, Any], namespace: str | None = None) -> Object:
        return await self.update(resource, obj)

    async def update(self, resource: Resource, obj: Mapping[str, Any]) -> Object:
        written = dict(obj)
        self.cache.put(resource, written)
        return written


async def test_the_default_roles_are_made_once_and_repaired_later() -> None:
    cache = Cache()
    cache.put(NAMESPACES, named("kube-system"), named("kube-public"))
    assert await bootstrap.reconcile(cache, Writer(cache)) == len(bootstrap.default_objects())
    assert await bootstrap.reconcile(cache, Writer(cache)) == 0
    rbac = RbacAuthorizer(cache)
    authenticated = User("x", ("system:authenticated",))
    assert rbac.authorize(Attributes(authenticated, "get", path="/api/v1")).allowed
    review = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews")
    assert rbac.authorize(ask("create", review, user=authenticated)).allowed

    discovery = cache.get(CLUSTER_ROLES, "", "system:discovery")
    assert discovery is not None
    cache.put(CLUSTER_ROLES, {**discovery, "rules": [rule(["x"], ["y"], ["z"])]})
    assert await bootstrap.reconcile(cache, Writer(cache)) == 1
    repaired = cache.get(CLUSTER_ROLES, "", "system:discovery")
    assert repaired is not None
    assert repaired["rules"][0] == rule(["x"], ["y"], ["z"])
    assert uncovered(repaired["rules"], discovery["rules"]) == []


async def test_a_role_marked_as_the_users_own_is_left_alone() -> None:
    cache = Cache()
    wanted = next(o for r, o in bootstrap.default_objects() if o["metadata"]["name"] == "system:discovery")
    own = {**wanted, "rules": [], "metadata": {**wanted["metadata"], "annotations": {bootstrap.AUTOUPDATE: "false"}}}
    cache.put(CLUSTER_ROLES, own)
    await bootstrap.reconcile(cache, Writer(cache))
    assert cache.get(CLUSTER_ROLES, "", "system:discovery") is own


def test_edit_contains_view_and_admin_contains_edit() -> None:
    roles = {o["metadata"]["name"]: o for r, o in bootstrap.default_objects() if r == CLUSTER_ROLES}
    assert uncovered(roles["edit"]["rules"], roles["view"]["rules"]) == []
    assert uncovered(roles["admin"]["rules"], roles["edit"]["rules"]) == []
    assert roles["view"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
