"""CustomResourceDefinitions as kubectl and the Python client use them: installed, explained, validated, scaled, removed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest

import sampan.testing
from sampan.kube.client import Client
from sampan.kube.control.definitions import install
from sampan.kube.objects import Resource, copy
from sampan.kube.resources import CUSTOM_RESOURCE_DEFINITIONS
from tests.clients.test_access_webhooks import Hook
from tests.unit.kube_custom.widgets import definition, widget

KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"
WIDGETS = Resource("example.com", "v1", "widgets")


@pytest.fixture(scope="module")
def platform() -> Iterator[sampan.testing.Platform]:
    """One platform for this file: its definitions are its own."""
    with sampan.testing.Platform(only=["kubernetes"]) as running:
        yield running


class Kubectl:
    def __init__(self, platform: sampan.testing.Platform, home: Path) -> None:
        self._base = [str(KUBECTL), "--kubeconfig", str(platform.kubeconfig), "--cache-dir", str(home)]

    def __call__(self, *arguments: str, stdin: Any = None, fails: bool = False) -> str:
        text = None if stdin is None else json.dumps(stdin)
        done = subprocess.run([*self._base, *arguments], input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode != 0) == fails, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stderr if fails else done.stdout


@pytest.fixture
def kubectl(platform: sampan.testing.Platform, tmp_path: Path) -> Kubectl:
    return Kubectl(platform, tmp_path)


def manifest(group: str) -> dict[str, Any]:
    """The widgets' definition in a group of the test's own, as a user writes it."""
    obj = copy(definition())
    obj.pop("status")
    obj["metadata"] = {"name": f"widgets.{group}"}
    obj["spec"]["group"] = group
    obj["spec"]["names"]["shortNames"] = []
    return obj  # type: ignore[no-any-return]


def instance(group: str, name: str = "w", **spec: Any) -> dict[str, Any]:
    return {**widget(**spec), "apiVersion": f"{group}/v1", "metadata": {"name": name, "namespace": "default"}}


def test_a_definition_from_first_apply_to_last_delete(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=manifest("life.com"))
    kubectl("wait", "--for=condition=Established", "crd/widgets.life.com", "--timeout=30s")
    assert "widgets" in kubectl("api-resources", "--api-group=life.com", "-o", "name")
    assert "size\t<integer> -required-" in kubectl("explain", "widgets.spec", "--api-version=life.com/v1")

    kubectl("apply", "-f", "-", stdin=instance("life.com", size=2))
    header, row = kubectl("get", "widgets.life.com").splitlines()
    assert header.split() == ["NAME", "SIZE", "READY", "AGE"]
    assert row.split()[:2] == ["w", "2"]
    assert kubectl("get", "widgets.life.com", "w", "-o", "jsonpath={.spec.max}") == "10"

    refused = kubectl("apply", "-f", "-", stdin=instance("life.com", size=11), fails=True)
    assert 'spec.size: Invalid value: "object": size may not exceed max' in refused
    unknown = kubectl("apply", "-f", "-", stdin=instance("life.com", sise=1), fails=True)
    assert 'unknown field "spec.sise"' in unknown

    kubectl("scale", "widgets.life.com/w", "--replicas=3")
    assert kubectl("get", "widgets.life.com", "w", "-o", "jsonpath={.spec.size} {.metadata.generation}") == "3 2"
    conflict = kubectl("apply", "--server-side", "-f", "-", stdin=instance("life.com", size=4), fails=True)
    assert "Apply failed with 1 conflict: conflict with" in conflict
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=instance("life.com", size=4))
    kubectl("patch", "widgets.life.com", "w", "--subresource=status", "--type=merge", "-p", '{"status":{"ready":1}}')
    assert kubectl("get", "widgets.life.com", "w", "-o", "jsonpath={.spec.size} {.status.ready}") == "4 1"

    kubectl("delete", "crd", "widgets.life.com", "--timeout=30s")
    assert "the server doesn't have a resource type" in kubectl("get", "widgets.life.com", fails=True)


def test_transition_rules_and_ratcheting_hold_over_updates(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=manifest("ratchet.com"))
    kubectl("wait", "--for=condition=Established", "crd/widgets.ratchet.com", "--timeout=30s")
    kubectl("create", "-f", "-", stdin=instance("ratchet.com", color="red", size=5))
    changed = kubectl(
        "patch", "widgets.ratchet.com", "w", "--type=merge", "-p", '{"spec":{"color":"blue"}}', fails=True
    )
    assert 'spec.color: Invalid value: "string": color is immutable' in changed
    stricter = manifest("ratchet.com")
    stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"][
        "maximum"
    ] = 3
    kubectl("replace", "-f", "-", stdin=stricter)
    kubectl("label", "widgets.ratchet.com", "w", "a=b")
    worse = kubectl("patch", "widgets.ratchet.com", "w", "--type=merge", "-p", '{"spec":{"size":6}}', fails=True)
    assert "should be less than or equal to 3" in worse


def test_the_definition_itself_is_checked(kubectl: Kubectl) -> None:
    wrong = manifest("wrong.com")
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = [
        {"rule": "self.sise > 1"}
    ]
    complaint = kubectl("create", "-f", "-", stdin=wrong, fails=True)
    assert "compilation failed: ERROR: <input>:1:5: undefined field 'sise'" in complaint
    assert "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule" in complaint


def test_a_taken_kind_is_not_accepted_until_it_is_free(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=manifest("names.com"))
    kubectl("wait", "--for=condition=Established", "crd/widgets.names.com", "--timeout=30s")
    second = manifest("names.com")
    second["metadata"]["name"] = "gadgets.names.com"
    second["spec"]["names"] |= {"plural": "gadgets", "singular": "gadget"}
    kubectl("create", "-f", "-", stdin=second)
    kubectl("wait", "--for=condition=NamesAccepted=False", "crd/gadgets.names.com", "--timeout=30s")
    kubectl("delete", "crd", "widgets.names.com", "--timeout=30s")
    kubectl("wait", "--for=condition=Established", "crd/gadgets.names.com", "--timeout=30s")


def test_deleting_a_definition_waits_for_its_instances(platform: sampan.testing.Platform, kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", stdin=manifest("held.com"))
    kubectl("wait", "--for=condition=Established", "crd/widgets.held.com", "--timeout=30s")
    held = instance("held.com")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    kubectl("create", "-f", "-", stdin=held)
    kubectl("delete", "crd", "widgets.held.com", "--wait=false")
    kubectl("wait", "--for=condition=Terminating", "crd/widgets.held.com", "--timeout=30s")
    assert "NotAllowed" in kubectl("create", "-f", "-", stdin=instance("held.com", "late"), fails=True)
    kubectl("patch", "widgets.held.com", "w", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    kubectl("wait", "--for=delete", "crd/widgets.held.com", "--timeout=30s")


def test_the_python_client_creates_and_watches(platform: sampan.testing.Platform) -> None:
    with kubernetes.config.new_client_from_config(str(platform.kubeconfig)) as api:
        definitions = kubernetes.client.ApiextensionsV1Api(api)
        definitions.create_custom_resource_definition(manifest("python.com"))  # type: ignore[arg-type]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = definitions.read_custom_resource_definition("widgets.python.com")
            states = (found.status and found.status.conditions) or ()
            if any(one.type == "Established" and one.status == "True" for one in states):
                break
        custom = kubernetes.client.CustomObjectsApi(api)
        address = ("python.com", "v1", "default", "widgets")
        made: Any = custom.create_namespaced_custom_object(*address, instance("python.com"))
        assert made["spec"] == {"size": 1, "max": 10}
        made["spec"]["size"] = 2
        replaced: Any = custom.replace_namespaced_custom_object(*address, "w", made)
        assert replaced["metadata"]["generation"] == 2
        stream = kubernetes.watch.Watch().stream(custom.list_namespaced_custom_object, *address, timeout_seconds=30)
        first = next(iter(stream))
        assert (first["type"], first["object"]["spec"]["size"]) == ("ADDED", 2)
        deleted: Any = custom.delete_namespaced_custom_object(*address, "w")
        assert deleted["status"] == "Success"


def test_parts_install_their_definitions_once(platform: sampan.testing.Platform) -> None:
    client: Client = platform.get(Client)
    definitions = [manifest(f"part{number}.com") for number in range(5)]

    async def twice() -> tuple[str, str, dict[str, Any]]:
        await install(client, definitions)
        first = (await client.list(CUSTOM_RESOURCE_DEFINITIONS)).revision
        made = await client.create(Resource("part3.com", "v1", "widgets"), instance("part3.com"), "default")
        await install(client, definitions)
        again = (await client.list(CUSTOM_RESOURCE_DEFINITIONS)).items
        last = max(int(one["metadata"]["resourceVersion"]) for one in again)
        return first, str(last), made

    first, last, made = platform.run(twice())
    assert int(last) <= int(first)
    assert made["spec"]["max"] == 10
    changed = copy(definitions[0])
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["max"][
        "default"
    ] = 20

    async def upgraded() -> dict[str, Any]:
        resource = Resource("part0.com", "v1", "widgets")
        await install(client, [changed])
        for _ in range(1000):
            made = await client.create(resource, instance("part0.com"), "default", dry_run=True)
            if made["spec"]["max"] == 20:
                return made
            await asyncio.sleep(0.02)
        return made

    assert platform.run(upgraded())["spec"]["max"] == 20


def test_custom_resources_survive_a_restart(tmp_path: Path) -> None:
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
        client: Client = platform.get(Client)
        platform.run(install(client, [manifest("restart.com")]))
        platform.run(client.create(Resource("restart.com", "v1", "widgets"), instance("restart.com"), "default"))
    with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
        client = platform.get(Client)
        kept = platform.run(client.get(Resource("restart.com", "v1", "widgets"), "w", "default"))
        assert kept["spec"] == {"size": 1, "max": 10}


def two_versions(client_config: dict[str, Any]) -> dict[str, Any]:
    """``v1`` (stored) has ``spec.size``, ``v2`` calls it ``spec.length``; a webhook converts."""
    obj = manifest("convert.com")
    first = obj["spec"]["versions"][0]
    first.pop("additionalPrinterColumns")
    first.pop("selectableFields")
    second = copy(first)
    second |= {"name": "v2", "storage": False, "subresources": {"status": {}}}
    second["schema"]["openAPIV3Schema"]["properties"]["spec"] = {
        "type": "object",
        "properties": {"length": {"type": "integer"}, "max": {"type": "integer"}},
    }
    obj["spec"]["versions"].append(second)
    obj["spec"]["conversion"] = {
        "strategy": "Webhook",
        "webhook": {"clientConfig": client_config, "conversionReviewVersions": ["v1"]},
    }
    return obj


def converted(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a conversion webhook does."""
    target = request["desiredAPIVersion"]
    there, here = ("length", "size") if target.endswith("v1") else ("size", "length")
    objects = copy(request["objects"])
    for obj in objects:
        obj["apiVersion"] = target
        obj["spec"][here] = obj["spec"].pop(there)
    return {"convertedObjects": objects, "result": {"status": "Success"}}


def test_a_webhook_converts_between_versions(tmp_path: Path) -> None:
    hook = Hook(tmp_path / "pki")
    v1, v2 = (Resource("convert.com", version, "widgets") for version in ("v1", "v2"))
    new = {"apiVersion": "convert.com/v2", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"length": 7}}
    try:
        hook.answer = converted
        with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
            client: Client = platform.get(Client)
            kubectl = Kubectl(platform, tmp_path / "cache")
            platform.run(install(client, [two_versions(hook.client("/convert"))]))
            platform.run(client.create(v2, new, "default"))
            assert platform.run(client.get(v1, "w", "default"))["spec"] == {"size": 7, "max": 10}
            kubectl("patch", "widgets.v2.convert.com", "w", "--type=merge", "-p", '{"spec":{"length":8}}')
            assert kubectl("get", "widgets.v1.convert.com", "w", "-o", "jsonpath={.spec.size}") == "8"
            hook.answer = lambda path, request: {"result": {"status": "Failure", "message": "not today"}}
            failed = kubectl(
                "patch", "widgets.v2.convert.com", "w", "--type=merge", "-p", '{"spec":{"length":9}}', fails=True
            )
            assert "conversion webhook for convert.com/v2, Kind=Widget failed: not today" in failed
        hook.answer = converted
        with sampan.testing.Platform(only=["kubernetes"], data_dir=tmp_path / "data") as platform:
            client = platform.get(Client)
            [listed] = platform.run(client.list(v2, "default")).items
            assert (listed["apiVersion"], listed["spec"]) == ("convert.com/v2", {"length": 8, "max": 10})
    finally:
        hook.stop()
