"""StatefulSets: identity, order, updates, claims."""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object
from sampan.kube.resources import (
    CONTROLLER_REVISIONS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STATEFUL_SETS,
    STORAGE_CLASSES,
)
from sampan.parts.workloads import pods

from .conftest import Cluster, template


def stateful_set(replicas: int = 3, plays: dict[str, str] | None = None, **spec: Any) -> Object:
    return {
        "metadata": {"name": "web"},
        "spec": {
            "serviceName": "nginx",
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "nginx"}},
            "template": template({"app": "nginx"}, plays=plays),
            **spec,
        },
    }


CLAIMS = [
    {
        "metadata": {"name": "www"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "standard",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
]


async def local_storage(cluster: Cluster) -> None:
    storage_class = {
        "metadata": {"name": "standard"},
        "provisioner": "sampan.dev/local",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
        "allowVolumeExpansion": True,
    }
    await cluster.create(STORAGE_CLASSES, storage_class, None)


def images(found: list[Object]) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"] for pod in found}


def image(version: str) -> Object:
    return {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": version}]}}}}


async def test_pods_come_in_order_with_names_of_their_own(cluster: Cluster) -> None:
    seen: list[str] = []

    def note(old: Object | None, new: Object | None) -> None:
        if old is None and new is not None:
            up = [pod for pod in cluster.kubelet.informer(PODS).objects() if pods.is_ready(pod)]
            seen.append(f"{new['metadata']['name']} after {len(up)}")

    cluster.kubelet.informer(PODS).on_change(note)
    await cluster.create(STATEFUL_SETS, stateful_set())
    await cluster.settle()
    assert seen == ["web-0 after 0", "web-1 after 1", "web-2 after 2"]
    pod = await cluster.get(PODS, "web-1")
    (revision,) = await cluster.names(CONTROLLER_REVISIONS)
    assert pod["metadata"]["labels"] == {
        "app": "nginx",
        "statefulset.kubernetes.io/pod-name": "web-1",
        "apps.kubernetes.io/pod-index": "1",
        "controller-revision-hash": revision,
    }
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("web-1", "nginx")
    assert await cluster.status(STATEFUL_SETS, "web") == {
        "observedGeneration": 1,
        "replicas": 3,
        "readyReplicas": 3,
        "availableReplicas": 3,
        "currentReplicas": 3,
        "updatedReplicas": 3,
        "currentRevision": revision,
        "updateRevision": revision,
        "collisionCount": 0,
    }


async def test_an_unready_pod_holds_up_its_successors(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(plays={"play/ready": "false"}))
    await cluster.settle()
    assert await cluster.names() == ["web-0"]


async def test_parallel_pods_come_all_at_once(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(podManagementPolicy="Parallel", plays={"play/ready": "false"}))
    await cluster.settle()
    assert await cluster.names() == ["web-0", "web-1", "web-2"]


async def test_scaling_down_goes_from_the_end_one_by_one(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(plays={"play/linger": "10"}))
    await cluster.settle()
    await cluster.patch(STATEFUL_SETS, "web", {"spec": {"replicas": 1}})
    await cluster.settle()
    leaving = [pod["metadata"]["name"] for pod in await cluster.pods() if pods.is_terminating(pod)]
    assert leaving == ["web-2"]
    await cluster.pass_time(12)
    assert [pod["metadata"]["name"] for pod in await cluster.pods() if pods.is_terminating(pod)] == ["web-1"]
    await cluster.pass_time(12)
    assert await cluster.names() == ["web-0"]


async def test_an_identity_is_never_held_twice(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(1, plays={"play/linger": "20"}))
    await cluster.settle()
    first = await cluster.get(PODS, "web-0")
    await cluster.client.delete(PODS, "web-0", "default")
    await cluster.pass_time(10)
    assert (await cluster.get(PODS, "web-0"))["metadata"]["uid"] == first["metadata"]["uid"]
    await cluster.pass_time(15)
    assert (await cluster.get(PODS, "web-0"))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_an_update_goes_from_the_highest_ordinal_down_to_the_partition(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(4))
    await cluster.settle()
    gone: list[str] = []
    cluster.kubelet.informer(PODS).on_change(
        lambda old, new: gone.append(old["metadata"]["name"]) if old is not None and new is None else None
    )
    canary = {"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}}
    await cluster.patch(STATEFUL_SETS, "web", canary)
    await cluster.patch(STATEFUL_SETS, "web", image("nginx:2"))
    await cluster.settle()
    assert gone == ["web-3", "web-2"]
    assert list(images(await cluster.pods()).values()) == ["nginx:1", "nginx:1", "nginx:2", "nginx:2"]
    status = await cluster.status(STATEFUL_SETS, "web")
    assert (status["currentReplicas"], status["updatedReplicas"]) == (2, 2)
    assert status["currentRevision"] != status["updateRevision"]
    # a pod below the partition that dies comes back as it was
    await cluster.client.delete(PODS, "web-0", "default")
    await cluster.settle()
    assert images(await cluster.pods())["web-0"] == "nginx:1"
    everyone = {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}
    await cluster.patch(STATEFUL_SETS, "web", everyone)
    await cluster.settle()
    assert set(images(await cluster.pods()).values()) == {"nginx:2"}
    status = await cluster.status(STATEFUL_SETS, "web")
    assert status["currentRevision"] == status["updateRevision"]


async def test_on_delete_updates_only_what_somebody_deletes(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(2, updateStrategy={"type": "OnDelete"}))
    await cluster.settle()
    await cluster.patch(STATEFUL_SETS, "web", image("nginx:2"))
    await cluster.settle()
    assert set(images(await cluster.pods()).values()) == {"nginx:1"}
    await cluster.client.delete(PODS, "web-1", "default")
    await cluster.settle()
    assert images(await cluster.pods()) == {"web-0": "nginx:1", "web-1": "nginx:2"}


async def test_a_broken_parallel_set_is_replaced_at_once(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(podManagementPolicy="Parallel"))
    await cluster.settle()
    broken = {"spec": {"template": {"metadata": {"annotations": {"play/ready": "false"}}}}}
    await cluster.patch(STATEFUL_SETS, "web", broken)
    await cluster.settle()
    assert sum(pods.is_ready(pod) for pod in await cluster.pods()) == 2, "one pod may be unavailable"
    mended = {"spec": {"template": {"metadata": {"annotations": {"play/ready": "true"}}}}}
    await cluster.patch(STATEFUL_SETS, "web", mended)
    await cluster.settle()
    status = await cluster.status(STATEFUL_SETS, "web")
    assert (status["readyReplicas"], status["updatedReplicas"]) == (3, 3)


async def test_ordinals_may_start_elsewhere(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(2, ordinals={"start": 5}))
    await cluster.settle()
    assert await cluster.names() == ["web-5", "web-6"]
    await cluster.patch(STATEFUL_SETS, "web", {"spec": {"ordinals": {"start": 6}}})
    await cluster.settle()
    assert await cluster.names() == ["web-6", "web-7"]


async def test_a_failed_pod_is_made_anew(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(1))
    await cluster.settle()
    uid = (await cluster.get(PODS, "web-0"))["metadata"]["uid"]
    await cluster.patch(PODS, "web-0", {"status": {"phase": "Failed", "reason": "Evicted"}}, subresource="status")
    await cluster.settle()
    assert (await cluster.get(PODS, "web-0"))["metadata"]["uid"] != uid
    assert "RecreatingFailedPod" in await cluster.reasons("web")


async def test_each_pod_has_claims_that_outlive_it(cluster: Cluster) -> None:
    await local_storage(cluster)
    made = stateful_set(2, volumeClaimTemplates=CLAIMS)
    made["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "www", "mountPath": "/www"}]
    await cluster.create(STATEFUL_SETS, made)
    await cluster.settle()
    assert await cluster.names(PERSISTENT_VOLUME_CLAIMS) == ["www-web-0", "www-web-1"]
    claim = await cluster.get(PERSISTENT_VOLUME_CLAIMS, "www-web-0")
    assert claim["metadata"]["labels"] == {"app": "nginx"}
    assert claim["status"]["phase"] == "Bound"
    assert claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] == "node-1"
    volume = (await cluster.get(PODS, "web-1"))["spec"]["volumes"][0]
    assert volume == {"name": "www", "persistentVolumeClaim": {"claimName": "www-web-1"}}
    await cluster.patch(STATEFUL_SETS, "web", {"spec": {"replicas": 1}})
    await cluster.client.delete(STATEFUL_SETS, "web", "default", propagation="Background")
    await cluster.settle()
    assert await cluster.pods() == []
    assert await cluster.names(PERSISTENT_VOLUME_CLAIMS) == ["www-web-0", "www-web-1"]


async def test_retention_policy_deletes_claims_with_the_pod_or_the_set(cluster: Cluster) -> None:
    await local_storage(cluster)
    policy = {"whenScaled": "Delete", "whenDeleted": "Delete"}
    made = stateful_set(3, volumeClaimTemplates=CLAIMS, persistentVolumeClaimRetentionPolicy=policy)
    await cluster.create(STATEFUL_SETS, made)
    await cluster.settle()
    await cluster.patch(STATEFUL_SETS, "web", {"spec": {"replicas": 2}})
    await cluster.settle()
    assert await cluster.names(PERSISTENT_VOLUME_CLAIMS) == ["www-web-0", "www-web-1"]
    await cluster.client.delete(STATEFUL_SETS, "web", "default", propagation="Background")
    await cluster.settle()
    assert await cluster.names(PERSISTENT_VOLUME_CLAIMS) == []
    assert await cluster.names(PERSISTENT_VOLUMES) == []


async def test_retention_policy_may_change_its_mind(cluster: Cluster) -> None:
    await local_storage(cluster)
    await cluster.create(STATEFUL_SETS, stateful_set(1, volumeClaimTemplates=CLAIMS))
    await cluster.settle()
    for policy, owners in (("Delete", ["StatefulSet"]), ("Retain", [])):
        change = {"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy}}}
        await cluster.patch(STATEFUL_SETS, "web", change)
        await cluster.settle()
        claim = await cluster.get(PERSISTENT_VOLUME_CLAIMS, "www-web-0")
        assert [one["kind"] for one in claim["metadata"].get("ownerReferences") or ()] == owners


async def test_a_pending_pods_missing_claim_is_made_again(cluster: Cluster) -> None:
    await local_storage(cluster)
    cluster.kubelet.nodes.clear()
    await cluster.create(STATEFUL_SETS, stateful_set(1, plays={"play/start": "false"}, volumeClaimTemplates=CLAIMS))
    await cluster.settle()
    await cluster.client.delete(PERSISTENT_VOLUME_CLAIMS, "www-web-0", "default")
    await cluster.patch(STATEFUL_SETS, "web", {"metadata": {"annotations": {"look": "again"}}})
    await cluster.settle()
    assert await cluster.names(PERSISTENT_VOLUME_CLAIMS) == ["www-web-0"]


async def test_history_is_kept_to_its_limit_and_undo_goes_back(cluster: Cluster) -> None:
    await cluster.create(STATEFUL_SETS, stateful_set(1, revisionHistoryLimit=2))
    await cluster.settle()
    for number in range(2, 7):
        await cluster.patch(STATEFUL_SETS, "web", image(f"nginx:{number}"))
        await cluster.settle()
    revisions = sorted(one["revision"] for one in await cluster.list(CONTROLLER_REVISIONS))
    assert revisions == [4, 5, 6]
    old = next(one for one in await cluster.list(CONTROLLER_REVISIONS) if one["revision"] == 5)
    # what kubectl rollout undo does
    await cluster.patch(STATEFUL_SETS, "web", old["data"], patch_type="strategic")
    await cluster.settle()
    assert images(await cluster.pods()) == {"web-0": "nginx:5"}
    revisions = sorted(one["revision"] for one in await cluster.list(CONTROLLER_REVISIONS))
    assert revisions == [4, 6, 7]
