"""kubectl top, and what metrics agents read."""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig

import pytest

from sampan.kube.objects import Resource
from sampan.kube.resources import NODES, PODS
from sampan.testing.platform import Platform

KUBECTL = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
POD_METRICS = Resource("metrics.k8s.io", "v1beta1", "pods")


@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
async def test_top_tells_what_pods_and_the_node_use() -> None:
    async with Platform(only=["kubernetes", "node"]) as platform:
        client = platform.client()
        node = (await client.list(NODES)).items[0]["metadata"]["name"]
        busy = {"name": "c", "image": "busybox", "command": ["sh", "-c", "while :; do :; done"]}
        spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [busy]}
        labels = {"app": "busy"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "busy", "labels": labels}, "spec": spec}
        await client.create(PODS, pod, "default")
        async with asyncio.timeout(40):
            while True:
                listed = await client.list(POD_METRICS, "default", label_selector="app=busy")
                used = [entry["containers"][0]["usage"]["cpu"] for entry in listed.items]
                if used and int(used[0].removesuffix("n")) > 50_000_000:
                    break
                await asyncio.sleep(0.3)
        assert (await client.list(POD_METRICS, "default", label_selector="app=other")).items == []
        assert KUBECTL is not None
        for what in ("pods", "node"):
            process = await asyncio.create_subprocess_exec(
                KUBECTL,
                "top",
                what,
                env={**os.environ, "KUBECONFIG": str(platform.kubeconfig)},
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert (b"busy" if what == "pods" else node.encode()) in out
        process = await asyncio.create_subprocess_exec(
            KUBECTL,
            "get",
            "--raw",
            f"/api/v1/nodes/{node}/proxy/metrics/resource",
            env={**os.environ, "KUBECONFIG": str(platform.kubeconfig)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert b'container_cpu_usage_seconds_total{container="c",namespace="default",pod="busy"}' in out
