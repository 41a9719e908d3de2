"""Field ownership and server-side apply, by the rules a user of kubectl sees."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.objects import Resource, copy
from sampan.kube.patch.fieldset import difference, intersection, paths, union
from sampan.kube.patch.managed import LAST_APPLIED, record_update, server_side_apply
from sampan.kube.status import ApiError
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import ResourceType, Strategy

TYPES = {(kind.resource.group, kind.resource.plural): kind for kind in builtin_types()}
DEPLOYMENT = TYPES["apps", "deployments"]
CONFIG_MAP = TYPES["", "configmaps"]
SERVICE = TYPES["", "services"]


def at(second: int) -> datetime:
    return datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC)


def deployment(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns"}, "spec": spec}


def with_containers(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return deployment(template={"spec": {"containers": list(containers)}}, **spec)


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "ns"}, "data": data}


def created(obj: dict[str, Any], type: ResourceType, manager: str = "creator", second: int = 0) -> dict[str, Any]:
    obj = copy(obj)
    record_update(None, obj, manager, "", at(second), type)
    return obj


def updated(
    old: dict[str, Any], new: dict[str, Any], type: ResourceType, manager: str, second: int = 1, subresource: str = ""
) -> dict[str, Any]:
    new = copy(new)
    if "managedFields" in old["metadata"]:
        new["metadata"]["managedFields"] = copy(old["metadata"]["managedFields"])
    record_update(old, new, manager, subresource, at(second), type)
    return new


def applied(
    live: dict[str, Any] | None,
    config: dict[str, Any],
    type: ResourceType,
    manager: str = "a",
    *,
    force: bool = False,
    second: int = 2,
    subresource: str = "",
) -> dict[str, Any]:
    before = copy(live), copy(config)
    new, _ = server_side_apply(live, config, manager, force, subresource, at(second), type)
    assert (live, config) == before
    return new


def owners(obj: dict[str, Any]) -> dict[str, list[str]]:
    """Paths owned, by ``manager/operation``."""
    return {
        f"{entry['manager']}/{entry['operation']}": sorted(paths(entry["fieldsV1"]))
        for entry in obj["metadata"].get("managedFields") or ()
    }


def without_ownership(obj: dict[str, Any]) -> dict[str, Any]:
    obj = copy(obj)
    obj["metadata"].pop("managedFields", None)
    return obj


# -- recording


def test_a_creation_belongs_to_its_manager() -> None:
    obj = created(
        with_containers({"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}]}, replicas=1), DEPLOYMENT
    )
    [entry] = obj["metadata"]["managedFields"]
    assert {key: value for key, value in entry.items() if key != "fieldsV1"} == {
        "manager": "creator",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "time": "2024-01-01T00:00:00Z",
        "fieldsType": "FieldsV1",
    }
    assert entry["fieldsV1"] == {
        "f:spec": {
            "f:replicas": {},
            "f:template": {
                "f:spec": {
                    "f:containers": {
                        'k:{"name":"c"}': {
                            ".": {},
                            "f:name": {},
                            "f:image": {},
                            "f:env": {".": {}, 'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
                        }
                    }
                }
            },
        }
    }


def test_an_update_takes_what_it_changes() -> None:
    first = created(with_containers({"name": "c", "image": "1"}, replicas=1), DEPLOYMENT)
    second = updated(first, with_containers({"name": "c", "image": "2"}, replicas=1), DEPLOYMENT, "other")
    assert owners(second) == {
        "creator/Update": [
            ".spec.replicas",
            '.spec.template.spec.containers[name="c"]',
            '.spec.template.spec.containers[name="c"].name',
        ],
        "other/Update": ['.spec.template.spec.containers[name="c"].image'],
    }


def test_an_update_that_changes_nothing_leaves_the_entries_alone() -> None:
    first = created(config_map(a="1"), CONFIG_MAP)
    assert updated(first, config_map(a="1"), CONFIG_MAP, "other") == first


def test_what_is_removed_belongs_to_nobody_and_empty_managers_leave() -> None:
    first = created(config_map(a="1"), CONFIG_MAP)
    second = updated(first, config_map(a="1", b="2"), CONFIG_MAP, "other")
    third = updated(second, config_map(a="1"), CONFIG_MAP, "third")
    assert list(owners(third)) == ["creator/Update"]


def test_time_moves_only_with_the_fields() -> None:
    first = created(config_map(a="1"), CONFIG_MAP, second=0)
    second = updated(first, config_map(a="2"), CONFIG_MAP, "creator", second=5)
    assert second["metadata"]["managedFields"][0]["time"] == "2024-01-01T00:00:00Z"
    third = updated(second, config_map(a="2", b="1"), CONFIG_MAP, "creator", second=7)
    assert third["metadata"]["managedFields"][0]["time"] == "2024-01-01T00:00:07Z"


def test_status_writes_own_status_and_main_writes_do_not() -> None:
    first = created({**deployment(replicas=1), "status": {"replicas": 1}}, DEPLOYMENT)
    assert owners(first)["creator/Update"] == [".spec.replicas"]
    second = updated(
        first, {**deployment(replicas=9), "status": {"replicas": 2}}, DEPLOYMENT, "controller", subresource="status"
    )
    assert owners(second)["controller/Update"] == [".status.replicas"]
    assert second["metadata"]["managedFields"][1]["subresource"] == "status"


def test_an_object_without_tracking_stays_without() -> None:
    assert owners(updated(config_map(a="1"), config_map(a="2"), CONFIG_MAP, "x")) == {}


def test_old_update_entries_fold_into_ancient_changes() -> None:
    obj = created(config_map(k0="x"), CONFIG_MAP, "m0")
    data = {"k0": "x"}
    for number in range(1, 15):
        data[f"k{number}"] = "x"
        obj = updated(obj, config_map(**data), CONFIG_MAP, f"m{number}", second=number)
    held = owners(obj)
    assert len(held) == 10
    assert held["ancient-changes/Update"] == [".data", *sorted(f".data.k{n}" for n in range(6))]
    assert held["m14/Update"] == [".data.k14"]


# -- applying


def test_apply_creates() -> None:
    obj = applied(None, config_map(a="1"), CONFIG_MAP)
    assert without_ownership(obj) == config_map(a="1")
    assert owners(obj) == {"a/Apply": [".data.a"]}


def test_applying_twice_changes_nothing() -> None:
    first = applied(None, with_containers({"name": "c", "image": "1"}, replicas=2), DEPLOYMENT)
    again, changed = server_side_apply(
        first, with_containers({"name": "c", "image": "1"}, replicas=2), "a", False, "", at(30), DEPLOYMENT
    )
    assert again == first
    assert not changed


def test_what_is_no_longer_stated_is_removed_unless_others_own_it() -> None:
    first = applied(None, config_map(mine="1", shared="1"), CONFIG_MAP, "a")
    second = applied(first, config_map(shared="1", theirs="1"), CONFIG_MAP, "b")
    third = applied(second, config_map(), CONFIG_MAP, "a")
    assert third["data"] == {"shared": "1", "theirs": "1"}
    assert owners(third) == {"a/Apply": [".data"], "b/Apply": [".data.shared", ".data.theirs"]}


def test_the_last_owner_takes_an_empty_map_with_it() -> None:
    first = applied(None, config_map(a="1"), CONFIG_MAP)
    bare = config_map()
    del bare["data"]
    second = applied(first, bare, CONFIG_MAP)
    assert "data" not in second
    assert second["metadata"]["name"] == "c"


def test_a_conflict_names_the_owner_and_the_field() -> None:
    live = created(deployment(replicas=1), DEPLOYMENT, "kubectl-client-side-apply")
    with pytest.raises(ApiError) as caught:
        applied(live, deployment(replicas=2), DEPLOYMENT)
    assert caught.value.status() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": 409,
        "reason": "Conflict",
        "message": "Apply failed with 1 conflict: conflict with "
        '"kubectl-client-side-apply" using apps/v1 at 2024-01-01T00:00:00Z: .spec.replicas',
        "details": {
            "causes": [
                {
                    "reason": "FieldManagerConflict",
                    "message": 'conflict with "kubectl-client-side-apply" using apps/v1 at 2024-01-01T00:00:00Z',
                    "field": ".spec.replicas",
                }
            ]
        },
    }


def test_several_conflicts_are_grouped_by_owner() -> None:
    live = applied(None, with_containers({"name": "c", "image": "1"}, replicas=1), DEPLOYMENT, "b")
    with pytest.raises(ApiError) as caught:
        applied(live, with_containers({"name": "c", "image": "2"}, replicas=2), DEPLOYMENT, "a")
    assert caught.value.message == (
        'Apply failed with 2 conflicts: conflicts with "b":\n- .spec.replicas\n'
        '- .spec.template.spec.containers[name="c"].image'
    )


def test_stating_the_same_value_is_shared_ownership() -> None:
    live = applied(None, deployment(replicas=1), DEPLOYMENT, "b")
    assert owners(applied(live, deployment(replicas=1), DEPLOYMENT, "a")) == {
        "a/Apply": [".spec.replicas"],
        "b/Apply": [".spec.replicas"],
    }


def test_force_takes_the_field_over() -> None:
    live = applied(None, deployment(replicas=1, paused=True), DEPLOYMENT, "b")
    forced = applied(live, deployment(replicas=2), DEPLOYMENT, "a", force=True)
    assert forced["spec"] == {"replicas": 2, "paused": True}
    assert owners(forced) == {"a/Apply": [".spec.replicas"], "b/Apply": [".spec.paused"]}


def test_an_object_without_tracking_is_owned_by_before_first_apply() -> None:
    with pytest.raises(ApiError) as caught:
        applied(deployment(replicas=1), deployment(replicas=2), DEPLOYMENT)
    assert 'conflict with "before-first-apply" using apps/v1: .spec.replicas' in caught.value.message
    merged = applied(deployment(replicas=1), deployment(paused=True), DEPLOYMENT)
    assert owners(merged) == {"a/Apply": [".spec.paused"], "before-first-apply/Update": [".spec.replicas"]}


def test_list_items_merge_by_key_and_leave_with_their_last_owner() -> None:
    first = applied(None, with_containers({"name": "x", "image": "1"}, {"name": "y", "image": "1"}), DEPLOYMENT, "a")
    first["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always"  # a default nobody owns
    second = applied(first, with_containers({"name": "z", "image": "1"}), DEPLOYMENT, "b")
    third = applied(second, with_containers({"name": "x", "image": "2"}), DEPLOYMENT, "a")
    assert third["spec"]["template"]["spec"]["containers"] == [{"name": "x", "image": "2"}, {"name": "z", "image": "1"}]


def test_list_items_take_the_configurations_order() -> None:
    live = applied(None, with_containers({"name": "x"}, {"name": "y"}), DEPLOYMENT, "a")
    moved = applied(live, with_containers({"name": "n"}, {"name": "y"}, {"name": "x"}, {"name": "m"}), DEPLOYMENT, "a")
    names = [item["name"] for item in moved["spec"]["template"]["spec"]["containers"]]
    assert names == ["n", "y", "x", "m"]
    live = applied(None, with_containers({"name": "x"}, {"name": "y"}), DEPLOYMENT, "a")
    other = applied(live, with_containers({"name": "n"}), DEPLOYMENT, "b")
    assert [item["name"] for item in other["spec"]["template"]["spec"]["containers"]] == ["x", "y", "n"]


def test_a_missing_list_key_takes_its_default() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "ns"}}
    live = applied(None, {**service, "spec": {"ports": [{"port": 80}]}}, SERVICE)
    live["spec"]["ports"][0] |= {"protocol": "TCP", "targetPort": 80}
    again = applied(live, {**service, "spec": {"ports": [{"port": 80, "name": "http"}]}}, SERVICE)
    assert again["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80, "name": "http"}]
    assert '.spec.ports[port=80,protocol="TCP"].name' in owners(again)["a/Apply"]


def test_sets_merge_by_value() -> None:
    base = config_map()
    first = copy(base)
    first["metadata"]["finalizers"] = ["x/a"]
    second = copy(base)
    second["metadata"]["finalizers"] = ["x/b"]
    live = applied(applied(None, first, CONFIG_MAP, "a"), second, CONFIG_MAP, "b")
    assert live["metadata"]["finalizers"] == ["x/a", "x/b"]
    assert '.metadata.finalizers[="x/b"]' in owners(live)["b/Apply"]
    assert applied(live, base, CONFIG_MAP, "a")["metadata"]["finalizers"] == ["x/b"]


def test_atomic_lists_and_maps_are_one_field() -> None:
    live = applied(
        None, with_containers({"name": "c", "args": ["1"]}, selector={"matchLabels": {"a": "1"}}), DEPLOYMENT
    )
    assert owners(live)["a/Apply"] == [
        ".spec.selector",
        '.spec.template.spec.containers[name="c"]',
        '.spec.template.spec.containers[name="c"].args',
        '.spec.template.spec.containers[name="c"].name',
    ]


def test_status_is_applied_through_its_own_path() -> None:
    live = applied(None, deployment(replicas=1), DEPLOYMENT)
    assert applied(live, {**deployment(replicas=1), "status": {"replicas": 7}}, DEPLOYMENT) == live
    after = applied(live, {**deployment(replicas=5), "status": {"replicas": 7}}, DEPLOYMENT, subresource="status")
    assert (after["spec"], after["status"]) == ({"replicas": 1}, {"replicas": 7})
    stated = [entry for entry in after["metadata"]["managedFields"] if entry.get("subresource") == "status"]
    assert [list(paths(entry["fieldsV1"])) for entry in stated] == [[".status.replicas"]]


def test_server_owned_metadata_stays() -> None:
    live = applied(None, config_map(a="1"), CONFIG_MAP)
    live["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "creationTimestamp": "2024-01-01T00:00:00Z",
        "generation": 3,
    }
    config = config_map(a="2")
    config["metadata"] |= {"creationTimestamp": None, "resourceVersion": "1", "generation": 1}
    kept = applied(live, config, CONFIG_MAP)["metadata"]
    assert (kept["uid"], kept["resourceVersion"], kept["generation"]) == ("u", "7", 3)
    assert kept["creationTimestamp"] == "2024-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apiVersion": "apps/v2"}, "Incorrect version specified in apply patch. Specified patch version: apps/v2, expected: apps/v1"),
        ({"metadata": {"name": "web", "managedFields": [{}]}}, "metadata.managedFields must be nil"),
        ({"spec": {"frob": 1}}, "failed to create typed patch object (ns/web; apps/v1, Kind=Deployment): .spec.frob: field not declared in schema"),
        (
            {"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}},
            '.spec.template.spec.containers: duplicate entries for key [name="a"]',
        ),
        ({"spec": {"template": {"spec": {"containers": [{"image": "a"}]}}}}, 'omits key field "name"'),
    ],
)  # fmt: skip
def test_malformed_configurations_are_400(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        applied(deployment(), {**deployment(), **change}, DEPLOYMENT)
    assert caught.value.code == 400
    assert message in caught.value.message


def test_kubectl_takes_over_what_its_client_side_apply_recorded() -> None:
    live = created(deployment(replicas=1, paused=True), DEPLOYMENT, "kubectl-client-side-apply")
    live["metadata"]["annotations"] = {LAST_APPLIED: json.dumps(deployment(replicas=1))}
    after = applied(live, deployment(replicas=2), DEPLOYMENT, "kubectl")
    assert after["spec"] == {"replicas": 2, "paused": True}
    assert json.loads(after["metadata"]["annotations"][LAST_APPLIED]) == deployment(replicas=2)
    with pytest.raises(ApiError, match=r"conflict with .*: .spec.paused"):
        applied(live, deployment(replicas=2, paused=False), DEPLOYMENT, "kubectl")
    with pytest.raises(ApiError):
        applied(live, deployment(replicas=2), DEPLOYMENT, "someone")


# -- custom kinds


def custom(schema: dict[str, Any] | None, *, has_status: bool = True) -> ResourceType:
    strategy = Strategy()
    strategy.has_status = has_status
    return ResourceType(Resource("e.com", "v1", "ws"), "W", "w", True, strategy, schema=schema, custom=True)


def test_custom_kinds_follow_their_schema() -> None:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {
                    "rules": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["port", "scheme"],
                        "items": {
                            "type": "object",
                            "properties": {
                                "port": {"type": "integer"},
                                "scheme": {"type": "string", "default": "http"},
                            },
                        },
                    },
                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        },
    }
    kind = custom(schema)
    obj = {"apiVersion": "e.com/v1", "kind": "W", "metadata": {"name": "w", "namespace": "ns"}}
    live = applied(None, {**obj, "spec": {"rules": [{"port": 1}], "any": {"a": {"b": [1]}}}}, kind)
    assert owners(live)["a/Apply"] == [
        ".spec.any.a",
        ".spec.any.a.b",
        '.spec.rules[port=1,scheme="http"]',
        '.spec.rules[port=1,scheme="http"].port',
    ]
    made = created({**obj, "spec": {"any": {"a": 1}}}, kind)
    assert owners(made)["creator/Update"] == [".spec", ".spec.any", ".spec.any.a"]


# -- properties

names = st.sampled_from("abcd")
config_data = st.dictionaries(names, st.sampled_from("12"), max_size=4)
items = st.lists(names, unique=True, max_size=4)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    containers = [{"name": name, "image": draw(st.sampled_from("12"))} for name in draw(items)]
    obj = with_containers(*containers, replicas=draw(st.integers(0, 2)))
    obj["metadata"]["labels"] = draw(config_data)
    return obj


@given(configurations(), configurations(), configurations())
def test_after_a_forced_apply_the_object_holds_the_configuration_and_repeating_it_is_no_change(
    a: dict[str, Any], b: dict[str, Any], again: dict[str, Any]
) -> None:
    live = applied(applied(None, a, DEPLOYMENT, "a"), b, DEPLOYMENT, "b", force=True)
    live = applied(live, again, DEPLOYMENT, "a", force=True)
    containers = {item["name"]: item for item in live["spec"]["template"]["spec"].get("containers", [])}
    for item in again["spec"]["template"]["spec"]["containers"]:
        assert containers[item["name"]] == item
    labels = live["metadata"].get("labels", {})
    assert again["metadata"]["labels"].items() <= labels.items()
    assert set(labels) <= set(again["metadata"]["labels"]) | set(b["metadata"]["labels"])
    assert applied(live, again, DEPLOYMENT, "a", second=40) == live


def without_order(obj: dict[str, Any]) -> dict[str, Any]:
    """Each applier puts the shared items into its own order."""
    obj = copy(obj)
    obj["spec"]["template"]["spec"].get("containers", []).sort(key=lambda item: item["name"])
    return obj


@given(configurations(), configurations())
def test_two_appliers_that_agree_never_conflict(a: dict[str, Any], b: dict[str, Any]) -> None:
    live = applied(None, a, DEPLOYMENT, "a")
    try:
        merged = applied(live, b, DEPLOYMENT, "b")
    except ApiError as error:
        assert error.conflict
        return
    assert without_order(applied(merged, a, DEPLOYMENT, "a")) == without_order(merged)
    # Who withdraws leaves what the other stated.
    rest = applied(merged, with_containers(), DEPLOYMENT, "a")
    assert b["metadata"]["labels"].items() <= rest["metadata"].get("labels", {}).items()


@given(configurations(), configurations())
def test_every_field_of_a_recorded_object_has_exactly_one_owner(a: dict[str, Any], b: dict[str, Any]) -> None:
    obj = updated(created(a, DEPLOYMENT), b, DEPLOYMENT, "b")
    entries = [entry["fieldsV1"] for entry in obj["metadata"].get("managedFields", [])]
    if len(entries) == 2:
        assert intersection(*entries) == {}
    held = set().union(*(paths(entry) for entry in entries))
    leaves = {path for path in created(b, DEPLOYMENT)["metadata"]["managedFields"] for path in paths(path["fieldsV1"])}
    assert {path for path in leaves if path.endswith((".image", ".replicas"))} <= held


fieldsets = st.recursive(
    st.just({}),
    lambda inner: st.dictionaries(st.sampled_from(["f:a", "f:b", "v:1"]), inner, min_size=1).flatmap(
        lambda node: st.sampled_from([node, {".": {}, **node}])
    ),
    max_leaves=6,
).map(lambda node: {step: below for step, below in node.items() if step != "."})


@given(fieldsets, fieldsets)
def test_field_sets_are_sets(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert set(paths(union(a, b))) == set(paths(a)) | set(paths(b))
    assert set(paths(intersection(a, b))) == set(paths(a)) & set(paths(b))
    assert set(paths(difference(a, b))) == set(paths(a)) - set(paths(b))
