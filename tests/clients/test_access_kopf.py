"""A kopf operator brings its own admission webhooks: it configures them in the cluster and serves them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sampan.testing
from sampan.kernel.certificates import Authority
from tests.clients.kubectl import kubectl as kubectl_binary

OPERATOR = """
import os
import kopf

@kopf.on.startup()
def configure(settings, **_):
    folder = os.environ["CERTIFICATES"]
    settings.admission.managed = "boats.example.com"
    settings.admission.server = kopf.WebhookServer(
        addr="127.0.0.1", host="localhost",
        certfile=f"{folder}/hook.crt", pkeyfile=f"{folder}/hook.key", cafile=f"{folder}/ca.crt",
    )

@kopf.on.mutate("configmaps", labels={"kind": "boat"}, id="paint")
def paint(patch, warnings, **_):
    patch.setdefault("data", {})["colour"] = "red"
    warnings.append("painted red")

@kopf.on.validate("configmaps", labels={"kind": "boat"}, id="float")
def check(body, **_):
    if body.get("data", {}).get("hole"):
        raise kopf.AdmissionError("it would sink", code=499)
"""


def until(done: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for something outside of the platform's clock: another process."""
    for _ in range(int(seconds / 0.1)):
        if done():
            return True
        time.sleep(0.1)
    return False


def test_an_operators_webhooks_paint_and_refuse(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    authority.server_certificate(["localhost", "127.0.0.1"], "hook")
    (tmp_path / "operator.py").write_text(OPERATOR)
    with sampan.testing.Platform(only=["kubernetes"]) as platform:
        environment = {
            **os.environ,
            "KUBECONFIG": str(platform.kubeconfig),
            "CERTIFICATES": str(authority.directory),
        }
        command = [sys.executable, "-m", "kopf", "run", "--standalone", "-n", "default", str(tmp_path / "operator.py")]
        with (tmp_path / "operator.log").open("wb") as log:
            operator = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

        def kubectl(*arguments: str) -> str:
            done = subprocess.run(
                [str(kubectl_binary()), *arguments], capture_output=True, text=True, env=environment, timeout=60
            )
            return done.stdout + done.stderr

        def configured() -> bool:
            listed = kubectl("get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "-o", "yaml")
            return operator.poll() is not None or listed.count("caBundle") == 2

        def boat(name: str, *data: str) -> str:
            made = kubectl("create", "configmap", name, *data, "--dry-run=client", "-o", "yaml")
            labelled = made.replace("metadata:", "metadata:\n  labels: {kind: boat}")
            command = [str(kubectl_binary()), "create", "--validate=false", "-f", "-"]
            done = subprocess.run(command, input=labelled, capture_output=True, text=True, env=environment, timeout=60)
            return done.stdout + done.stderr

        try:
            assert until(configured), (tmp_path / "operator.log").read_text()
            assert operator.poll() is None, (tmp_path / "operator.log").read_text()
            said = boat("junk", "--from-literal=sail=white")
            assert "painted red" in said
            assert kubectl("get", "configmap", "junk", "-o", "jsonpath={.data.colour}/{.data.sail}") == "red/white"
            assert "denied the request: it would sink" in boat("leak", "--from-literal=hole=big")
            assert "NotFound" in kubectl("get", "configmap", "leak")
        finally:
            operator.terminate()
            operator.wait(20)
