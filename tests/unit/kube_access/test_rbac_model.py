"""RBAC against its definition: the compiled tables answer as a plain reading of all rules does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.access.interface import Attributes, User
from sampan.kube.access.rbac import RbacAuthorizer, uncovered
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES
from tests.unit.kube_access.worlds import Cache, binding, named

VERBS = ("get", "list", "*")
GROUPS = ("", "apps", "*")
RESOURCES = ("pods", "pods/log", "*/log", "*", "deployments")
NAMES = ("a", "b")
SUBJECTS = (("User", "ann"), ("User", "bob"), ("Group", "dev"), ("Group", "ops"), ("ServiceAccount", "ns/robot"))
USERS = (
    User("ann", ("dev",)),
    User("bob", ("ops", "dev")),
    User("system:serviceaccount:ns:robot", ("system:serviceaccounts",)),
)


def some(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


rules = st.builds(
    lambda verbs, groups, resources, names: {
        "verbs": verbs,
        "apiGroups": groups,
        "resources": resources,
        **({"resourceNames": names} if names else {}),
    },
    some(*VERBS),
    some(*GROUPS),
    some(*RESOURCES),
    st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
)
subjects = st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=2, unique=True)
questions = st.builds(
    Attributes,
    st.sampled_from(USERS),
    st.sampled_from(("get", "list", "delete")),
    st.sampled_from((Resource("", "v1", "pods"), Resource("apps", "v1", "deployments"))),
    st.sampled_from(("", "log", "scale")),
    st.sampled_from(("", "ns", "other")),
    st.sampled_from(("", *NAMES, "c")),
)


def plainly(rule: Mapping[str, Any], asked: Attributes) -> bool:
    """What the documentation of a rule says."""
    assert asked.resource is not None
    full = f"{asked.resource.plural}/{asked.subresource}" if asked.subresource else asked.resource.plural
    return (
        (asked.verb in rule["verbs"] or "*" in rule["verbs"])
        and (asked.resource.group in rule["apiGroups"] or "*" in rule["apiGroups"])
        and any(r in ("*", full) or (asked.subresource and r == f"*/{asked.subresource}") for r in rule["resources"])
        and ("resourceNames" not in rule or (asked.name != "" and asked.name in rule["resourceNames"]))
    )


def held(cache: Cache, asked: Attributes) -> Iterator[Mapping[str, Any]]:
    for resource, roles in ((CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES), (ROLE_BINDINGS, ROLES)):
        for each in cache.objects(resource):
            space = each["metadata"].get("namespace", "")
            if space and space != asked.namespace:
                continue
            if any(_is(subject, asked.user) for subject in each["subjects"]):
                role = cache.get(roles, space, each["roleRef"]["name"])
                assert role is not None
                yield from role["rules"]


def _is(subject: Object, user: User) -> bool:
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    return bool(subject["name"] == user.name)


granted = st.lists(st.tuples(st.booleans(), st.lists(rules, min_size=1, max_size=2), subjects), max_size=3)


@given(granted, st.lists(questions, min_size=1, max_size=8))
def test_tables_answer_as_the_rules_read(grants: list[Any], asked: list[Attributes]) -> None:
    cache = Cache()
    for i, (everywhere, given_rules, named_subjects) in enumerate(grants):
        space = "" if everywhere else "ns"
        kinds = (CLUSTER_ROLES, CLUSTER_ROLE_BINDINGS) if everywhere else (ROLES, ROLE_BINDINGS)
        cache.put(kinds[0], named(f"r{i}", space, rules=given_rules))
        role = ("ClusterRole" if everywhere else "Role", f"r{i}")
        cache.put(kinds[1], binding(f"b{i}", role, *named_subjects, namespace=space))
    rbac = RbacAuthorizer(cache)
    for question in (*asked, *asked):
        expected = any(plainly(rule, question) for rule in held(cache, question))
        assert rbac.authorize(question).allowed is expected, question


@given(st.lists(rules, max_size=3), st.lists(rules, max_size=2), questions)
def test_what_covers_a_grant_allows_all_that_the_grant_does(
    held_rules: list[Object], wanted: list[Object], question: Attributes
) -> None:
    if uncovered(held_rules, wanted) == [] and any(plainly(rule, question) for rule in wanted):
        assert any(plainly(rule, question) for rule in held_rules)
