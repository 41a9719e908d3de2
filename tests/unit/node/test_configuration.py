"""Environment, payload volumes and launch configuration, by value."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.node.agent.environment import container_environment, expand, service_variables
from sampan.parts.node.agent.launching import command, hosts_file, limits, resolver_file, user
from sampan.parts.node.agent.payload import File, PodFacts, payload, write
from sampan.parts.node.agent.probes import Verdicts
from sampan.parts.node.agent.volumes import PodVolumes, host_path, mounts
from sampan.parts.node.errors import ContainerConfigError, VolumeError
from sampan.parts.node.images.image import Image, ImageConfig

POD: dict[str, Any] = {
    "metadata": {
        "name": "p",
        "namespace": "ns",
        "uid": "u",
        "labels": {"app": "x"},
        "annotations": {"a": 'quo"ted'},
    },
    "spec": {"nodeName": "n", "serviceAccountName": "sa", "containers": [{"name": "c"}]},
}
OBJECTS = {
    ("configmaps", "ns", "cm"): {"data": {"k": "v", "1bad": "x", "bad key": "y"}, "binaryData": {"b": "AAE="}},
    ("secrets", "ns", "s"): {"data": {"p": base64.b64encode(b"secret").decode()}},
}


def find(kind: str, namespace: str, name: str) -> dict[str, Any] | None:
    return OBJECTS.get((kind, namespace, name))


def environment(container: dict[str, Any], base: dict[str, str] | None = None) -> tuple[dict[str, str], list[str]]:
    return container_environment(
        POD,
        {"name": "c", **container},
        base=base or {},
        services={},
        find=find,
        host="127.0.0.1",
        address="10.244.0.5",
        allocatable={"cpu": "2", "memory": "1024Ki"},
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("x$(A)y$(A)", "x1y1"),
        ("$", "$"),
        ("$(A", "$(A"),
        ("$$", "$"),
    ],
)
def test_references_expand_as_documented(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == expected


@given(st.text(st.characters(exclude_characters="$")))
def test_text_without_references_is_left_alone(text: str) -> None:
    assert expand(text, {"A": "1"}) == text


def test_variables_come_from_everywhere_and_later_ones_win() -> None:
    env = [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "$(A)-$(PATH)"},
        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": True}}},
    ]
    container: dict[str, Any] = {"env": env, "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "X_"}]}
    container["resources"] = {"limits": {"cpu": "1500m"}}
    values, skipped = environment(container, {"PATH": "/bin"})
    assert values == {
        "PATH": "/bin", "X_k": "v", "X_1bad": "x", "A": "1", "B": "1-/bin", "K": "v", "P": "secret", "IP": "10.244.0.5",
        "APP": "x", "CPU": "2", "MEM": "1",
    }  # fmt: skip
    assert skipped == ["X_bad key"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "k"}}, 'configmap "no" not found'),
        ({"configMapKeyRef": {"name": "cm", "key": "no"}}, "couldn't find key no in ConfigMap ns/cm"),
        ({"secretKeyRef": {"name": "no", "key": "k"}}, 'secret "no" not found'),
    ],
)
def test_what_is_missing_is_told_in_the_kubelets_words(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ContainerConfigError, match=message):
        environment({"env": [{"name": "A", "valueFrom": source}]})


def test_services_are_told_by_variables() -> None:
    services = [
        {
            "metadata": {"name": "my-db", "namespace": "ns"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 5432, "name": "sql"}]},
        },
        {
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]},
        },
        {"metadata": {"name": "headless", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}},
    ]
    variables = service_variables(services, "ns", True)
    assert variables["MY_DB_SERVICE_HOST"] == "10.96.0.9"
    assert variables["MY_DB_SERVICE_PORT_SQL"] == "5432"
    assert variables["MY_DB_PORT_5432_TCP"] == "tcp://10.96.0.9:5432"
    assert variables["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert not [name for name in variables if name.startswith("HEADLESS")]
    assert not [name for name in service_variables(services, "ns", False) if name.startswith("MY_DB")]


def facts() -> PodFacts:
    return PodFacts(POD, "127.0.0.1", "10.244.0.5", {}, find, {"": "token", "vault": "other"})


def test_payloads_of_every_source() -> None:
    assert payload({"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400}}, facts()) == {
        "p": File(b"secret", 0o400)
    }
    projected = {
        "sources": [
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "d/k", "mode": 0o600}]}},
            {"serviceAccountToken": {"path": "token"}},
            {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
            {"downwardAPI": {"items": [{"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}]}},
        ]
    }
    found = payload({"name": "v", "projected": projected}, facts())
    assert found["d/k"] == File(b"v", 0o600)
    assert (found["token"].content, found["vault"].content) == (b"token", b"other")
    assert found["annotations"].content == b'a="quo\\"ted"'
    with pytest.raises(VolumeError, match='configmap "no" not found'):
        payload({"name": "v", "configMap": {"name": "no"}}, facts())
    assert payload({"name": "v", "configMap": {"name": "no", "optional": True}}, facts()) == {}


def test_a_payload_is_replaced_in_one_step(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    assert write(volume, {"a": File(b"1", 0o644), "d/b": File(b"2", 0o600)})
    assert (volume / "a").is_symlink()
    assert (volume / "a").readlink() == Path("..data/a")
    assert (volume / "..data").is_symlink()
    assert (volume / "d/b").read_text() == "2"
    assert not write(volume, {"a": File(b"1", 0o644), "d/b": File(b"2", 0o600)})
    first = (volume / "..data").readlink()
    assert write(volume, {"a": File(b"3", 0o644)})
    assert (volume / "..data").readlink() != first
    assert (volume / "a").read_text() == "3"
    assert not (volume / "d").exists()
    assert len([entry for entry in volume.iterdir() if entry.name.startswith("..2") or entry.is_dir()]) <= 2
    with pytest.raises(VolumeError):
        write(volume, {"../x": File(b"", 0o644)})


def test_a_payload_never_follows_what_a_container_left_in_its_volume(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    volume = tmp_path / "v"
    write(volume, {"a": File(b"1", 0o644)})
    for link in (str(outside), "../outside", "..data/../../outside"):
        (volume / "..data").unlink()
        (volume / "..data").symlink_to(link)
        (volume / "made").mkdir()
        (volume / "made" / "out").symlink_to(outside)
        assert write(volume, {"a": File(b"2", 0o644)})
        assert (volume / "a").read_text() == "2"
        assert not (volume / "made").exists()
        assert (outside / "kept").read_text() == "kept"
        assert not (outside / "a").exists()
    (volume / "..data").unlink()
    (volume / "..data").mkdir()
    assert write(volume, {"a": File(b"3", 0o644)})
    assert (volume / "a").read_text() == "3"


def test_a_payload_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    write(volume, {"a": File(b"1", 0o644)})
    before = sorted(volume.iterdir())
    with pytest.raises(OSError):
        write(volume, {"x": File(b"1", 0o644), "x/y": File(b"2", 0o644)})
    assert sorted(volume.iterdir()) == before


def test_no_container_may_write_where_the_agent_does() -> None:
    volumes = PodVolumes(places={"cm": "/cm", "d": "/d"}, payloads={"cm"})
    container = {
        "volumeMounts": [{"name": "cm", "mountPath": "/a", "readOnly": False}, {"name": "d", "mountPath": "/b"}]
    }
    assert [mount.read_only for mount in mounts(container, volumes, {})] == [True, False]


def test_mounts_resolve_sub_paths_inside_their_volume(tmp_path: Path) -> None:
    volumes = PodVolumes(places={"v": str(tmp_path)})
    container = {"volumeMounts": [{"name": "v", "mountPath": "/a/", "subPathExpr": "$(POD)/x", "readOnly": True}]}
    (mount,) = mounts(container, volumes, {"POD": "p"})
    assert (mount.source, mount.sub, mount.target, mount.read_only) == (str(tmp_path), "p/x", "/a", True)
    assert (tmp_path / "p/x").is_dir()
    for bad in ("../x", "/etc"):
        with pytest.raises(VolumeError, match="leads out"):
            mounts({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": bad}]}, volumes, {})
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(VolumeError, match="leads out"):
        mounts({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "link/etc"}]}, volumes, {})
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    (tmp_path / "dangling").symlink_to(outside)
    for sub in ("dangling", "dangling/made", "dangling/made/more"):
        with pytest.raises(VolumeError, match="leads out"):
            mounts({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": sub}]}, volumes, {})
        assert not outside.exists()
    with pytest.raises(VolumeError, match='no volume "w"'):
        mounts({"volumeMounts": [{"name": "w", "mountPath": "/a"}]}, volumes, {})


def test_host_paths_are_checked(tmp_path: Path) -> None:
    assert host_path({"path": str(tmp_path / "d"), "type": "DirectoryOrCreate"}).is_dir()
    with pytest.raises(VolumeError, match="is not a file"):
        host_path({"path": str(tmp_path), "type": "File"})


IMAGE = Image("n", "id", "digest", ImageConfig(entrypoint=["e"], cmd=["c"], user="app"))


def test_command_and_args_replace_what_they_should() -> None:
    assert command({}, IMAGE, {}) == ["e", "c"]
    assert command({"args": ["$(A)"]}, IMAGE, {"A": "1"}) == ["e", "1"]
    assert command({"command": ["x"]}, IMAGE, {}) == ["x"]
    with pytest.raises(ContainerConfigError, match="no command"):
        command({}, Image("n", "", "", ImageConfig()), {})


def test_non_root_is_kept() -> None:
    def asked(**security: Any) -> dict[str, Any]:
        return {"name": "c", "securityContext": security}

    assert user(POD, asked(runAsUser=5, runAsGroup=6), IMAGE)[:2] == (5, 6)
    assert user(POD, asked(), IMAGE)[3] == "app"
    for security, image in (
        ({"runAsNonRoot": True, "runAsUser": 0}, IMAGE),
        ({"runAsNonRoot": True}, IMAGE),
        ({"runAsNonRoot": True}, Image("n", "", "", ImageConfig())),
    ):
        with pytest.raises(ContainerConfigError, match=r"non-root|runAsNonRoot"):
            user(POD, asked(**security), image)


def test_limits_are_read_from_quantities() -> None:
    found = limits({"resources": {"limits": {"memory": "64Mi", "cpu": "250m"}, "requests": {"cpu": "100m"}}})
    assert (found.memory, found.cpu, found.cpu_request) == (64 << 20, 0.25, 0.1)


def test_resolver_and_hosts_files() -> None:
    host = "nameserver 9.9.9.9\nsearch corp\n"
    text = resolver_file(POD, "10.96.0.10", "cluster.local", host)
    assert (
        text
        == "search ns.svc.cluster.local svc.cluster.local cluster.local corp\nnameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert "9.9.9.9" in resolver_file({**POD, "spec": {"dnsPolicy": "Default"}}, "10.96.0.10", "cluster.local", host)
    own = {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}}
    assert resolver_file({**POD, "spec": own}, "", "", host) == "nameserver 1.1.1.1\noptions ndots:2\n"
    hosts = hosts_file(
        {**POD, "spec": {"subdomain": "sub", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}},
        "10.244.0.5",
        "p",
    )
    assert "10.244.0.5\tp.sub.ns.svc.cluster.local\tp" in hosts
    assert "1.2.3.4\ta\tb" in hosts


def test_verdicts_need_results_in_a_row() -> None:
    counts = Verdicts({"failureThreshold": 2, "successThreshold": 1})
    assert [counts.add(ok) for ok in (False, True, False, False)] == [False, True, False, True]
    assert counts.verdict is False
