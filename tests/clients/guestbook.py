"""Upstream's guestbook: a primary and replicas that remember, and frontends that show it."""

from __future__ import annotations

TIER = """
apiVersion: v1
kind: Service
metadata: {{name: agnhost-{role}, labels: {{app: agnhost, role: {role}, tier: backend}}}}
spec:
  ports: [{{port: 6379, targetPort: http-server}}]
  selector: {{app: agnhost, role: {role}, tier: backend}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: agnhost-{role}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: agnhost, role: {role}, tier: backend}}}}
  template:
    metadata: {{labels: {{app: agnhost, role: {role}, tier: backend}}}}
    spec:
      containers:
      - name: {role}
        image: registry.k8s.io/e2e-test-images/agnhost:2.53
        args: [guestbook, {arguments}--http-port, "6379"]
        resources: {{requests: {{cpu: 10m, memory: 10Mi}}}}
        ports: [{{name: http-server, containerPort: 6379}}]
---
"""
FRONTEND = """
apiVersion: v1
kind: Service
metadata: {name: frontend, labels: {app: guestbook, tier: frontend}}
spec:
  ports: [{port: 80}]
  selector: {app: guestbook, tier: frontend}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend}
spec:
  replicas: 3
  selector: {matchLabels: {app: guestbook, tier: frontend}}
  template:
    metadata: {labels: {app: guestbook, tier: frontend}}
    spec:
      containers:
      - name: guestbook-frontend
        image: registry.k8s.io/e2e-test-images/agnhost:2.53
        args: [guestbook, --backend-port, "6379"]
        resources: {requests: {cpu: 10m, memory: 10Mi}}
        ports: [{containerPort: 80}]
"""
GUESTBOOK = (
    TIER.format(role="primary", replicas=1, arguments="")
    + TIER.format(role="replica", replicas=2, arguments="--slaveof, agnhost-primary, ")
    + FRONTEND
)
