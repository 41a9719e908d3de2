"""The Python clients and operators people use, unchanged, against a whole platform."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sampan.testing import Platform


@pytest.fixture
def namespace(shared_platform: Platform) -> Iterator[str]:
    """A namespace of the test's own."""
    from kubernetes import client, config

    api = client.CoreV1Api(config.new_client_from_config(str(shared_platform.kubeconfig)))
    name = f"py-{time.time_ns():x}"
    api.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    yield name
    api.delete_namespace(name)


def test_official_client_typed_and_watching(shared_platform: Platform, namespace: str) -> None:
    from kubernetes import client, config, watch

    connection = config.new_client_from_config(str(shared_platform.kubeconfig))
    core, apps = client.CoreV1Api(connection), client.AppsV1Api(connection)
    made = client.V1ConfigMap(metadata={"name": "a"}, data={"x": "1"})  # type: ignore[arg-type]
    core.create_namespaced_config_map(namespace, made)
    core.patch_namespaced_config_map("a", namespace, {"data": {"y": "2"}})
    found = core.read_namespaced_config_map("a", namespace)
    assert found.data == {"x": "1", "y": "2"}
    labels = {"app": "w"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    apps.create_namespaced_deployment(namespace, {"metadata": {"name": "w"}, "spec": spec})  # type: ignore[arg-type]
    scaled = apps.patch_namespaced_deployment_scale("w", namespace, {"spec": {"replicas": 0}}).spec
    assert scaled is not None
    assert scaled.replicas in (0, None)
    listed = apps.list_namespaced_deployment(namespace, label_selector="!nothing", limit=10)
    assert [item.metadata and item.metadata.name for item in listed.items] == ["w"]
    with pytest.raises(client.ApiException) as raised:
        core.read_namespaced_config_map("none", namespace)
    assert raised.value.status == 404
    watching = watch.Watch()
    seen = []
    for event in watching.stream(core.list_namespaced_config_map, namespace, timeout_seconds=30):
        seen.append((event["type"], event["object"].metadata.name))
        if ("ADDED", "a") in seen:
            if len(seen) >= 1 and ("ADDED", "b") not in seen:
                with contextlib.suppress(client.ApiException):
                    core.create_namespaced_config_map(namespace, {"metadata": {"name": "b"}})  # type: ignore[arg-type]
            else:
                watching.stop()
    assert ("ADDED", "b") in seen
    core.delete_namespaced_config_map("a", namespace)
    assert _names(core, namespace, "a") == []
    assert client.VersionApi(connection).get_code().major == "1"


def test_official_dynamic_client(shared_platform: Platform, namespace: str) -> None:
    from kubernetes import config
    from kubernetes.dynamic import DynamicClient

    dynamic = DynamicClient(config.new_client_from_config(str(shared_platform.kubeconfig)))
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}, "data": {"k": "v"}}
    maps.create(body=body, namespace=namespace)
    applied = {**body, "data": {"k": "w"}}
    maps.server_side_apply(body=applied, name="d", namespace=namespace, field_manager="me", force_conflicts=True)
    assert maps.get(name="d", namespace=namespace).data.k == "w"
    events = dynamic.watch(maps, namespace=namespace, timeout=30)
    assert next(iter(events))["type"] == "ADDED"
    maps.delete(name="d", namespace=namespace)


async def test_asyncio_client(shared_platform: Platform, namespace: str) -> None:
    from kubernetes_asyncio import client, config, watch

    connection = await config.new_client_from_config(str(shared_platform.kubeconfig))
    try:
        core = client.CoreV1Api(connection)
        secret = {"metadata": {"name": "s"}, "stringData": {"p": "q"}}
        await core.create_namespaced_secret(namespace, secret)  # type: ignore[arg-type]
        assert (await core.read_namespaced_secret("s", namespace)).data == {"p": "cQ=="}
        async with watch.Watch() as watching:
            async for event in watching.stream(core.list_namespaced_secret, namespace, timeout_seconds=30):
                assert event["type"] == "ADDED"
                break
    finally:
        await connection.close()


async def test_kr8s(shared_platform: Platform, namespace: str) -> None:
    import kr8s.asyncio
    from kr8s.asyncio.objects import ConfigMap

    api = await kr8s.asyncio.api(kubeconfig=str(shared_platform.kubeconfig))
    made = await ConfigMap(
        {"metadata": {"name": "k", "namespace": namespace, "labels": {"a": "b"}}, "data": {"x": "1"}}, api=api
    )
    await made.create()
    found = [item async for item in api.get("configmaps", namespace=namespace, label_selector={"a": "b"})]
    assert [item.name for item in found if isinstance(item, ConfigMap)] == ["k"]
    await made.patch({"data": {"x": "2"}})
    assert made.raw["data"]["x"] == "2"
    await made.delete()


def test_lightkube(shared_platform: Platform, namespace: str) -> None:
    from lightkube import Client
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.models.meta_v1 import ObjectMeta
    from lightkube.resources.core_v1 import ConfigMap

    light = Client(config=KubeConfig.from_file(str(shared_platform.kubeconfig)), field_manager="light")
    light.apply(
        ConfigMap(
            apiVersion="v1", kind="ConfigMap", metadata=ObjectMeta(name="l", namespace=namespace), data={"a": "1"}
        )
    )
    assert light.get(ConfigMap, "l", namespace=namespace).data == {"a": "1"}
    for kind, item in light.watch(ConfigMap, namespace=namespace, fields={"metadata.name": "l"}, server_timeout=30):
        assert (kind, item.metadata.name) == ("ADDED", "l")  # type: ignore[union-attr]
        break
    light.delete(ConfigMap, "l", namespace=namespace)


OPERATOR = """
import kopf

@kopf.on.startup()
def configure(settings, **_):
    settings.posting.enabled = True
    settings.scanning.disabled = False

@kopf.on.create("configmaps", labels={"kopf": "yes"})
def made(name, namespace, patch, **_):
    patch.metadata.annotations["seen"] = "created"
    return None

@kopf.on.update("configmaps", labels={"kopf": "yes"}, field="data")
def changed(patch, new, **_):
    patch.metadata.annotations["seen"] = "updated"

@kopf.on.delete("configmaps", labels={"kopf": "yes"})
def gone(logger, **_):
    logger.info("gone")
"""


def test_kopf_operator(shared_platform: Platform, namespace: str, tmp_path: Path) -> None:
    from kubernetes import client, config

    core = client.CoreV1Api(config.new_client_from_config(str(shared_platform.kubeconfig)))
    (tmp_path / "handlers.py").write_text(textwrap.dedent(OPERATOR))
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "kopf"), "run", "-n", namespace, "--standalone", "handlers.py"],
        cwd=tmp_path,
        env={"KUBECONFIG": str(shared_platform.kubeconfig), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def until(wanted: str) -> None:
        for _ in range(600):
            metadata = core.read_namespaced_config_map("o", namespace).metadata
            if metadata and (metadata.annotations or {}).get("seen") == wanted:
                return
            time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text()[-3000:])

    try:
        watched = {"metadata": {"name": "o", "labels": {"kopf": "yes"}}, "data": {"a": "1"}}
        core.create_namespaced_config_map(namespace, watched)  # type: ignore[arg-type]
        until("created")
        core.patch_namespaced_config_map("o", namespace, {"data": {"a": "2"}})
        until("updated")
        metadata = core.read_namespaced_config_map("o", namespace).metadata
        assert metadata is not None
        assert metadata.finalizers
        core.delete_namespaced_config_map("o", namespace)
        for _ in range(600):
            if not core.list_namespaced_config_map(namespace, field_selector="metadata.name=o").items:
                break
            time.sleep(0.1)
        else:
            raise AssertionError((tmp_path / "log").read_text()[-3000:])
    finally:
        process.terminate()
        process.wait(40)
        log.close()


HELM_4 = """
import sys
import helm_python as helm

chart, kubeconfig, namespace = sys.argv[1:]
with helm.Config(namespace=namespace, kubeconfig_path=kubeconfig) as config:
    release = config.install(chart, "demo", {"greeting": "one"}, wait="watcher", timeout=30)
    assert (release["revision"], release["status"]) == (1, "deployed"), release
    config.upgrade(chart, "demo", {"greeting": "two"}, wait="watcher", timeout=30)
    config.rollback("demo", version=1)
    assert len(config.history("demo")) == 3
    config.uninstall("demo")
"""


def test_helm_4_with_its_watching_waiter(shared_platform: Platform, namespace: str, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: demo\nversion: 0.1.0\n")
    (chart / "templates" / "all.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: demo}\ndata: {greeting: {{ .Values.greeting }}}\n"
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: demo}\nspec: {ports: [{port: 80}]}\n"
    )
    _run(HELM_4, str(chart), str(shared_platform.kubeconfig), namespace, home=tmp_path)


CLIENT_GO = """
import sys
from kubernetes_lite.client import DynamicClient

namespace = sys.argv[1]
maps = DynamicClient().resource("v1", "ConfigMap")
made = maps.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "g"}, "data": {"a": "b"}}, namespace)
made["data"]["c"] = "d"
maps.update(made, namespace)
assert maps.get("g", namespace)["data"] == {"a": "b", "c": "d"}
names = [item["metadata"]["name"] for item in maps.list(namespace)["items"]]
assert "g" in names, names
maps.delete("g", namespace)
"""


def test_client_go_through_its_dynamic_client(shared_platform: Platform, namespace: str, tmp_path: Path) -> None:
    _run(CLIENT_GO, namespace, home=tmp_path, KUBECONFIG=str(shared_platform.kubeconfig))


def _run(script: str, *arguments: str, home: Path, **environment: str) -> None:
    """Run a script in a process of its own: two Go runtimes do not share one."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.kopf.example.com"},
    "spec": {
        "group": "kopf.example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}

WIDGET_OPERATOR = """
import kopf
import kubernetes_asyncio as k

@kopf.on.create("kopf.example.com", "v1", "widgets")
async def made(spec, name, namespace, body, **_):
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name + "-child"}}
    kopf.adopt(child, owner=body)
    await k.config.load_kube_config()
    async with k.client.ApiClient() as connection:
        await k.client.CoreV1Api(connection).create_namespaced_config_map(namespace, child)
    return {"size": spec["size"]}
"""


def test_kopf_operator_of_a_custom_kind_with_children(
    shared_platform: Platform, namespace: str, tmp_path: Path
) -> None:
    from kubernetes import client, config

    connection = config.new_client_from_config(str(shared_platform.kubeconfig))
    core, custom = client.CoreV1Api(connection), client.CustomObjectsApi(connection)
    extensions = client.ApiextensionsV1Api(connection)
    with contextlib.suppress(client.ApiException):
        extensions.create_custom_resource_definition(WIDGETS)  # type: ignore[arg-type]
    place = ("kopf.example.com", "v1", namespace, "widgets")

    def until(found: Any) -> Any:
        for _ in range(600):
            with contextlib.suppress(client.ApiException):
                if (value := found()) is not None:
                    return value
            time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text()[-3000:])

    until(lambda: custom.list_namespaced_custom_object(*place))
    (tmp_path / "handlers.py").write_text(WIDGET_OPERATOR)
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "kopf"), "run", "-n", namespace, "--standalone", "handlers.py"],
        cwd=tmp_path,
        env={"KUBECONFIG": str(shared_platform.kubeconfig), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        widget = {"apiVersion": "kopf.example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": 3}}
        custom.create_namespaced_custom_object(*place, widget)

        def status_of() -> Any:
            found: Any = custom.get_namespaced_custom_object(*place, "w")
            return found.get("status")

        status = until(status_of)
        assert status["made"] == {"size": 3}
        child = core.read_namespaced_config_map("w-child", namespace)
        assert child.metadata is not None
        assert child.metadata.owner_references
        assert child.metadata.owner_references[0].kind == "Widget"
        custom.delete_namespaced_custom_object(*place, "w")
        until(lambda: True if not _names(core, namespace, "w-child") else None)
    finally:
        process.terminate()
        process.wait(40)
        log.close()


def _names(core: Any, namespace: str, name: str) -> list[str]:
    found = core.list_namespaced_config_map(namespace, field_selector=f"metadata.name={name}")
    return [item.metadata.name for item in found.items]
