"""docs/kubernetes.md against a running API server: what its table lists is what discovery tells, every verb of every kind does what
it says, and what the page calls absent is absent."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sampan.testing import Platform
from tests.faults.api_watches import context_of

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
POD: dict[str, Any] = {"containers": [{"name": "c", "image": "x"}]}
LABELS = {"app": "table"}
TEMPLATE = {"metadata": {"labels": LABELS}, "spec": POD}
SELECTED = {"selector": {"matchLabels": LABELS}, "template": TEMPLATE}
JOB = {"template": {"spec": {**POD, "restartPolicy": "Never"}}}
ROLE = {"apiGroup": "rbac.authorization.k8s.io", "name": "view"}
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}
WEBHOOK = {
    "name": "table.example.com",
    "clientConfig": {"url": "https://localhost:1/"},
    "rules": [RULE],
    "admissionReviewVersions": ["v1"],
    "sideEffects": "None",
}


def _request() -> str:
    """A certificate request, in base64 as the API wants it."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ann")])
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject)
    pem = signed.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return base64.b64encode(pem).decode()


def bodies() -> dict[str, dict[str, Any]]:
    """The least that each kind takes, by resource; for custom names under ``name``."""
    scaled = {"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}, "maxReplicas": 3}
    definition = {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "tables", "kind": "Table"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    }
    return {
        "configmaps": {"data": {"a": "b"}},
        "endpoints": {},
        "events": {"involvedObject": {"namespace": "default"}, "reason": "r", "type": "Normal"},
        "limitranges": {"spec": {"limits": []}},
        "namespaces": {},
        "nodes": {},
        "persistentvolumeclaims": {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
        },
        "persistentvolumes": {
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "hostPath": {"path": "/x"}}
        },
        "pods": {"spec": POD},
        "podtemplates": {"template": {"spec": POD}},
        "replicationcontrollers": {"spec": {"replicas": 0, "selector": LABELS, "template": TEMPLATE}},
        "resourcequotas": {"spec": {"hard": {"pods": "100"}}},
        "secrets": {},
        "serviceaccounts": {},
        "services": {"spec": {"ports": [{"port": 80}]}},
        "apiservices": {
            "name": "v1.table.example.com",
            "spec": {"group": "table.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10},
        },
        "controllerrevisions": {"revision": 1, "data": {"a": 1}},
        "daemonsets": {"spec": SELECTED},
        "deployments": {"spec": {**SELECTED, "replicas": 0}},
        "replicasets": {"spec": {**SELECTED, "replicas": 0}},
        "statefulsets": {"spec": {**SELECTED, "replicas": 0, "serviceName": "s"}},
        "events.k8s.io/events": {
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "example.com/c",
            "reportingInstance": "c-0",
            "action": "a",
            "reason": "r",
            "type": "Normal",
            "regarding": {"namespace": "default"},
        },
        "horizontalpodautoscalers": {"spec": scaled},
        "cronjobs": {"spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": JOB}}},
        "jobs": {"spec": {**JOB, "suspend": True}},
        "certificatesigningrequests": {
            "spec": {
                "request": _request(),
                "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"],
            }
        },
        "ingressclasses": {"spec": {"controller": "example.com/c"}},
        "ingresses": {"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}},
        "networkpolicies": {"spec": {"podSelector": {}}},
        "poddisruptionbudgets": {"spec": {"minAvailable": 1, "selector": {"matchLabels": LABELS}}},
        "clusterrolebindings": {"roleRef": {**ROLE, "kind": "ClusterRole"}},
        "clusterroles": {"rules": []},
        "rolebindings": {"roleRef": {**ROLE, "kind": "ClusterRole"}},
        "roles": {"rules": []},
        "csidrivers": {"spec": {}},
        "csinodes": {"spec": {"drivers": []}},
        "csistoragecapacities": {"storageClassName": "standard"},
        "storageclasses": {"provisioner": "example.com/p"},
        "volumeattachments": {"spec": {"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "p"}}},
        "mutatingwebhookconfigurations": {"webhooks": [WEBHOOK]},
        "validatingwebhookconfigurations": {"webhooks": [WEBHOOK]},
        "validatingadmissionpolicies": {
            "spec": {"matchConstraints": {"resourceRules": [RULE]}, "validations": [{"expression": "true"}]}
        },
        "validatingadmissionpolicybindings": {"spec": {"policyName": "p", "validationActions": ["Deny"]}},
        "customresourcedefinitions": {"name": "tables.example.com", "spec": definition},
        "priorityclasses": {"value": 10},
        "leases": {"spec": {}},
        "runtimeclasses": {"handler": "h"},
        "endpointslices": {"addressType": "IPv4", "endpoints": []},
        "flowschemas": {"spec": {"priorityLevelConfiguration": {"name": "exempt"}}},
        "prioritylevelconfigurations": {
            "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}, "nominalConcurrencyShares": 5}}
        },
    }


@pytest.fixture(scope="module")
def kube() -> Iterator[Platform]:
    with Platform(only=["kubernetes"]) as platform:
        yield platform


@pytest.fixture
async def http(kube: Platform, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    url, context = context_of(kube.kubeconfig, tmp_path)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


async def discovered(http: aiohttp.ClientSession) -> dict[tuple[str, str], tuple[dict[str, Any], list[str]]]:
    """(API version, plural) to what discovery says of it, and the names of its subresources."""
    found: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
    places = ["/api/v1"]
    async with http.get("/apis") as answer:
        groups = (await answer.json())["groups"]
    places += [f"/apis/{version['groupVersion']}" for group in groups for version in group["versions"]]
    for place in places:
        async with http.get(place) as answer:
            listed = await answer.json()
        for each in listed["resources"]:
            if "/" not in each["name"]:
                found[listed["groupVersion"], each["name"]] = (each, [])
        for each in listed["resources"]:
            plural, _, subresource = each["name"].partition("/")
            if subresource:
                found[listed["groupVersion"], plural][1].append(subresource)
    return found


async def test_the_table_is_what_discovery_tells(http: aiohttp.ClientSession) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:2] == "| "]
    documented = {tuple(row[:5]) for row in rows if len(row) > 5 and row[5].startswith(("works", "accepted but inert"))}
    served = set()
    for (version, plural), (kind, subresources) in (await discovered(http)).items():
        short = f" ({', '.join(kind['shortNames'])})" if kind.get("shortNames") else ""
        verbs = "all" if len(kind["verbs"]) == 8 else ", ".join(sorted(kind["verbs"]))
        served.add((version, kind["kind"], plural + short, verbs, ", ".join(sorted(subresources)) or "–"))
    assert documented == served


async def test_what_the_page_calls_absent_is_absent(http: aiohttp.ClientSession) -> None:
    absent = PAGE[PAGE.index("Absent, so that clients see") :].split("\n\n")[0]
    groups = re.findall(r"`([a-z.0-9]+\.k8s\.io)`", absent.split("`metrics.k8s.io`")[0])
    kinds = re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", absent)
    assert len(groups) >= 3 and len(kinds) >= 3
    found = await discovered(http)
    assert not {version.rpartition("/")[0] for version, _ in found} & set(groups)
    assert not {kind["kind"] for kind, _ in found.values()} & set(kinds)


async def test_every_verb_of_every_kind(http: aiohttp.ClientSession) -> None:
    least = bodies()
    tested = 0
    for (version, plural), (kind, subresources) in (await discovered(http)).items():
        verbs = set(kind["verbs"])
        if "update" not in verbs:
            continue  # reviews, bindings and component statuses have tests of their own
        group = version.rpartition("/")[0]
        body = dict(least.get(f"{group}/{plural}") or least[plural])
        name = body.pop("name", "table")
        root = f"/apis/{version}" if group else f"/api/{version}"
        collection = f"{root}/namespaces/default/{plural}" if kind["namespaced"] else f"{root}/{plural}"
        await _every_verb(http, collection, name, body, verbs, "status" in subresources)
        tested += 1
    assert tested > 45


async def _every_verb(
    http: aiohttp.ClientSession, collection: str, name: str, body: dict[str, Any], verbs: set[str], status: bool
) -> None:
    async def ask(method: str, path: str, sent: Any = None, kind: str = "application/json") -> dict[str, Any]:
        data = None if sent is None else json.dumps(sent)
        async with http.request(method, path, data=data, headers={"Content-Type": kind}) as answer:
            told: dict[str, Any] = await answer.json()
            assert answer.status in (200, 201, 202), (method, path, told)
            return told

    merge = "application/merge-patch+json"
    one = f"{collection}/{name}"
    revision = (await ask("GET", collection))["metadata"]["resourceVersion"]
    made = await ask("POST", collection, {"metadata": {"name": name, "labels": LABELS}, **body})
    assert (await ask("GET", one))["metadata"]["uid"] == made["metadata"]["uid"]
    listed = await ask("GET", f"{collection}?labelSelector=app=table")
    assert [item["metadata"]["name"] for item in listed["items"]] == [name]
    query = f"watch=1&resourceVersion={revision}&labelSelector=app=table&timeoutSeconds=5"
    async with http.get(f"{collection}?{query}") as events:
        event = json.loads(await events.content.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", name)
    patched = await ask("PATCH", one, {"metadata": {"annotations": {"a": "1"}}}, merge)
    assert patched["metadata"]["annotations"]["a"] == "1"
    for _ in range(20):
        fresh = await ask("GET", one)
        fresh["metadata"]["annotations"]["a"] = "2"
        async with http.put(one, data=json.dumps(fresh)) as answer:  # a controller may have been quicker
            if answer.status != 409:
                assert answer.status == 200, (one, await answer.text())
                break
    assert (await ask("GET", one))["metadata"]["annotations"]["a"] == "2"
    if status:
        await ask("GET", f"{one}/status")
        assert (await ask("PATCH", f"{one}/status", {"status": {}}, merge))["metadata"]["name"] == name
    await ask("DELETE", one)
    await _gone(http, one)
    if "deletecollection" in verbs:
        await ask("POST", collection, {"metadata": {"name": name, "labels": LABELS}, **body})
        await ask("DELETE", f"{collection}?labelSelector=app=table")
        await _gone(http, one)


async def _gone(http: aiohttp.ClientSession, one: str) -> None:
    """Wait for what finalizers hold back for a moment."""
    for _ in range(2000):
        async with http.get(one) as answer:
            if answer.status == 404:
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{one} is still there")
