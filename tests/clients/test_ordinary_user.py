"""What an ordinary user gets, without root: published manifests with servers on port 80, on every tier the machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.hosts import KUBECTL
from tests.clients.ordinary_user import may, ordinary, own

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")

_SCRIPT = r"""
set -u
sampan() { "$PYTHON" -c 'from sampan.cli import main; main()' "$@"; }
told() { echo "== $1"; }
trap 'sampan down --data-dir "$HOME/p" > /dev/null 2>&1' EXIT
sampan up --detach --ports auto --data-dir "$HOME/p" --only node,network,workloads --set node.tier=$TIER \
  --set kubernetes.service_range=$SERVICES > up.log 2>&1 || { cat up.log; exit 1; }
export KUBECONFIG="$HOME/p/kubeconfig"
told tier; "$KUBECTL" get node -o jsonpath='{.items[0].status.conditions[?(@.type=="PodIsolation")].reason}'; echo
"$KUBECTL" create deployment apache --image=httpd
"$KUBECTL" apply -f - <<'MANIFEST'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}}
        livenessProbe: {tcpSocket: {port: 80}}
MANIFEST
"$KUBECTL" expose deployment web --port=80
"$KUBECTL" rollout status deployment/web --timeout=40s
"$KUBECTL" rollout status deployment/apache --timeout=40s
told pods; "$KUBECTL" get pods -l app=web -o jsonpath='{range .items[*]}{.status.containerStatuses[0].ready}{.status.containerStatuses[0].restartCount} {end}'; echo
ADDRESS=$("$KUBECTL" get service web -o jsonpath='{.spec.clusterIP}')
POD=$("$KUBECTL" get pods -l app=apache -o jsonpath='{.items[0].status.podIP}')
"$KUBECTL" run ask --image=busybox --restart=Never -- sh -c "
  echo name; wget -qO- http://web | grep title
  echo address; wget -qO- http://$ADDRESS | grep title
  echo pod $POD; wget -O- http://$POD
  echo localhost; python3 -m http.server 81 2> /dev/null & for i in \$(seq 100); do wget -qO- http://localhost:81 > /dev/null 2>&1 && { echo served; break; }; sleep 0.2; done; kill \$!
  echo end"
"$KUBECTL" wait --for=jsonpath='{.status.phase}'=Succeeded pod/ask --timeout=40s
told ask; "$KUBECTL" logs ask
told proxy; "$KUBECTL" get --raw /api/v1/namespaces/default/services/web:80/proxy/ | grep title
"$KUBECTL" port-forward deployment/web :80 > forward.log 2>&1 &
for i in $(seq 100); do grep -q Forwarding forward.log && break; sleep 0.1; done
told forward; "$PYTHON" -c 'import re, urllib.request; print(urllib.request.urlopen(re.search(r"127.0.0.1:\d+", open("forward.log").read())[0].join(["http://", "/"])).read().decode())' | grep title
kill %1
told exec; "$KUBECTL" exec deploy/web -- sh -c 'wget -qO- http://localhost | grep title'
told refused; "$KUBECTL" get events --field-selector reason=FailedToListen -o name
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # not pytest's own, which only the user who runs the tests may enter
    made = Path(tempfile.mkdtemp(prefix="sampan-ordinary-"))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(("tier", "services"), [("T2", "10.96.0.0/12"), ("T3", "10.80.0.0/16")])
def test_servers_on_port_80_run_and_are_reached_without_root(tier: str, services: str, folder: Path) -> None:
    if not may(sys.executable, "-c", "import sampan.cli"):
        pytest.skip("the user without rights may not read the interpreter or Sampan")
    if os.geteuid() == 0 and shutil.which("ip") is None:
        pytest.skip("needs ip: the machine's loopback is to be the test's own")
    own(folder)
    script = folder / "try.sh"
    script.write_text(_SCRIPT)
    line = ordinary("bash", str(script))
    if os.geteuid() == 0:
        # its loopback addresses are its own: other tests may have a platform without addresses beside it
        line = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *line]
    assert KUBECTL is not None
    source = str(Path(__file__).parents[2] / "src")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHON": sys.executable,
        "PYTHONPATH": source,
        "KUBECTL": KUBECTL,
        "TIER": tier,
        "SERVICES": services,
    }
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False)
    told = {head: rest for head, _, rest in (part.partition("\n") for part in done.stdout.split("== ")[1:])}
    assert {"tier", "pods", "ask", "proxy", "forward", "exec", "refused"} <= told.keys(), done.stdout + done.stderr
    if told["tier"].split()[0] != tier:
        pytest.skip(f"the machine gives {told['tier'].strip()} only")
    title = "<title>Welcome to nginx!</title>"
    assert told["pods"].split("\n")[0].split() == ["true0", "true0"], done.stdout
    answers = told["ask"]
    assert answers.split("end")[0].count(title) == 2, done.stdout + done.stderr
    assert "It works!" in answers
    assert "served" in answers
    for way in ("proxy", "forward", "exec"):
        assert title in told[way], done.stdout + done.stderr
    assert not told["refused"].strip()
