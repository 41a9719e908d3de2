"""Knative Serving's own conformance and end-to-end tests against a platform.

``python -m tests.clients.knative_conformance CHECKOUT [--suites api runtime ...] [--run REGEX]`` with a checkout of knative/serving
(it brings its vendored modules) and a Go toolchain. Its tests and the applications they deploy are built once beside other
caches, two minutes each; a platform is started, the applications become images, and a line a test is printed. `EXPECTED` says
which tests cannot pass here, and why; any other failure is the exit status.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sampan.kernel.folder import DataDirectory
from sampan.parts.node.images.image import ImageConfig
from sampan.parts.node.images.store import ImageStore
from sampan.testing import Platform
from tests.clients.kubectl import Command, kubectl

CACHE = Path.home() / ".cache" / "sampan-tests" / "knative-serving"
REGISTRY = "conformance.example"
SYSTEM = "knative-serving"
SUITES = {
    "api": "conformance/api/v1",
    "beta": "conformance/api/v1beta1",
    "runtime": "conformance/runtime",
    "domains": "e2e/domainmapping",
    "init": "e2e/initcontainers",
    "probing": "e2e/multicontainerprobing",
    "claims": "e2e/pvc",
    "zero": "e2e/initscale",
    "tags": "e2e/tagheader",
    "gc": "e2e/gc",
    "secure": "e2e/securedefaults",
    "e2e": "e2e",
}
EXPECTED = {
    "TestMustHaveCgroupConfigured": "no cgroup file system in containers: its mounts would be a tenth of a cold start",
    "TestShouldHaveCgroupReadOnly": "likewise",
    "TestRevisionTimeout/writes_first_byte_before_timeout": "a response that is cut short is reset, not ended cleanly",
    ".*ViaActivator.*": "wait for addresses of the EndpointSlices of activator-service in a public Service: the gate has none",
    "TestTargetBurstCapacity(MinusOne)?": "likewise",
    "TestQueueSideCarResourceLimit": "looks for a container queue-proxy: there is none",
    "TestImagePullError": "ubuntu by any digest is the built-in stand-in, whose shell ends at once: CrashLoopBackOff",
    "TestWebSocketWithTimeout/exceeds_(response_start|idle)_timeout_seconds": "WebSockets end with timeoutSeconds alone",
    "TestCallToPublicService/external_address": "names under localhost are the pod's own inside a pod",
    "TestEgressTraffic": "asks www.google.com: fails where the machine's own resolver does not know it",
}
FEATURES = (
    "tag-header-based-routing",
    "kubernetes.podspec-init-containers",
    "multi-container-probing",
    "kubernetes.podspec-persistent-volume-claim",
    "kubernetes.podspec-persistent-volume-write",
    "kubernetes.podspec-securitycontext",
)
DURING = {
    "gc": (
        "config-gc",
        {
            "retain-since-create-time": "disabled",
            "retain-since-last-active-time": "disabled",
            "min-non-active-revisions": "0",
            "max-non-active-revisions": "0",
        },
    ),
    "secure": ("config-features", {"secure-pod-defaults": "Enabled"}),
}
"""What a suite wants of a ConfigMap while it runs."""
LONGEST = 1500
"""Seconds for a build or a suite."""


def build(checkout: Path, suites: list[str]) -> None:
    """The tests of these suites and all applications, where they are not built yet."""
    environment = {**os.environ, "GOWORK": "off", "GOFLAGS": "-mod=vendor", "CGO_ENABLED": "0"}
    (CACHE / "images").mkdir(parents=True, exist_ok=True)
    for suite in suites:
        if not (CACHE / suite).exists():
            line = ["go", "test", "-c", "-tags=e2e", "-o", str(CACHE / suite), f"./test/{SUITES[suite]}"]
            subprocess.run(line, cwd=checkout, env=environment, check=True, timeout=LONGEST)
    programs = sorted({path.parent for path in (checkout / "test" / "test_images").rglob("*.go")})
    for folder in programs:
        made = CACHE / "images" / folder.name
        if not made.exists() and any("package main" in one.read_text() for one in folder.glob("*.go")):
            line = ["go", "build", "-ldflags=-s -w", "-o", str(made), f"./{folder.relative_to(checkout)}"]
            subprocess.run(line, cwd=checkout, env=environment, check=True, timeout=LONGEST)


def load(store: ImageStore) -> None:
    """An image of each application, laid out as upstream's build tool does."""
    for program in sorted((CACHE / "images").iterdir()):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(program, f"ko-app/{program.name}")
            folder = tarfile.TarInfo("tmp")  # of upstream's base image
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            archive.addfile(folder)
        config = ImageConfig(entrypoint=[f"/ko-app/{program.name}"], user="65532")
        layer = packed.getvalue()
        diff = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        name = f"{REGISTRY}/{program.name}:latest"
        store.add(name, config, [gzip.compress(layer, 1)], [diff], "2026-01-01T00:00:00Z")


def adjust(client: Command, name: str, data: Mapping[str, str | None]) -> None:
    """Set these entries of a ConfigMap of Serving; None takes one out."""
    client("patch", "cm", name, "-n", SYSTEM, "--type=merge", "-p", json.dumps({"data": data}))


def prepare(client: Command, checkout: Path, http: int, https: int) -> None:
    """The namespaces, objects and features that the tests expect."""
    for namespace in ("serving-tests", "serving-tests-alt", "istio-system"):
        client("create", "namespace", namespace)
    config = checkout / "test" / "config"
    for place in ("cluster-resources.yaml", "test-resources.yaml", "resource-quota", "pvc"):
        client("apply", "-f", str(config / place))
    adjust(client, "config-features", dict.fromkeys(FEATURES, "Enabled"))
    adjust(client, "config-autoscaler", {"allow-zero-initial-scale": "true"})
    # here the tests look up on which ports the gateway is reached
    gateway = f"""
apiVersion: v1
kind: Service
metadata: {{name: istio-ingressgateway, namespace: istio-system}}
spec:
  type: NodePort
  ports:
    - {{name: http, port: 80, nodePort: {http}}}
    - {{name: https, port: 443, nodePort: {https}}}
"""
    client("apply", "-f", "-", stdin=gateway)


def run(suite: str, checkout: Path, kubeconfig: Path, chosen: str) -> bool:
    """Run one suite and print what came of each test; whether all is as expected."""
    line = [str(CACHE / suite), "-test.v", "-test.parallel", "6", "-test.run", chosen, "-kubeconfig", str(kubeconfig)]
    line += ["-ingressendpoint", "127.0.0.1", "-dockerrepo", REGISTRY, "-tag", "latest", "-disable-logstream"]
    line += ["-imagetemplate", "{{.Repository}}/{{.Name}}:{{.Tag}}", "-enable-alpha", "-enable-beta"]
    environment = {**os.environ, "SYSTEM_NAMESPACE": SYSTEM}
    told = subprocess.run(
        line, cwd=checkout / "test" / SUITES[suite], env=environment, capture_output=True, timeout=LONGEST, check=False
    ).stdout.decode(errors="replace")
    results = re.findall(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", told, re.MULTILINE)
    failed = {name for result, name in results if result == "FAIL"}
    good = bool(results)
    for result, name in results:
        why = next((reason for pattern, reason in EXPECTED.items() if re.fullmatch(pattern, name)), "")
        parts = {one for one in failed if one.startswith(f"{name}/")}
        known = why or (parts and all(any(re.fullmatch(one, part) for one in EXPECTED) for part in parts))
        good = good and (result != "FAIL" or bool(known))
        print(f"{suite:8} {result:5} {name}{f'   (expected: {why})' if why and result == 'FAIL' else ''}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--suites", nargs="*", choices=SUITES, default=[one for one in SUITES if one != "e2e"])
    parser.add_argument("--run", default=".")
    parser.add_argument("--http", type=int, default=30480, help="port of the gateway, from 30000 to 32767")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    build(checkout, options.suites)
    settings = {"traffic.http_port": options.http, "traffic.https_port": options.http + 1}
    fixed = {"platform.ports": "default", "kubernetes.port": options.http + 2, "node.port": options.http + 3}
    further = {"network.dns_port": options.http + 4, "traffic.metrics_port": options.http + 5}
    inner = {"traffic.internal_port": options.http + 6, "traffic.internal_tls_port": options.http + 7}
    everything = {**settings, **fixed, **further, **inner}
    with (
        tempfile.TemporaryDirectory() as home,
        Platform(only=["serving", "node", "network"], settings=everything) as one,
    ):
        store = ImageStore(DataDirectory(one.data_dir).part("node") / "images")
        store.open()
        load(store)
        client = Command(kubectl(), one.kubeconfig, Path(home))
        prepare(client, checkout, options.http, options.http + 1)
        results = []
        for suite in options.suites:
            name, data = DURING.get(suite, ("", {}))
            if name:
                adjust(client, name, data)
            with suppress(subprocess.TimeoutExpired):
                results.append(run(suite, checkout, one.kubeconfig, options.run))
            if name:
                adjust(client, name, dict.fromkeys(data))
    return 0 if results and all(results) and len(results) == len(options.suites) else 1


if __name__ == "__main__":
    sys.exit(main())
