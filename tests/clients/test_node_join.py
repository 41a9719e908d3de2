"""A second machine joins: tokens, certificates, pods, Services and the verbs of kubectl across two network namespaces."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.hosts import Machine, machines, reason_not_to, until

REASON = reason_not_to()

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(REASON), reason=REASON),
    pytest.mark.xdist_group("node-join"),
]

PARTS = "kubernetes,node,network,workloads"


def start_platform(core: Machine) -> None:
    hosts = ["--set", "kubernetes.host=0.0.0.0", "--set", f"node.host={core.address}", "--set", "node.name=first"]
    core.sampan("up", "--detach", "--only", PARTS, *hosts)
    core.kubeconfig = core.data / "kubeconfig"


def join_command(core: Machine, *arguments: str) -> list[str]:
    """What ``token create`` prints, without the program's name."""
    printed = core.sampan("node", "token", "create", *arguments)
    (line,) = (line for line in printed.splitlines() if line.startswith("sampan node join"))
    return line.split()[1:]


def node(core: Machine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = core.get("node", name)
    return found


def is_ready(core: Machine, name: str, status: str = "True") -> bool:
    return any(one["type"] == "Ready" and one["status"] == status for one in node(core, name)["status"]["conditions"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """A platform on one machine, joined by another."""
    with machines(tmp_path_factory.mktemp("hosts")) as (core, other):
        start_platform(core)
        other.sampan(*join_command(core), "--name", "second", "--label", "disk=fast", "--detach")
        yield core, other


def pod(name: str, on: str, *command: str, image: str = "busybox", **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": image, **spec.pop("container", {})}
    if command:
        container["command"] = list(command)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": on, "containers": [container], "terminationGracePeriodSeconds": 1, **spec},
    }


def service(name: str, selector: str, port: int = 80) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": selector}, "ports": [{"port": port}]},
    }


def wait_ready(core: Machine, *names: str) -> None:
    core.kubectl("wait", "--for=condition=Ready", "--timeout=30s", *(f"pod/{name}" for name in names))


def test_the_node_says_what_it_is_and_has_certificates_by_request(pair: tuple[Machine, Machine]) -> None:
    core, other = pair
    found = node(core, "second")
    assert is_ready(core, "second")
    assert found["metadata"]["labels"]["disk"] == "fast"
    assert found["status"]["addresses"] == [
        {"type": "InternalIP", "address": other.address},
        {"type": "Hostname", "address": "second"},
    ]
    ranges = {node(core, name)["spec"]["podCIDR"] for name in ("first", "second")}
    assert len(ranges) == 2
    requests = core.get("csr")["items"]
    asked = {(one["spec"]["signerName"], one["spec"]["username"]) for one in requests}
    assert {
        ("kubernetes.io/kubelet-serving", "system:node:second"),
        ("kubernetes.io/kube-apiserver-client", "system:node:second"),
    } <= asked
    assert any(signer.endswith("client-kubelet") and user.startswith("system:bootstrap:") for signer, user in asked)
    assert all(one["status"].get("certificate") for one in requests)
    wide = core.kubectl("get", "nodes", "-o", "wide")
    assert re.search(rf"second\s+Ready\s.*{other.address}", wide)


def test_who_has_no_good_token_stays_outside(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    core, other = pair
    good = join_command(core)
    third = Machine(other.name, other.address, tmp_path / "third")
    token = good[good.index("--token") + 1]
    identity, secret = token.split(".")

    def refused(*changes: str, command: list[str] = good) -> str:
        words = list(command)
        for flag, value in zip(changes[::2], changes[1::2], strict=True):
            words[words.index(flag) + 1] = value
        return third.sampan(*words, "--name", "third", code=1)

    assert "the token's secret is not the one" in refused("--token", f"{identity}.{'0' * 16}")
    assert 'does not know the token id "zzzzzz"' in refused("--token", f"zzzzzz.{secret}")
    assert "not of the form" in refused("--token", "nonsense")
    assert "this is not the cluster you mean" in refused("--ca-hash", f"sha256:{'0' * 64}")
    for_signing = join_command(core, "--usages", "signing")
    assert "may not authenticate" in refused(command=for_signing)
    assert "cannot be joined" in third.sampan("node", "join", "10.77.0.1:1", "--token", token, code=1)
    short = join_command(core, "--ttl", "1s")
    until(lambda: short[short.index("--token") + 1] not in core.sampan("node", "token", "list"), "the token is cleaned")
    assert "does not know the token id" in refused(command=short)
    core.sampan("node", "token", "delete", identity)
    until(lambda: "does not know the token id" in refused(), "the deleted token is no longer signed with")
    taken = third.sampan(*join_command(core), "--name", "second", code=1)
    assert 'a node with the name "second" and status Ready is in the cluster already' in taken
    assert "is not a joined node yet" in third.sampan("node", "join", code=1)
    assert not [one for one in core.get("nodes")["items"] if one["metadata"]["name"] == "third"]


def test_kubectl_reaches_pods_of_the_joined_node(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    core, _other = pair
    core.apply(pod("talker", "second", "sh", "-c", "echo hello from $HOSTNAME; exec sleep 1000"))
    wait_ready(core, "talker")
    until(lambda: core.kubectl("logs", "talker") == "hello from talker\n", "its log is told")
    assert core.kubectl("exec", "talker", "--", "cat", "/etc/hostname").strip() == "talker"
    assert core.kubectl("exec", "-i", "talker", "--", "cat", stdin="through stdin") == "through stdin"
    (tmp_path / "file").write_text("copied")
    core.kubectl("cp", str(tmp_path / "file"), "talker:/tmp/file")
    assert core.kubectl("exec", "talker", "--", "cat", "/tmp/file") == "copied"

    def told() -> bool:
        shown = core.kubectl("top", "pods", code=None)
        return "talker" in shown

    until(told, "kubectl top tells of the pod")
    assert re.search(r"second\s+\d+m", core.kubectl("top", "nodes"))
    summary = json.loads(core.kubectl("get", "--raw", "/api/v1/nodes/second/proxy/stats/summary"))
    assert summary["node"]["nodeName"] == "second"
    assert summary["node"]["memory"]["workingSetBytes"] > 0
    core.kubectl("delete", "pod", "talker", "--wait=true")


def test_services_names_and_pods_reach_across_machines(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    core.apply(
        pod("web-first", "first", image="nginx"),
        pod("web-second", "second", image="nginx"),
        service("web-first", "web-first"),
        service("web-second", "web-second"),
        pod("box-first", "first", "sleep", "1000"),
        pod("box-second", "second", "sleep", "1000"),
    )
    wait_ready(core, "web-first", "web-second", "box-first", "box-second")
    address = {name: core.get("pod", name)["status"]["podIP"] for name in ("web-first", "web-second")}
    for box in ("box-first", "box-second"):
        for name in ("web-first", "web-second"):
            for target in (f"http://{name}", f"http://{address[name]}"):
                fetch = ["exec", box, "--", "wget", "-t", "1", "-T", "5", "-qO-", target]
                # without probes a pod is ready before its server, and a Service has it a moment later
                until(lambda: "<html" in core.kubectl(*fetch, code=None).lower(), f"{box} reaches {target}")  # noqa: B023
    # who calls keeps its own address, on the other machine, too
    box = core.get("pod", "box-first")["status"]["podIP"]
    until(lambda: box in core.kubectl("logs", "web-second"), "the server tells who called")
    version = core.kubectl(
        "exec",
        "box-second",
        "--",
        "wget",
        "-T",
        "5",
        "--no-check-certificate",
        "-qO-",
        "https://kubernetes.default/version",
    )
    assert json.loads(version)["major"] == "1"
    proxied = core.kubectl("get", "--raw", "/api/v1/namespaces/default/pods/web-second/proxy/")
    assert "<html" in proxied.lower()


def test_a_policy_is_kept_by_both_machines(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    core.apply(
        pod("guarded", "second", image="nginx"),
        pod("friend", "first", "sleep", "1000"),
        pod("stranger", "first", "sleep", "1000"),
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "friends-only", "namespace": "default"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "guarded"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
            },
        },
    )
    wait_ready(core, "guarded", "friend", "stranger")
    address = core.get("pod", "guarded")["status"]["podIP"]
    ask = ["wget", "-t", "1", "-T", "3", "-qO-", f"http://{address}"]
    until(lambda: not core.kubectl("exec", "stranger", "--", *ask, code=None).startswith("<"), "the policy is kept")
    assert "<html" in core.kubectl("exec", "friend", "--", *ask).lower()
    core.kubectl("delete", "networkpolicy", "friends-only")


def test_sources_reach_the_joined_node_and_follow_changes(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    core.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "words", "namespace": "default"},
            "data": {"word": "one"},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys", "namespace": "default"},
            "stringData": {"key": "k1"},
        },
        pod(
            "reader",
            "second",
            "sleep",
            "1000",
            container={
                "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}],
                "volumeMounts": [{"name": "words", "mountPath": "/words"}],
            },
            volumes=[{"name": "words", "configMap": {"name": "words"}}],
        ),
        pod("waiting", "second", "sleep", "1000", container={"envFrom": [{"configMapRef": {"name": "later"}}]}),
    )
    wait_ready(core, "reader")
    assert core.kubectl("exec", "reader", "--", "sh", "-c", "cat /words/word; echo $KEY") == "onek1\n"
    core.kubectl("patch", "configmap", "words", "-p", '{"data":{"word":"two"}}')
    until(lambda: core.kubectl("exec", "reader", "--", "cat", "/words/word") == "two", "the volume follows")

    def reason() -> str:
        found = core.get("pod", "waiting")["status"].get("containerStatuses") or [{}]
        text: str = found[0].get("state", {}).get("waiting", {}).get("reason", "")
        return text

    until(lambda: reason() == "CreateContainerConfigError", "the pod says that a source is missing")
    core.kubectl("create", "configmap", "later", "--from-literal=a=b")
    wait_ready(core, "waiting")


def test_a_daemon_set_and_spread_pods_are_on_both(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    labels = {"app": "daemon"}
    container = {"name": "c", "image": "busybox", "command": ["sleep", "1000"]}
    core.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "daemon", "namespace": "default"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "spread", "namespace": "default"},
            "spec": {
                "replicas": 4,
                "selector": {"matchLabels": {"app": "spread"}},
                "template": {
                    "metadata": {"labels": {"app": "spread"}},
                    "spec": {
                        "containers": [container],
                        "terminationGracePeriodSeconds": 1,
                        "topologySpreadConstraints": [
                            {
                                "maxSkew": 1,
                                "topologyKey": "kubernetes.io/hostname",
                                "whenUnsatisfiable": "DoNotSchedule",
                                "labelSelector": {"matchLabels": {"app": "spread"}},
                            }
                        ],
                    },
                },
            },
        },
    )
    core.kubectl("rollout", "status", "daemonset/daemon", "--timeout=30s")
    core.kubectl("rollout", "status", "deployment/spread", "--timeout=30s")

    def places(app: str) -> list[str]:
        return sorted(one["spec"]["nodeName"] for one in core.get("pods", "-l", f"app={app}")["items"])

    assert places("daemon") == ["first", "second"]
    assert places("spread") == ["first", "first", "second", "second"]
    core.kubectl("delete", "deployment", "spread")


def test_the_nodes_identity_opens_only_what_is_the_nodes(pair: tuple[Machine, Machine], tmp_path: Path) -> None:
    core, other = pair
    core.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "others", "namespace": "default"}},
        pod("on-first", "first", "sleep", "1000"),
        pod("on-second", "second", "sleep", "1000"),
    )
    wait_ready(core, "on-second")
    folder = other.data / "joined"
    config = tmp_path / "config"
    assert other.kubeconfig is None
    other.kubeconfig = config
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "node",
                "contexts": [{"name": "node", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {
                            "server": f"https://{core.address}:6443",
                            "certificate-authority": str(folder / "ca.crt"),
                        },
                    }
                ],
                "users": [
                    {
                        "name": "u",
                        "user": {
                            "client-certificate": str(folder / "client.pem"),
                            "client-key": str(folder / "client.pem"),
                        },
                    }
                ],
            }
        )
    )
    try:
        assert "system:node:second" in other.kubectl("auth", "whoami")
        for words in (
            ["get", "secrets"],
            ["get", "secret", "others"],
            ["label", "node", "first", "a=b"],
            ["label", "node", "second", "node-restriction.kubernetes.io/a=b"],
            ["taint", "node", "second", "a=b:NoSchedule"],
            ["delete", "node", "first"],
            ["delete", "pod", "on-first"],
            ["create", "namespace", "mine"],
            ["get", "configmaps", "-A"],
        ):
            assert "orbidden" in other.kubectl(*words, code=1), words
        other.kubectl("annotate", "node", "second", "mine=yes")
        # nobody but the API server gets anything out of a kubelet, or takes it for a server of the platform's
        code = (
            "import ssl, http.client, sys\n"
            f"c = ssl.create_default_context(cafile={str(folder / 'ca.crt')!r})\n"
            "c.check_hostname, c.verify_mode = False, ssl.CERT_NONE if sys.argv[1] != 'checking' else ssl.CERT_REQUIRED\n"
            f"c.load_cert_chain({str(folder / 'client.pem')!r}) if sys.argv[1] == 'with' else None\n"
            f"h = http.client.HTTPSConnection({other.address!r}, 10250, context=c)\n"
            "h.request('GET', '/pods'); print(h.getresponse().status)\n"
        )
        assert other.run("python3", "-c", code, "without").strip() == "401"
        assert other.run("python3", "-c", code, "with").strip() == "403"
        assert "CERTIFICATE_VERIFY_FAILED" in other.run("python3", "-c", code, "checking", code=1)
        # its pods are where it is
        code = (
            "import ssl, http.client, json, sys\n"
            f"c = ssl.create_default_context(cafile={str(folder / 'ca.crt')!r})\n"
            f"c.load_cert_chain({str(folder / 'client.pem')!r})\n"
            f"h = http.client.HTTPSConnection({core.address!r}, 6443, context=c)\n"
            "status = {'podIP': sys.argv[1], 'podIPs': [{'ip': sys.argv[1]}]}\n"
            "h.request('PATCH', '/api/v1/namespaces/default/pods/on-second/status', json.dumps({'status': status}),\n"
            "          {'Content-Type': 'application/merge-patch+json'})\n"
            "answer = h.getresponse(); print(answer.status, json.load(answer)['message'])\n"
        )
        for place in ("127.0.0.1", "10.244.0.9", core.address):
            told = other.run("python3", "-c", code, place)
            assert told.startswith("403 "), told
            assert f'node "second" is not allowed to have a pod at "{place}"' in told
    finally:
        other.kubeconfig = None
        core.kubectl("delete", "pod", "on-first", "on-second", "--wait=false")


def test_drained_and_back(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    core.kubectl("create", "deployment", "mover", "--image=busybox", "--replicas=2", "--", "sleep", "1000")
    core.kubectl("rollout", "status", "deployment/mover", "--timeout=30s")
    core.kubectl("drain", "second", "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=60s")
    core.kubectl("rollout", "status", "deployment/mover", "--timeout=30s")
    assert {one["spec"]["nodeName"] for one in core.get("pods", "-l", "app=mover")["items"]} == {"first"}
    assert "SchedulingDisabled" in core.kubectl("get", "node", "second")
    core.kubectl("uncordon", "second")
    core.kubectl("delete", "deployment", "mover")


def test_a_claim_stays_on_the_node_of_its_first_pod(pair: tuple[Machine, Machine]) -> None:
    core, _other = pair
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    volume: dict[str, Any] = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "kept"}}]}
    mounted = {"volumeMounts": [{"name": "v", "mountPath": "/data"}]}
    first = pod("writer", "", "sh", "-c", "echo written > /data/f; sleep 1000", container=mounted, **volume)
    del first["spec"]["nodeName"]
    first["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "second"}
    core.apply(claim, first)
    wait_ready(core, "writer")
    bound = core.get("pvc", "kept")["spec"]["volumeName"]
    (term,) = core.get("pv", bound)["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["second"]
    core.kubectl("delete", "pod", "writer")
    again = pod("reader", "", "sleep", "1000", container=mounted, **volume)
    del again["spec"]["nodeName"]
    core.apply(again)
    wait_ready(core, "reader")
    assert core.get("pod", "reader")["spec"]["nodeName"] == "second"
    assert core.kubectl("exec", "reader", "--", "cat", "/data/f") == "written\n"
    core.kubectl("delete", "pod", "reader")
    core.kubectl("delete", "pvc", "kept")


def test_the_nodes_clock_follows_the_platforms(pair: tuple[Machine, Machine]) -> None:
    core, other = pair

    def ahead(machine: Machine) -> float:
        found: float = json.loads(machine.sampan("status", "--json"))["clock"]["ahead_seconds"]
        return found

    before = ahead(core)
    core.sampan("clock", "jump", "1h")
    until(lambda: abs(ahead(other) - before - 3600) < 5, "the node's clock has jumped too")
    until(lambda: is_ready(core, "second"), "the node reports after the jump")


def test_kill_9_of_either_side_loses_no_pod(pair: tuple[Machine, Machine]) -> None:
    core, other = pair
    core.apply(pod("steady", "second", "sleep", "1000"))
    wait_ready(core, "steady")

    def steady() -> tuple[str, int, str]:
        status = core.get("pod", "steady")["status"]
        container = status["containerStatuses"][0]
        return container["containerID"], container["restartCount"], status["podIP"]

    before = steady()
    other.kill()
    assert core.kubectl("exec", "steady", "--", "true", code=1)  # nobody there to ask, but it is still running
    other.sampan("node", "join", "--detach")
    until(lambda: core.kubectl("exec", "steady", "--", "echo", "back", code=None) == "back\n", "the node is back")
    assert steady() == before
    core.kill()
    time.sleep(1.0)
    assert other.sampan("status").startswith("ready")
    start_platform(core)
    until(lambda: is_ready(core, "second"), "the node reports again")
    assert steady() == before
    core.apply(pod("after", "second", "sleep", "1000"))
    wait_ready(core, "after")
    assert core.kubectl("exec", "steady", "--", "echo", "still") == "still\n"
    core.kubectl("delete", "pod", "steady", "after")


def test_a_silent_node_is_noticed_its_pods_move_and_it_comes_back(pair: tuple[Machine, Machine]) -> None:
    core, other = pair
    container = {"name": "c", "image": "busybox", "command": ["sleep", "1000"]}
    labels = {"app": "roamer"}
    core.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "roamer", "namespace": "default"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [container],
                        "affinity": {
                            "nodeAffinity": {
                                "preferredDuringSchedulingIgnoredDuringExecution": [
                                    {
                                        "weight": 100,
                                        "preference": {
                                            "matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]
                                        },
                                    }
                                ]
                            }
                        },
                    },
                },
            },
        }
    )
    core.kubectl("rollout", "status", "deployment/roamer", "--timeout=30s")
    (first,) = core.get("pods", "-l", "app=roamer")["items"]
    assert first["spec"]["nodeName"] == "second"
    other.kill()
    for _ in range(3):
        core.sampan("clock", "jump", "30s")
        time.sleep(0.3)
    until(lambda: is_ready(core, "second", "Unknown"), "the node counts as unreachable")
    taints = {(one["key"], one["effect"]) for one in node(core, "second")["spec"]["taints"]}
    assert {("node.kubernetes.io/unreachable", effect) for effect in ("NoSchedule", "NoExecute")} <= taints
    for _ in range(11):
        core.sampan("clock", "jump", "30s")

    def moved() -> bool:
        return any(
            one["spec"]["nodeName"] == "first" and one["status"]["phase"] == "Running"
            for one in core.get("pods", "-l", "app=roamer")["items"]
        )

    until(moved, "the pod is replaced on the other node")
    other.sampan("node", "join", "--detach")
    until(lambda: is_ready(core, "second"), "the node is back")
    until(lambda: not node(core, "second")["spec"].get("taints"), "its taints are gone")
    until(lambda: len(core.get("pods", "-l", "app=roamer")["items"]) == 1, "the old pod has gone")
    core.kubectl("delete", "deployment", "roamer")


def test_leaving_takes_everything_along(pair: tuple[Machine, Machine]) -> None:
    core, other = pair
    assert other.address in core.run("ip", "route", "show", "proto", "115")
    told = other.sampan("node", "leave")
    assert "second has left" in told
    until(lambda: "second" not in core.kubectl("get", "nodes", "-o", "name"), "the Node is gone")
    until(lambda: other.address not in core.run("ip", "route", "show", "proto", "115"), "the route is gone")
    assert "is not a joined node" in other.sampan("node", "leave", code=1)
    other.sampan(*join_command(core), "--name", "again", "--detach")
    until(lambda: is_ready(core, "again"), "it may join again")


def test_a_node_whose_process_is_down_can_be_left(pair: tuple[Machine, Machine]) -> None:
    core, other = pair
    until(lambda: is_ready(core, "again"), "the node is there")
    core.apply(pod("orphan", "again", "sleep", "1000"))
    wait_ready(core, "orphan")
    other.kill()
    told = other.sampan("node", "leave")
    assert "pod default/orphan has ended with again" in told
    until(lambda: "again" not in core.kubectl("get", "nodes", "-o", "name"), "the Node is gone")
    assert "NotFound" in core.kubectl("get", "pod", "orphan", code=1)
    other.sampan(*join_command(core), "--name", "third", "--detach")
    until(lambda: is_ready(core, "third"), "it may join again")
