"""PersistentVolumes and claims: binding, provisioning, reclaiming, protection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sampan.kube.objects import Object
from sampan.kube.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, STORAGE_CLASSES

from .conftest import Cluster, template


def claim(name: str = "data", size: str = "1Gi", storage_class: str = "", **spec: Any) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def volume(name: str, size: str, **spec: Any) -> Object:
    made = {
        "capacity": {"storage": size},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": f"/tmp/{name}"},
        **spec,
    }
    return {"metadata": {"name": name}, "spec": made}


async def storage_class(cluster: Cluster, mode: str = "Immediate", **fields: Any) -> None:
    made = {"metadata": {"name": "fast"}, "provisioner": "sampan.dev/local", "volumeBindingMode": mode, **fields}
    await cluster.create(STORAGE_CLASSES, made, None)


async def test_a_claim_takes_the_smallest_volume_that_satisfies_it(cluster: Cluster) -> None:
    for name, size in (("tiny", "1Gi"), ("fits", "5Gi"), ("big", "50Gi")):
        await cluster.create(PERSISTENT_VOLUMES, volume(name, size), None)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(size="3Gi"))
    await cluster.settle()
    bound = await cluster.get(PERSISTENT_VOLUME_CLAIMS, "data")
    assert bound["spec"]["volumeName"] == "fits"
    assert bound["status"] == {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "5Gi"}}
    assert bound["metadata"]["annotations"] == {
        "pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes",
    }
    phases = {one["metadata"]["name"]: one["status"]["phase"] for one in await cluster.list(PERSISTENT_VOLUMES)}
    assert phases == {"tiny": "Available", "fits": "Bound", "big": "Available"}


async def test_a_claim_waits_for_a_volume(cluster: Cluster) -> None:
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim())
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["phase"] == "Pending"
    assert "FailedBinding" in await cluster.reasons("data")
    await cluster.create(PERSISTENT_VOLUMES, volume("late", "1Gi"), None)
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["phase"] == "Bound"


async def test_a_claim_may_name_its_volume(cluster: Cluster) -> None:
    await cluster.create(PERSISTENT_VOLUMES, volume("mine", "1Gi"), None)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(volumeName="mine"))
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["phase"] == "Bound"
    assert (await cluster.get(PERSISTENT_VOLUMES, "mine", None))["spec"]["claimRef"]["name"] == "data"


async def test_two_claims_never_share_a_volume(cluster: Cluster) -> None:
    await cluster.create(PERSISTENT_VOLUMES, volume("one", "1Gi"), None)
    for name in ("a", "b"):
        await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(name))
    await cluster.settle()
    phases = sorted(one["status"]["phase"] for one in await cluster.list(PERSISTENT_VOLUME_CLAIMS))
    assert phases == ["Bound", "Pending"]


async def test_a_claim_of_our_class_gets_a_folder_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    await storage_class(cluster)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(storage_class="fast"))
    await cluster.settle()
    (made,) = await cluster.list(PERSISTENT_VOLUMES)
    uid = (await cluster.get(PERSISTENT_VOLUME_CLAIMS, "data"))["metadata"]["uid"]
    assert made["metadata"]["name"] == f"pvc-{uid}"
    assert made["status"]["phase"] == "Bound"
    assert Path(made["spec"]["local"]["path"]) == tmp_path / f"pvc-{uid}"
    assert (tmp_path / f"pvc-{uid}").is_dir()


async def test_late_binding_waits_for_a_pod_and_remembers_its_node(cluster: Cluster) -> None:
    await storage_class(cluster, "WaitForFirstConsumer")
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(storage_class="fast"))
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["phase"] == "Pending"
    assert await cluster.reasons("data") == ["WaitForFirstConsumer"]
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    await cluster.create(PODS, {"metadata": {"name": "p"}, "spec": template({}, volumes=volumes)["spec"]})
    await cluster.settle()
    assert (await cluster.status(PODS, "p"))["phase"] == "Running"
    (made,) = await cluster.list(PERSISTENT_VOLUMES)
    (term,) = made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
async def test_what_becomes_of_data_when_the_claim_goes(cluster: Cluster, tmp_path: Path, policy: str) -> None:
    await storage_class(cluster, reclaimPolicy=policy)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(storage_class="fast"))
    await cluster.settle()
    (made,) = await cluster.list(PERSISTENT_VOLUMES)
    folder = tmp_path / made["metadata"]["name"]
    (folder / "file").write_text("precious")
    await cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "data", "default")
    await cluster.settle()
    left = await cluster.list(PERSISTENT_VOLUMES)
    assert [one["status"]["phase"] for one in left] == ([] if policy == "Delete" else ["Released"])
    assert (folder / "file").exists() == (policy == "Retain")


async def test_a_claim_may_grow(cluster: Cluster) -> None:
    await storage_class(cluster, allowVolumeExpansion=True)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim(storage_class="fast"))
    await cluster.settle()
    bigger = {"spec": {"resources": {"requests": {"storage": "3Gi"}}}}
    await cluster.patch(PERSISTENT_VOLUME_CLAIMS, "data", bigger)
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["capacity"] == {"storage": "3Gi"}


async def test_a_claim_that_lost_its_volume_says_so(cluster: Cluster) -> None:
    await cluster.create(PERSISTENT_VOLUMES, volume("one", "1Gi"), None)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim())
    await cluster.settle()
    await cluster.client.delete(PERSISTENT_VOLUMES, "one")
    await cluster.settle()
    assert (await cluster.status(PERSISTENT_VOLUME_CLAIMS, "data"))["phase"] == "Lost"


async def test_an_unknown_class_or_provisioner_is_said_in_events(cluster: Cluster) -> None:
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim("a", storage_class="nowhere"))
    elsewhere = {"metadata": {"name": "csi"}, "provisioner": "csi.example.com"}
    await cluster.create(STORAGE_CLASSES, elsewhere, None)
    await cluster.create(PERSISTENT_VOLUME_CLAIMS, claim("b", storage_class="csi"))
    await cluster.settle()
    assert await cluster.events("a") == [("ProvisioningFailed", 'storageclass.storage.k8s.io "nowhere" not found')]
    assert "ExternalProvisioning" in await cluster.reasons("b")
