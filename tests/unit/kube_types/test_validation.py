"""Field validation of built-in kinds: a good object passes, and each single fault gets upstream's path, reason and words."""

from typing import Any

import pytest

from sampan.kube.objects import Object, copy
from sampan.kube.types.builtin import builtin_types
from sampan.kube.types.resource import Strategy

STRATEGIES = {(kind.resource.api_version, kind.kind): kind.strategy for kind in builtin_types()}
META = {"name": "web", "namespace": "d"}
POD_SPEC = {"containers": [{"name": "c", "image": "i:1"}]}
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": POD_SPEC}
JOB_TEMPLATE = {"spec": {**POD_SPEC, "restartPolicy": "Never"}}
SELECTOR = {"matchLabels": {"app": "web"}}

GOOD = {
    "Pod": ("v1", {"spec": POD_SPEC}),
    "Service": ("v1", {"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
    "Endpoints": ("v1", {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
    "ConfigMap": ("v1", {"data": {"a.b": "c"}}),
    "Secret": ("v1", {"data": {"a": "aGk="}}),
    "ReplicationController": ("v1", {"spec": {"template": TEMPLATE}}),
    "ResourceQuota": ("v1", {"spec": {"hard": {"pods": "1", "requests.cpu": "1"}}}),
    "LimitRange": ("v1", {"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
    "Namespace": ("v1", {"metadata": {"name": "web"}}),
    "Node": ("v1", {"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
    "PersistentVolumeClaim": (
        "v1",
        {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
    ),
    "PersistentVolume": (
        "v1",
        {
            "metadata": {"name": "v"},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/a"}},
        },
    ),
    "Deployment": ("apps/v1", {"spec": {"selector": SELECTOR, "template": TEMPLATE}}),
    "ReplicaSet": ("apps/v1", {"spec": {"selector": SELECTOR, "template": TEMPLATE}}),
    "DaemonSet": ("apps/v1", {"spec": {"selector": SELECTOR, "template": TEMPLATE}}),
    "StatefulSet": ("apps/v1", {"spec": {"serviceName": "web", "selector": SELECTOR, "template": TEMPLATE}}),
    "Job": ("batch/v1", {"spec": {"template": JOB_TEMPLATE}}),
    "CronJob": ("batch/v1", {"spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": JOB_TEMPLATE}}}}),
    "HorizontalPodAutoscaler": (
        "autoscaling/v2",
        {"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "w", "apiVersion": "apps/v1"}}},
    ),
    "PodDisruptionBudget": ("policy/v1", {"spec": {"minAvailable": 1, "selector": SELECTOR}}),
    "Ingress": (
        "networking.k8s.io/v1",
        {
            "spec": {
                "rules": [
                    {
                        "host": "a.example.com",
                        "http": {
                            "paths": [
                                {
                                    "path": "/",
                                    "pathType": "Prefix",
                                    "backend": {"service": {"name": "w", "port": {"number": 80}}},
                                }
                            ]
                        },
                    }
                ]
            }
        },
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        {"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}},
    ),
    "Role": (
        "rbac.authorization.k8s.io/v1",
        {"metadata": {"name": "a:b", "namespace": "d"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    ),
    "RoleBinding": (
        "rbac.authorization.k8s.io/v1",
        {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]},
    ),
    "PriorityClass": ("scheduling.k8s.io/v1", {"metadata": {"name": "high"}, "value": 10}),
    "StorageClass": ("storage.k8s.io/v1", {"metadata": {"name": "fast"}, "provisioner": "example.com/disk"}),
    "ValidatingWebhookConfiguration": (
        "admissionregistration.k8s.io/v1",
        {
            "metadata": {"name": "w"},
            "webhooks": [
                {
                    "name": "a.b.c",
                    "clientConfig": {"url": "https://example.com"},
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                    "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}],
                }
            ],
        },
    ),
    "CertificateSigningRequest": (
        "certificates.k8s.io/v1",
        {"metadata": {"name": "c"}, "spec": {"request": "aGk=", "usages": ["client auth"], "signerName": "example.com/a"}},
    ),
    "EndpointSlice": ("discovery.k8s.io/v1", {"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}),
    "IngressClass": ("networking.k8s.io/v1", {"metadata": {"name": "n"}, "spec": {"controller": "example.com/a"}}),
    "ValidatingAdmissionPolicy": (
        "admissionregistration.k8s.io/v1",
        {
            "metadata": {"name": "p"},
            "spec": {
                "validations": [{"expression": "true"}],
                "matchConstraints": {
                    "resourceRules": [
                        {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
                    ]
                },
            },
        },
    ),
}  # fmt: skip


def good(kind: str) -> tuple[Object, Strategy]:
    """A valid, defaulted object as it stands right before validation, and its strategy."""
    api_version, fields = GOOD[kind]
    obj = {"apiVersion": api_version, "kind": kind, "metadata": META, **copy(fields)}
    obj = copy(obj)
    obj["metadata"].setdefault("uid", "u-1")
    strategy = STRATEGIES[api_version, kind]
    strategy.default(obj)
    strategy.prepare_create(obj)
    return obj, strategy


def put(obj: Object, path: str, value: Any) -> None:
    """Set (or, with ..., delete) what a path of keys and indexes names."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = obj
    for step in steps:
        place = place.setdefault(step, {}) if isinstance(step, str) else place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_good_objects_pass_and_have_no_unknown_fields(kind: str) -> None:
    obj, strategy = good(kind)
    assert strategy.prune(obj) == []
    assert strategy.validate(obj) == []
    assert strategy.validate_update(copy(obj), obj) == []


CONTAINER = "spec/containers/0"
FAULTS = [
    # metadata
    ("Pod", "metadata/name", "Web", 'metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \'-\' or \'.\', and must start and end with an alphanumeric character (e.g. \'example.com\', regex used for validation is \'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\')'),
    ("Pod", "metadata/name", ..., "metadata.name: Required value: name or generateName is required"),
    ("Pod", "metadata/labels", {"a b": "c"}, 'metadata.labels: Invalid value: "a b": name part must consist of'),
    ("Pod", "metadata/labels", {"a": "b c"}, 'metadata.labels: Invalid value: "b c": a valid label must be an empty string or consist of'),
    ("Pod", "metadata/labels", {"a": "b" * 64}, f'metadata.labels: Invalid value: "{"b" * 64}": must be no more than 63 characters'),
    ("Pod", "metadata/annotations", {"a": "b" * 262145}, "metadata.annotations: Too long: may not be more than 262144 bytes"),
    ("Pod", "metadata/finalizers", ["x"], 'metadata.finalizers: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified'),
    ("Pod", "metadata/ownerReferences", [{"apiVersion": "v1", "kind": "A", "name": "b"}], 'metadata.ownerReferences[0].uid: Invalid value: "": uid must not be empty'),
    ("Node", "metadata/namespace", "d", "metadata.namespace: Forbidden: not allowed on this type"),
    ("Namespace", "metadata/name", "a.b", 'metadata.name: Invalid value: "a.b": a lowercase RFC 1123 label'),
    ("Service", "metadata/name", "1web", 'metadata.name: Invalid value: "1web": a DNS-1035 label must consist of'),
    ("Role", "metadata/name", "a/b", 'metadata.name: Invalid value: "a/b": may not contain \'/\''),
    # pods
    ("Pod", "spec/containers", [], "spec.containers: Required value"),
    ("Pod", f"{CONTAINER}/image", "", "spec.containers[0].image: Required value"),
    ("Pod", f"{CONTAINER}/name", "C", 'spec.containers[0].name: Invalid value: "C": a lowercase RFC 1123 label'),
    ("Pod", "spec/initContainers", [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}], 'spec.containers[0].name: Duplicate value: "c"'),
    ("Pod", "spec/restartPolicy", "Sometimes", 'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"'),
    ("Pod", f"{CONTAINER}/imagePullPolicy", "Maybe", 'spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"'),
    ("Pod", f"{CONTAINER}/ports", [{"containerPort": 70000, "protocol": "TCP"}], "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"),
    ("Pod", f"{CONTAINER}/ports", [{"containerPort": 80, "name": "a_b", "protocol": "TCP"}], 'spec.containers[0].ports[0].name: Invalid value: "a_b": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)'),
    ("Pod", f"{CONTAINER}/env", [{"name": "A=B"}], 'spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name'),
    ("Pod", f"{CONTAINER}/env", [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], 'spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty'),
    ("Pod", f"{CONTAINER}/env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.colour"}}}], 'spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "spec.colour": error converting fieldPath: field label not supported: spec.colour'),
    ("Pod", f"{CONTAINER}/volumeMounts", [{"name": "v", "mountPath": "/v"}], 'spec.containers[0].volumeMounts[0].name: Not found: "v"'),
    ("Pod", f"{CONTAINER}/resources", {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, 'spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1'),
    ("Pod", f"{CONTAINER}/resources", {"limits": {"gpu": "1"}}, 'spec.containers[0].resources.limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified'),
    ("Pod", f"{CONTAINER}/livenessProbe", {"successThreshold": 2, "tcpSocket": {"port": 1}}, "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"),
    ("Pod", f"{CONTAINER}/readinessProbe", {}, "spec.containers[0].readinessProbe: Required value: must specify a handler type"),
    ("Pod", "spec/volumes", [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/a"}}], "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"),
    ("Pod", "spec/volumes", [{"name": "v", "secret": {}}], "spec.volumes[0].secret.secretName: Required value"),
    ("Pod", "spec/volumes", [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}], 'spec.volumes[1].name: Duplicate value: "v"'),
    ("Pod", "spec/tolerations", [{"operator": "Exists", "value": "x"}], 'spec.tolerations[0].operator: Invalid value: "Exists": value must be empty when `operator` is \'Exists\''),
    ("Pod", "spec/activeDeadlineSeconds", 0, "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"),
    ("Pod", "spec/dnsPolicy", "None", "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None"),
    ("Pod", "spec/affinity", {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}, "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty"),
    ("Pod", "spec/topologySpreadConstraints", [{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}], "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"),
    # services
    ("Service", "spec/ports", [], "spec.ports: Required value"),
    ("Service", "spec/type", "Magic", 'spec.type: Unsupported value: "Magic": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"'),
    ("Service", "spec/ports", [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "TCP", "name": "b"}], "spec.ports[0].name: Required value"),
    ("Service", "spec/ports/0/port", 0, "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
    ("Service", "spec/ports/0/nodePort", 30000, "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
    ("Service", "spec/clusterIP", "10.0.0", 'spec.clusterIPs[0]: Invalid value: "10.0.0": must be a valid IP address'),
    ("Service", "spec/ipFamilyPolicy", "RequireDualStack", 'spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services'),
    ("Service", "spec/ipFamilies", ["IPv4", "IPv6"], 'spec.ipFamilies[1]: Invalid value: "IPv6": not configured on this cluster'),
    ("Service", "spec/sessionAffinity", "Mood", 'spec.sessionAffinity: Unsupported value: "Mood"'),
    ("Endpoints", "subsets/0/addresses/0/ip", "x", 'subsets[0].addresses[0].ip: Invalid value: "x": must be a valid IP address'),
    # configuration
    ("ConfigMap", "data", {"a/b": ""}, 'data[a/b]: Invalid value: "a/b": a valid config key must consist of'),
    ("ConfigMap", "data", {"a": "x" * 1048577}, "Too long: may not be more than 1048576 bytes"),
    ("Secret", "type", "kubernetes.io/tls", "data[tls.crt]: Required value"),
    ("ResourceQuota", "spec/hard", {"pods": "-1"}, 'spec.hard[pods]: Invalid value: "-1": must be greater than or equal to 0'),
    ("LimitRange", "spec/limits/0/min", {"cpu": "2"}, 'spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1'),
    # workloads
    ("Deployment", "spec/selector", ..., "spec.selector: Required value"),
    ("Deployment", "spec/selector", {}, "empty selector is invalid for deployment"),
    ("Deployment", "spec/selector", {"matchLabels": {"app": "db"}}, 'spec.template.metadata.labels: Invalid value: map[string]string{"app":"web"}: `selector` does not match template `labels`'),
    ("Deployment", "spec/replicas", -1, "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
    ("Deployment", "spec/strategy", {"type": "Recreate", "rollingUpdate": {}}, "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"),
    ("Deployment", "spec/strategy/rollingUpdate", {"maxSurge": 0, "maxUnavailable": "0%"}, 'spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "0%": may not be 0 when `maxSurge` is 0'),
    ("Deployment", "spec/template/spec/restartPolicy", "Never", 'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"'),
    ("Deployment", "spec/progressDeadlineSeconds", 0, "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds"),
    ("StatefulSet", "spec/podManagementPolicy", "Odd", 'spec.podManagementPolicy: Unsupported value: "Odd": supported values: "OrderedReady", "Parallel"'),
    ("DaemonSet", "spec/updateStrategy/rollingUpdate", {"maxUnavailable": 0, "maxSurge": 0}, "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"),
    ("Job", "spec/template/spec/restartPolicy", "Always", 'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'),
    ("Job", "spec/backoffLimit", -1, "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"),
    ("CronJob", "spec/schedule", "", "spec.schedule: Required value"),
    ("CronJob", "spec/schedule", "* * *", 'spec.schedule: Invalid value: "* * *": expected exactly 5 fields, found 3: [* * *]'),
    ("CronJob", "spec/schedule", "99 * * * *", 'spec.schedule: Invalid value: "99 * * * *"'),
    ("CronJob", "spec/timeZone", "Mars/Base", 'spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base'),
    ("CronJob", "spec/concurrencyPolicy", "Never", 'spec.concurrencyPolicy: Unsupported value: "Never": supported values: "Allow", "Forbid", "Replace"'),
    ("HorizontalPodAutoscaler", "spec/maxReplicas", 0, "spec.maxReplicas: Invalid value: 0: must be greater than 0"),
    ("HorizontalPodAutoscaler", "spec/minReplicas", 5, "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"),
    ("PodDisruptionBudget", "spec/maxUnavailable", 1, "minAvailable and maxUnavailable cannot be both set"),
    ("PodDisruptionBudget", "spec/minAvailable", "half", 'spec.minAvailable: Invalid value: "half": a valid percent string must be'),
    # storage
    ("PersistentVolumeClaim", "spec/accessModes", [], "spec.accessModes: Required value: at least 1 access mode is required"),
    ("PersistentVolumeClaim", "spec/resources", {}, "spec.resources[storage]: Required value"),
    ("PersistentVolume", "spec/hostPath", ..., "spec: Required value: must specify a volume type"),
    ("PersistentVolume", "spec/capacity", {}, "spec.capacity: Required value"),
    ("StorageClass", "provisioner", "", "provisioner: Required value"),
    # networking
    ("Ingress", "spec/rules", [], "either `defaultBackend` or `rules` must be specified"),
    ("Ingress", "spec/rules/0/host", "10.0.0.1", 'spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address'),
    ("Ingress", "spec/rules/0/http/paths/0/pathType", ..., "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"),
    ("Ingress", "spec/rules/0/http/paths/0/path", "a", 'spec.rules[0].http.paths[0].path: Invalid value: "a": must be an absolute path'),
    ("Ingress", "spec/rules/0/http/paths/0/backend", {}, "spec.rules[0].http.paths[0].backend: Required value: resource or service backend is required"),
    ("NetworkPolicy", "spec/ingress/0/from/0/ipBlock/cidr", "10.0.0.0", 'spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0.0": must be a valid CIDR value'),
    ("NetworkPolicy", "spec/ingress/0/from/0/ipBlock/except", ["11.0.0.0/24"], 'spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/24": must be a strict subset of `cidr`'),
    ("EndpointSlice", "endpoints/0/addresses", ["x"], 'endpoints[0].addresses[0]: Invalid value: "x": must be a valid IP address'),
    ("EndpointSlice", "endpoints/0/addresses", ["::1"], 'endpoints[0].addresses[0]: Invalid value: "::1": must be a valid IPv4 address'),
    ("IngressClass", "spec/controller", "a", 'spec.controller: Invalid value: "a": must be a domain-prefixed path (such as "acme.io/foo")'),
    # access
    ("Role", "rules/0/verbs", [], "rules[0].verbs: Required value: verbs must contain at least one value"),
    ("Role", "rules/0/nonResourceURLs", ["/a"], "namespaced rules cannot apply to non-resource URLs"),
    ("RoleBinding", "roleRef/kind", "Thing", 'roleRef.kind: Unsupported value: "Thing": supported values: "ClusterRole", "Role"'),
    ("RoleBinding", "subjects/0", {"kind": "ServiceAccount", "name": "s"}, "subjects[0].namespace: Required value"),
    ("ValidatingWebhookConfiguration", "webhooks/0/name", "a.b", 'webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots'),
    ("ValidatingWebhookConfiguration", "webhooks/0/sideEffects", ..., "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"),
    ("ValidatingWebhookConfiguration", "webhooks/0/timeoutSeconds", 60, "webhooks[0].timeoutSeconds: Invalid value: 60: the timeout value must be between 1 and 30 seconds"),
    ("ValidatingWebhookConfiguration", "webhooks/0/clientConfig", {}, "webhooks[0].clientConfig: Required value: exactly one of url or service is required"),
    ("ValidatingAdmissionPolicy", "spec/matchConstraints", ..., "spec.matchConstraints: Required value"),
    ("PriorityClass", "value", 2000000000, "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"),
    ("CertificateSigningRequest", "spec/usages", ["magic"], 'spec.usages[0]: Unsupported value: "magic"'),
    ("Node", "spec/taints/0/effect", "No", 'spec.taints[0].effect: Unsupported value: "No": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path", "value", "text"), FAULTS, ids=[f"{kind}:{path}:{i}" for i, (kind, path, _, _) in enumerate(FAULTS)]
)
def test_each_fault_is_named(kind: str, path: str, value: Any, text: str) -> None:
    obj, strategy = good(kind)
    put(obj, path, value)
    errors = [f"{error.field}: {error.message}" for error in strategy.validate(obj)]
    assert any(text in error for error in errors), errors


CHANGES = [
    ("Pod", f"{CONTAINER}/image", "i:2", None),
    ("Pod", "spec/tolerations", [{"key": "a", "operator": "Exists"}], None),
    ("Pod", "spec/activeDeadlineSeconds", 10, None),
    ("Pod", f"{CONTAINER}/command", ["a"], "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
    ("Pod", "spec/containers", [], "spec.containers: Forbidden: pod updates may not add or remove containers"),
    ("Pod", "metadata/name", "other", 'metadata.name: Invalid value: "other": field is immutable'),
    ("Pod", "metadata/uid", "other", 'metadata.uid: Invalid value: "other": field is immutable'),
    ("Deployment", "spec/replicas", 5, None),
    ("Deployment", "spec/selector", {"matchLabels": {"app": "x"}}, 'spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string{"app":"x"}, MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable'),
    ("StatefulSet", "spec/replicas", 5, None),
    ("StatefulSet", "spec/serviceName", "x", "spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"),
    ("Job", "spec/parallelism", 2, None),
    ("Job", "spec/completions", 2, "spec.completions: Invalid value: 2: field is immutable"),
    ("Job", "spec/template/spec/containers/0/image", "x", "field is immutable"),
    ("Service", "spec/ports/0/port", 81, None),
    ("Service", "spec/ipFamilyPolicy", "PreferDualStack", None),
    ("Secret", "type", "other", 'type: Invalid value: "other": field is immutable'),
    ("PersistentVolumeClaim", "spec/resources/requests/storage", "2Gi", None),
    ("PersistentVolumeClaim", "spec/resources/requests/storage", "1Mi", "field can not be less than status.capacity"),
    ("PersistentVolumeClaim", "spec/volumeName", "v", None),
    ("PersistentVolumeClaim", "spec/volumeMode", "Block", "spec is immutable after creation except"),
    ("PersistentVolume", "spec/hostPath/path", "/b", "spec.persistentvolumesource is immutable after creation"),
    ("RoleBinding", "roleRef/name", "x", "cannot change roleRef"),
    ("StorageClass", "provisioner", "x", "updates to provisioner are forbidden."),
    ("IngressClass", "spec/controller", "a.b/c", "field is immutable"),
    ("PriorityClass", "value", 11, "may not be changed in an update."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "text"), CHANGES)
def test_what_may_change(kind: str, path: str, value: Any, text: str | None) -> None:
    old, strategy = good(kind)
    new = copy(old)
    put(new, path, value)
    errors = [f"{error.field}: {error.message}" for error in strategy.validate_update(new, old)]
    if text is None:
        assert errors == []
    else:
        assert any(text in error for error in errors), errors


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_immutable_data_stays(kind: str) -> None:
    old, strategy = good(kind)
    old["immutable"] = True
    new = copy(old)
    new["data"] = {"x": ""}
    assert [error.message for error in strategy.validate_update(new, old)] == [
        "Forbidden: field is immutable when `immutable` is set"
    ]


def test_a_suspended_job_that_never_started_may_change_its_template() -> None:
    old, strategy = good("Job")
    old["spec"]["suspend"] = True
    new = copy(old)
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "other"
    assert strategy.validate_update(new, old) == []


def test_a_cluster_address_stays() -> None:
    old, strategy = good("Service")
    old["spec"]["clusterIP"] = "10.0.0.1"
    new = copy(old)
    new["spec"]["clusterIP"] = "10.0.0.2"
    assert [error.field for error in strategy.validate_update(new, old)] == ["spec.clusterIPs[0]"]


def test_no_finalizers_are_added_to_what_is_going() -> None:
    old, strategy = good("ConfigMap")
    old["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    new = copy(old)
    new["metadata"]["finalizers"] = ["a.b/c"]
    assert strategy.validate_update(new, old)[0].reason == "FieldValueForbidden"


def test_cron_job_names_leave_room_for_the_time() -> None:
    obj, strategy = good("CronJob")
    obj["metadata"]["name"] = "x" * 53
    assert "must be no more than 52 characters" in strategy.validate(obj)[0].message


@pytest.mark.parametrize("schedule", ["*/5 * * * *", "0 0 1 JAN MON", "@daily", "@every 1h", "0 12 ? * 1-5"])
def test_schedules_that_upstream_takes(schedule: str) -> None:
    obj, strategy = good("CronJob")
    obj["spec"]["schedule"] = schedule
    obj["spec"]["timeZone"] = "Europe/Berlin"
    assert strategy.validate(obj) == []


def test_events_stand_in_the_namespace_of_what_they_are_about() -> None:
    event = {
        "metadata": {"name": "e", "namespace": "d"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "x"},
    }
    strategy = STRATEGIES["v1", "Event"]
    assert [error.field for error in strategy.validate(event)] == ["involvedObject.namespace"]
    event["involvedObject"]["namespace"] = "d"
    assert strategy.validate(event) == []
    node = {"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Node", "name": "n"}}
    assert strategy.validate(node) == []


def test_new_style_events_are_complete() -> None:
    event = {
        "metadata": {"name": "e", "namespace": "default"},
        "type": "Normal",
        "eventTime": "2024-01-01T00:00:00.000000Z",
    }
    errors = STRATEGIES["events.k8s.io/v1", "Event"].validate(event)
    assert {error.field for error in errors} == {"reportingController", "reportingInstance", "action", "reason"}


def test_what_is_allowed_but_odd_is_warned_about() -> None:
    container = {
        "name": "c",
        "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
        "ports": [{"containerPort": 80}, {"containerPort": 80}],
    }
    spec = {"containers": [container], "nodeSelector": {"beta.kubernetes.io/os": "linux"}}
    assert STRATEGIES["v1", "Pod"].warnings({"metadata": {}, "spec": spec}) == [
        'spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead',
        'spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply',
        "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
    ]
    deployment = {"metadata": {}, "spec": {"template": {"spec": spec}}}
    assert len(STRATEGIES["apps/v1", "Deployment"].warnings(deployment)) == 3
    annotated = {"metadata": {"annotations": {"kubernetes.io/ingress.class": "n"}}}
    assert len(STRATEGIES["networking.k8s.io/v1", "Ingress"].warnings(annotated)) == 1
