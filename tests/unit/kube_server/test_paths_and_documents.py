"""What paths name, and the documents by which clients find their way."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.objects import Resource
from sampan.kube.server.discovery import Discovery, version_order
from sampan.kube.server.openapi import OpenApi
from sampan.kube.server.options import flag, list_options
from sampan.kube.server.routing import Target, parse
from sampan.kube.status import ApiError
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import TypeRegistry

PODS = Resource("", "v1", "pods")
NAMESPACES = Resource("", "v1", "namespaces")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api/v1/pods", Target(PODS, "", "", "", "", False)),
        ("/api/v1/namespaces/a/pods", Target(PODS, "a", "", "", "", False)),
        ("/api/v1/namespaces/a/pods/p", Target(PODS, "a", "p", "", "", False)),
        ("/api/v1/namespaces/a/pods/p/log", Target(PODS, "a", "p", "log", "", False)),
        ("/api/v1/namespaces", Target(NAMESPACES, "", "", "", "", False)),
        ("/api/v1/namespaces/a", Target(NAMESPACES, "", "a", "", "", False)),
        ("/api/v1/namespaces/a/finalize", Target(NAMESPACES, "", "a", "finalize", "", False)),
        ("/api/v1/namespaces/a/status", Target(NAMESPACES, "", "a", "status", "", False)),
        ("/apis/apps/v1/deployments/", Target(DEPLOYMENTS, "", "", "", "", False)),
        ("/apis/apps/v1/watch/namespaces/a/deployments", Target(DEPLOYMENTS, "a", "", "", "", True)),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode", Target(ROLES, "", "system:node", "", "", False)),
        ("/api/v1/namespaces/a/pods/http:p:80/proxy/x%20y/z/", Target(PODS, "a", "http:p:80", "proxy", "/x%20y/z/", False)),
        ("/api/v1/namespaces/a/pods/p/proxy", Target(PODS, "a", "p", "proxy", "", False)),
        ("/api/v1", None),
        ("/apis/apps/v1", None),
        ("/healthz", None),
        ("/api/v1/namespaces/a/pods/p/log/more", None),
    ],
)  # fmt: skip
def test_paths_name_resources(path: str, target: Target | None) -> None:
    assert parse(path) == target


@given(st.text(alphabet="/apis v1%:namespacepodlogwatchxy.-", max_size=80))
def test_any_path_is_parsed_or_not_a_resource(path: str) -> None:
    target = parse(path)
    assert target is None or target.resource.plural


@pytest.mark.parametrize(
    ("query", "value"),
    [({}, False), ({"w": ["true"]}, True), ({"w": ["True"]}, True), ({"w": [""]}, True), ({"w": ["0"]}, False),
     ({"w": ["FALSE"]}, False), ({"w": ["1"]}, True), ({"w": ["yes"]}, True)],
)  # fmt: skip
def test_booleans_follow_gos_rules(query: dict[str, list[str]], value: bool) -> None:
    assert flag(query, "w") is value


@pytest.mark.parametrize(
    ("watch", "query", "code"),
    [
        (True, {"sendInitialEvents": ["true"]}, 422),
        (True, {"sendInitialEvents": ["true"], "resourceVersionMatch": ["NotOlderThan"]}, 422),
        (False, {"sendInitialEvents": ["true"], "resourceVersionMatch": ["NotOlderThan"]}, 422),
        (False, {"resourceVersionMatch": ["Exact"]}, 422),
        (False, {"resourceVersionMatch": ["Exact"], "resourceVersion": ["0"]}, 422),
        (False, {"continue": ["x"], "resourceVersion": ["5"]}, 400),
        (False, {"limit": ["many"]}, 400),
    ],
)
def test_contradicting_list_options_are_refused(watch: bool, query: dict[str, list[str]], code: int) -> None:
    with pytest.raises(ApiError) as raised:
        list_options(query, watch=watch)
    assert raised.value.code == code


def test_versions_are_preferred_as_upstream_prefers_them() -> None:
    versions = ["v1beta1", "v1", "v2alpha1", "v2", "v1beta2", "foo"]
    assert sorted(versions, key=version_order) == ["v2", "v1", "v1beta2", "v1beta1", "v2alpha1", "foo"]


@pytest.fixture(scope="module")
def types() -> TypeRegistry:
    return TypeRegistry(builtin_types())


def document(discovery: Discovery, path: str, accept: str = "application/json") -> Any:
    found = discovery.find(path, accept)
    assert found is not None
    return json.loads(found.body)


def test_discovery_has_both_forms_under_exact_media_types(types: TypeRegistry) -> None:
    discovery = Discovery(types, lambda: "127.0.0.1:6443")
    for version in ("v2", "v2beta1"):
        accept = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
        found = discovery.find("/apis", accept)
        assert found is not None
        assert found.content_type == f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
        assert json.loads(found.body)["apiVersion"] == f"apidiscovery.k8s.io/{version}"
    assert document(discovery, "/apis")["kind"] == "APIGroupList"
    assert document(discovery, "/api")["versions"] == ["v1"]
    assert discovery.find("/apis/none", "") is None


def test_discovery_lists_what_clients_look_for(types: TypeRegistry) -> None:
    resources = {entry["name"]: entry for entry in document(Discovery(types, str), "/api/v1")["resources"]}
    eviction = resources["pods/eviction"]
    assert (eviction["group"], eviction["version"], eviction["kind"], eviction["verbs"]) == (
        "policy", "v1", "Eviction", ["create"],
    )  # fmt: skip
    assert resources["serviceaccounts/token"]["kind"] == "TokenRequest"
    assert resources["pods"]["shortNames"] == ["po"] and "all" in resources["pods"]["categories"]
    for entry in resources.values():
        assert {"name", "singularName", "namespaced", "kind", "verbs"} <= entry.keys()
    groups = document(Discovery(types, str), "/apis/autoscaling")
    assert [version["version"] for version in groups["versions"]] == ["v2", "v1"]


def test_etags_change_with_what_is_served(types: TypeRegistry) -> None:
    discovery = Discovery(types, str)
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    before = discovery.find("/apis", accept)
    leases = Resource("coordination.k8s.io", "v1", "leases")
    kept = types.find(leases)
    assert kept is not None and before is not None
    types.remove([leases])
    after = discovery.find("/apis", accept)
    types.add([kept])
    assert after is not None and after.etag != before.etag


def test_openapi_tells_kubectl_how_to_patch(types: TypeRegistry) -> None:
    openapi = OpenApi(types)
    assert openapi.index()["paths"]["apis/apps/v1"]["serverRelativeURL"].startswith("/openapi/v3/apis/apps/v1?hash=")
    compressed = openapi.document("apis/apps/v1")
    assert compressed is not None
    document = json.loads(zlib.decompress(compressed, wbits=31))
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= {p["name"] for p in patch["parameters"]}
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    references = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {reference.split('"')[0] for reference in references} <= schemas.keys()


def test_openapi_v2_resolves_within_itself(types: TypeRegistry) -> None:
    document = json.loads(zlib.decompress(OpenApi(types).v2(protobuf=False)[0], wbits=31))
    references = json.dumps(document).split('"#/definitions/')[1:]
    assert {reference.split('"')[0] for reference in references} <= document["definitions"].keys()
    assert document["swagger"] == "2.0"
