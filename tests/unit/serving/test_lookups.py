"""Look-ups of Serving."""

from __future__ import annotations

from sampan.kube.control.informer import SharedInformer
from sampan.kube.objects import Object
from sampan.kube.resources import PODS
from sampan.parts.serving import keys
from sampan.parts.serving.lookups import pods_of_revision


def pod(name: str, namespace: str, uid: str | None) -> Object:
    labels = None if uid is None else {keys.REVISION_UID: uid}
    return {"metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "labels": labels}}


def test_a_revisions_pods_are_those_of_its_namespace_that_carry_its_uid() -> None:
    pods = SharedInformer(PODS)
    pods.replace(
        [pod("a", "n", "u1"), pod("b", "n", "u2"), pod("c", "n", None), pod("d", "n", ""), pod("intruder", "m", "u1")]
    )
    assert [one["metadata"]["name"] for one in pods_of_revision(pods, "n", "u1")] == ["a"]
    assert pods_of_revision(pods, "n", "") == []
