"""Jobs: counting, retries, indexes, policies, suspension, endings."""

from __future__ import annotations

from typing import Any

from sampan.kube.objects import Object
from sampan.kube.resources import JOBS, PODS
from sampan.parts.workloads import pods

from .conftest import Cluster, template


def job(plays: dict[str, str] | None = None, restart: str = "Never", **spec: Any) -> Object:
    return {"metadata": {"name": "pi"}, "spec": {"template": template({}, restart=restart, plays=plays), **spec}}


OK = {"play/exit": "0", "play/after": "5"}
BAD = {"play/exit": "3"}


def ended(status: Object) -> dict[str, str]:
    return {one["type"]: one["reason"] for one in status.get("conditions") or () if one["status"] == "True"}


async def index_plays(cluster: Cluster, index: str, plays: dict[str, str]) -> None:
    """Direct the newest running pod of an index."""
    for pod in await cluster.pods():
        annotations = pod["metadata"]["annotations"]
        if annotations.get("batch.kubernetes.io/job-completion-index") == index and pods.is_active(pod):
            await cluster.patch(PODS, pod["metadata"]["name"], {"metadata": {"annotations": plays}})


async def test_a_job_runs_once_and_completes(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK))
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert (status["active"], status["ready"], status["terminating"], status["uncountedTerminatedPods"]) == (
        1,
        1,
        0,
        {},
    )
    (pod,) = await cluster.pods()
    assert pod["metadata"]["finalizers"] == ["batch.kubernetes.io/job-tracking"]
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "pi"
    await cluster.pass_time(6)
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
    assert status["succeeded"] == 1
    assert "active" not in status
    assert status["completionTime"] > status["startTime"]
    (pod,) = await cluster.pods()
    assert "finalizers" not in pod["metadata"]
    assert await cluster.reasons("pi") == ["SuccessfulCreate", "Completed"]


async def test_parallelism_bounds_what_runs_at_once(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, completions=5, parallelism=2))
    most = 0

    def note(old: Object | None, new: Object | None) -> None:
        nonlocal most
        most = max(most, sum(pods.is_active(pod) for pod in cluster.kubelet.informer(PODS).objects()))

    cluster.kubelet.informer(PODS).on_change(note)
    await cluster.pass_time(30)
    assert most == 2
    assert (await cluster.status(JOBS, "pi"))["succeeded"] == 5


async def test_a_work_queue_job_ends_when_one_succeeded_and_all_have_ended(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, parallelism=3))
    await cluster.pass_time(10)
    status = await cluster.status(JOBS, "pi")
    assert (status["succeeded"], ended(status)["Complete"]) == (3, "CompletionsReached")


async def test_failures_back_off_up_to_the_limit(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(BAD, backoffLimit=3))
    moments: list[float] = []
    begin = cluster.clock.monotonic()

    def note(old: Object | None, new: Object | None) -> None:
        if old is None:
            moments.append(round(cluster.clock.monotonic() - begin, -1))

    cluster.kubelet.informer(PODS).on_change(note)
    await cluster.pass_time(300)
    assert moments == [0, 10, 30, 70]
    status = await cluster.status(JOBS, "pi")
    assert status["failed"] == 4
    assert ended(status) == {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}
    assert (await cluster.events("pi"))[-1] == ("BackoffLimitExceeded", "Job has reached the specified backoff limit")


async def test_a_deadline_ends_the_job_after_its_pods(cluster: Cluster) -> None:
    await cluster.create(JOBS, job({"play/linger": "10"}, activeDeadlineSeconds=30))
    await cluster.pass_time(32)
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"FailureTarget": "DeadlineExceeded"}, "its pod is still ending"
    assert status["terminating"] == 1
    await cluster.pass_time(12)
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"FailureTarget": "DeadlineExceeded", "Failed": "DeadlineExceeded"}
    assert status["failed"] == 1
    assert await cluster.pods() == []


async def test_suspension_dismisses_pods_without_counting_them(cluster: Cluster) -> None:
    await cluster.create(JOBS, job({"play/exit": "0", "play/after": "60"}, parallelism=2, completions=2))
    await cluster.settle()
    await cluster.patch(JOBS, "pi", {"spec": {"suspend": True}})
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"Suspended": "JobSuspended"}
    assert not {"failed", "startTime", "active"} & status.keys()
    assert await cluster.pods() == []
    await cluster.patch(JOBS, "pi", {"spec": {"suspend": False}})
    await cluster.pass_time(70)
    status = await cluster.status(JOBS, "pi")
    assert (status["succeeded"], ended(status)["Complete"]) == (2, "CompletionsReached")
    reasons = await cluster.reasons("pi")
    assert reasons.index("Suspended") < reasons.index("Resumed")


async def test_a_job_created_suspended_starts_nothing(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, suspend=True))
    await cluster.pass_time(60)
    assert await cluster.pods() == []
    assert "startTime" not in await cluster.status(JOBS, "pi")


async def test_indexes_are_names_labels_and_environment(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, completions=3, parallelism=3, completionMode="Indexed"))
    await cluster.settle()
    found = await cluster.pods()
    assert [pod["metadata"]["name"][:5] for pod in found] == ["pi-0-", "pi-1-", "pi-2-"]
    assert [pod["spec"]["hostname"] for pod in found] == ["pi-0", "pi-1", "pi-2"]
    for number, pod in enumerate(found):
        key = "batch.kubernetes.io/job-completion-index"
        assert pod["metadata"]["annotations"][key] == pod["metadata"]["labels"][key] == str(number)
        (variable,) = pod["spec"]["containers"][0]["env"]
        assert variable["name"] == "JOB_COMPLETION_INDEX"
    await cluster.pass_time(10)
    status = await cluster.status(JOBS, "pi")
    assert (status["completedIndexes"], status["succeeded"]) == ("0-2", 3)


async def test_a_failed_index_is_tried_again_under_its_own_limit(cluster: Cluster) -> None:
    spec: Object = {"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1}
    await cluster.create(JOBS, job({"play/exit": "0", "play/after": "200"}, **spec))
    await cluster.settle()
    await index_plays(cluster, "1", {"play/exit": "1", "play/after": "0"})
    await cluster.pass_time(20)
    second = [pod for pod in await cluster.pods() if pod["metadata"]["name"].startswith("pi-1-")]
    assert sorted(pod["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] for pod in second) == [
        "0",
        "1",
    ]
    await index_plays(cluster, "1", {"play/exit": "1", "play/after": "0"})
    await cluster.pass_time(300)
    status = await cluster.status(JOBS, "pi")
    assert (status["completedIndexes"], status["failedIndexes"], status["failed"]) == ("0,2", "1", 2)
    assert ended(status)["Failed"] == "FailedIndexes"


async def test_too_many_failed_indexes_end_the_job(cluster: Cluster) -> None:
    spec: Object = {
        "completions": 4,
        "parallelism": 4,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": 0,
        "maxFailedIndexes": 1,
    }
    await cluster.create(JOBS, job({"play/exit": "0", "play/after": "900"}, **spec))
    await cluster.settle()
    for index in ("0", "3"):
        await index_plays(cluster, index, {"play/exit": "1", "play/after": "0"})
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert ended(status)["Failed"] == "MaxFailedIndexesExceeded"
    assert status["failedIndexes"] == "0,3"


async def test_a_failure_policy_ends_the_job_at_once_on_a_fatal_code(cluster: Cluster) -> None:
    rules = [{"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}}]
    await cluster.create(JOBS, job({"play/exit": "42"}, podFailurePolicy={"rules": rules}))
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}
    message = status["conditions"][0]["message"]
    assert message.startswith("Container c for pod default/pi-")
    assert message.endswith("failed with exit code 42 matching FailJob rule at index 0")


async def test_a_failure_policy_ignores_disruptions(cluster: Cluster) -> None:
    rules = [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
    await cluster.create(
        JOBS, job({"play/exit": "0", "play/after": "100"}, backoffLimit=0, podFailurePolicy={"rules": rules})
    )
    await cluster.settle()
    (pod,) = await cluster.pods()
    disrupted = [*pod["status"]["conditions"], {"type": "DisruptionTarget", "status": "True"}]
    failed = {"status": {"phase": "Failed", "conditions": disrupted}}
    await cluster.patch(PODS, pod["metadata"]["name"], failed, subresource="status")
    await cluster.pass_time(120)
    status = await cluster.status(JOBS, "pi")
    assert "failed" not in status
    assert ended(status)["Complete"] == "CompletionsReached"


async def test_a_success_policy_is_content_with_the_leader(cluster: Cluster) -> None:
    spec: Object = {"completions": 3, "parallelism": 3, "completionMode": "Indexed"}
    policy = {"rules": [{"succeededIndexes": "0", "succeededCount": 1}]}
    await cluster.create(JOBS, job({"play/exit": "0", "play/after": "500"}, successPolicy=policy, **spec))
    await cluster.settle()
    await index_plays(cluster, "0", {"play/after": "0"})
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert ended(status) == {"SuccessCriteriaMet": "SuccessPolicy", "Complete": "SuccessPolicy"}
    assert status["succeeded"] == 1


async def test_replacement_waits_for_the_end_where_asked_to(cluster: Cluster) -> None:
    for policy, at_once in (("TerminatingOrFailed", 2), ("Failed", 1)):
        made = job({"play/linger": "20"}, podReplacementPolicy=policy)
        made["metadata"]["name"] = policy.lower()
        await cluster.create(JOBS, made)
        await cluster.settle()
        selector = f"job-name={policy.lower()}"
        (pod,) = await cluster.pods(selector)
        await cluster.client.delete(PODS, pod["metadata"]["name"], "default")
        await cluster.pass_time(15)
        assert len(await cluster.pods(selector)) == at_once
        await cluster.pass_time(30)
        assert sum(pods.is_active(one) for one in await cluster.pods(selector)) == 1
        assert (await cluster.status(JOBS, policy.lower()))["failed"] == 1


async def test_parallelism_may_shrink_without_failures(cluster: Cluster) -> None:
    await cluster.create(JOBS, job({"play/exit": "0", "play/after": "50"}, parallelism=4, completions=4))
    await cluster.settle()
    await cluster.patch(JOBS, "pi", {"spec": {"parallelism": 1}})
    await cluster.settle()
    status = await cluster.status(JOBS, "pi")
    assert status["active"] == 1
    assert "failed" not in status


async def test_time_to_live_takes_the_job_and_its_pods(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, ttlSecondsAfterFinished=100))
    await cluster.pass_time(60)
    assert await cluster.names(JOBS) == ["pi"]
    await cluster.pass_time(60)
    assert await cluster.names(JOBS) == []
    assert await cluster.pods() == []


async def test_deleting_a_running_job_leaves_no_pod_behind(cluster: Cluster) -> None:
    await cluster.create(JOBS, job({"play/linger": "5"}, parallelism=3, completions=3))
    await cluster.settle()
    await cluster.client.delete(JOBS, "pi", "default", propagation="Background")
    await cluster.create(JOBS, job(OK))  # the name is taken again at once
    await cluster.pass_time(15)
    assert (await cluster.status(JOBS, "pi"))["succeeded"] == 1
    assert len(await cluster.pods()) == 1


async def test_orphaned_pods_may_be_deleted(cluster: Cluster) -> None:
    await cluster.create(JOBS, job())
    await cluster.settle()
    await cluster.client.delete(JOBS, "pi", "default", propagation="Orphan")
    await cluster.settle()
    (pod,) = await cluster.pods()
    await cluster.client.delete(PODS, pod["metadata"]["name"], "default")
    await cluster.settle()
    assert await cluster.pods() == []


async def test_jobs_of_another_controller_are_left_alone(cluster: Cluster) -> None:
    await cluster.create(JOBS, job(OK, managedBy="example.com/queue"))
    await cluster.settle()
    assert await cluster.pods() == []
