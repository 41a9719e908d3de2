"""The built-in admission plugins."""

from __future__ import annotations

from typing import Any

import pytest

from sampan.kernel.clock import Clock, Timeline
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.interface import MASTER, AdmissionRequest, Operation, User
from sampan.kube.access.plugins import first_plugins, last_plugins, node_restriction
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.access.plugins.plugin import PluginContext
from sampan.kube.access.rbac import AuthorizerChain, RbacAuthorizer
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.resources import (
    CERTIFICATE_SIGNING_REQUESTS,
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    DEPLOYMENTS,
    INGRESS_CLASSES,
    INGRESSES,
    LIMIT_RANGES,
    NAMESPACES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    PRIORITY_CLASSES,
    RESOURCE_QUOTAS,
    ROLES,
    RUNTIME_CLASSES,
    SERVICE_ACCOUNTS,
    SERVICES,
    STORAGE_CLASSES,
)
from sampan.kube.status import ApiError
from sampan.kube.types.resource import ResourceType, Strategy
from tests.unit.kube_access.worlds import Cache, binding, named, rule

STANDING_STILL = Timeline(origin=0.0, base=0.0, wall_offset=1_800_000_000.0, rate=0.0)
KINDS = {"pods": "Pod", "namespaces": "Namespace", "deployments": "Deployment"}


class World:
    """A chain over a hand-made cache with one namespace, ``ns``."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.put(NAMESPACES, named("ns"))
        self.cache.put(SERVICE_ACCOUNTS, named("default", "ns"))
        rbac = RbacAuthorizer(self.cache)
        context = PluginContext(self.cache, Clock(STANDING_STILL), AuthorizerChain([rbac]))
        self.chain = AdmissionChain(first_plugins(context), last_plugins(context))

    async def write(
        self, resource: Resource, obj: Object | None, old: Object | None = None, **fields: Any
    ) -> AdmissionRequest:
        """Pass a write through both phases; ``operation`` follows from what is given."""
        operation: Operation = "DELETE" if obj is None else "UPDATE" if old is not None else "CREATE"
        metadata = (obj or old or {})["metadata"]
        kind = ResourceType(resource, KINDS.get(resource.plural, "Kind"), resource.plural, True, Strategy())
        request = AdmissionRequest(
            operation,
            kind,
            fields.pop("user", MASTER),
            metadata.get("namespace", ""),
            metadata["name"],
            copy(obj),
            old,
            **fields,
        )
        await self.chain.admit(request)
        await self.chain.validate(request)
        return request

    async def made(self, resource: Resource, obj: Object, **fields: Any) -> Object:
        request = await self.write(resource, obj, **fields)
        assert request.object is not None
        return request.object


@pytest.fixture
def world() -> World:
    return World()


def pod(name: str = "p", namespace: str = "ns", **spec: Any) -> Object:
    return named(name, namespace, spec={"containers": [{"name": "c", "image": "i"}], **spec})


def container(name: str = "c", **fields: Any) -> Object:
    return {"name": name, "image": "i", **fields}


def sized(cpu: str, memory: str = "", kind: str = "requests") -> Object:
    amounts = {"cpu": cpu, **({"memory": memory} if memory else {})}
    return container(resources={kind: amounts})


async def test_nothing_is_created_in_a_namespace_that_is_not_or_is_going(world: World) -> None:
    with pytest.raises(ApiError, match='namespaces "gone" not found') as missing:
        await world.write(PODS, pod(namespace="gone"))
    assert missing.value.code == 404
    going = named("going", status={"phase": "Terminating"})
    world.cache.put(NAMESPACES, going)
    with pytest.raises(ApiError, match="because it is being terminated") as refused:
        await world.write(PODS, pod(namespace="going"))
    assert refused.value.code == 403
    assert refused.value.details["causes"][0]["reason"] == "NamespaceTerminating"


async def test_the_platforms_own_namespaces_stay(world: World) -> None:
    with pytest.raises(ApiError, match='namespaces "default" is forbidden: this namespace may not be deleted'):
        await world.write(NAMESPACES, None, named("default"))
    await world.write(NAMESPACES, None, named("ns"))


async def test_a_pod_gets_its_account_token_tolerations_and_priority(world: World) -> None:
    spec = (await world.made(PODS, pod(initContainers=[container("init")])))["spec"]
    assert spec["serviceAccountName"] == spec["serviceAccount"] == "default"
    assert (spec["priority"], spec["preemptionPolicy"]) == (0, "PreemptLowerPriority")
    assert [(each["key"], each["tolerationSeconds"]) for each in spec["tolerations"]] == [
        ("node.kubernetes.io/not-ready", 300),
        ("node.kubernetes.io/unreachable", 300),
    ]
    volume = spec["volumes"][0]
    assert volume["name"].startswith("kube-api-access-")
    assert [next(iter(source)) for source in volume["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]
    for each in (*spec["containers"], *spec["initContainers"]):
        assert each["volumeMounts"][0]["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
        assert each["volumeMounts"][0]["readOnly"] is True


async def test_a_pod_may_do_without_a_token_and_needs_an_existing_account(world: World) -> None:
    assert "volumes" not in (await world.made(PODS, pod(automountServiceAccountToken=False)))["spec"]
    world.cache.put(
        SERVICE_ACCOUNTS,
        {**named("quiet", "ns"), "automountServiceAccountToken": False, "imagePullSecrets": [{"name": "s"}]},
    )
    spec = (await world.made(PODS, pod(serviceAccountName="quiet")))["spec"]
    assert "volumes" not in spec
    assert spec["imagePullSecrets"] == [{"name": "s"}]
    text = 'pods "p" is forbidden: error looking up service account ns/robot: serviceaccount "robot" not found'
    with pytest.raises(ApiError, match=text):
        await world.write(PODS, pod(serviceAccountName="robot"))


async def test_priority_classes_become_numbers(world: World) -> None:
    world.cache.put(PRIORITY_CLASSES, {**named("high"), "value": 1000, "preemptionPolicy": "Never"})
    spec = (await world.made(PODS, pod(priorityClassName="high")))["spec"]
    assert (spec["priority"], spec["preemptionPolicy"]) == (1000, "Never")
    with pytest.raises(ApiError, match="no PriorityClass with name low was found"):
        await world.write(PODS, pod(priorityClassName="low"))
    with pytest.raises(ApiError, match=r"the integer value of priority \(7\) must not be provided in pod spec"):
        await world.write(PODS, pod(priority=7))
    world.cache.put(PRIORITY_CLASSES, {**named("usual"), "value": 5, "globalDefault": True})
    spec = (await world.made(PODS, pod()))["spec"]
    assert (spec["priority"], spec["priorityClassName"]) == (5, "usual")
    with pytest.raises(ApiError, match="Only one default can exist"):
        await world.write(PRIORITY_CLASSES, {**named("other"), "value": 6, "globalDefault": True})


async def test_the_default_classes_are_filled_in(world: World) -> None:
    def marked(name: str, annotation: str, stamp: str) -> Object:
        made = named(name)
        made["metadata"] |= {"annotations": {annotation: "true"}, "creationTimestamp": stamp}
        return made

    storage = "storageclass.kubernetes.io/is-default-class"
    world.cache.put(
        STORAGE_CLASSES, marked("old", storage, "2026-01-01T00:00:00Z"), marked("new", storage, "2026-02-01T00:00:00Z")
    )
    ingress = "ingressclass.kubernetes.io/is-default-class"
    world.cache.put(INGRESS_CLASSES, marked("envoy", ingress, "2026-01-01T00:00:00Z"))
    claim = await world.made(PERSISTENT_VOLUME_CLAIMS, named("c", "ns", spec={}))
    assert claim["spec"]["storageClassName"] == "new"
    assert claim["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    claim = await world.made(PERSISTENT_VOLUME_CLAIMS, named("c", "ns", spec={"storageClassName": ""}))
    assert claim["spec"]["storageClassName"] == ""
    assert (await world.made(INGRESSES, named("i", "ns", spec={})))["spec"]["ingressClassName"] == "envoy"


async def test_a_runtime_class_adds_its_overhead_and_place(world: World) -> None:
    runtime = {"overhead": {"podFixed": {"cpu": "100m"}}, "scheduling": {"nodeSelector": {"k": "v"}}}
    world.cache.put(RUNTIME_CLASSES, {**named("vm"), **runtime})
    spec = (await world.made(PODS, pod(runtimeClassName="vm")))["spec"]
    assert (spec["overhead"], spec["nodeSelector"]) == ({"cpu": "100m"}, {"k": "v"})
    with pytest.raises(ApiError, match='RuntimeClass "none" not found'):
        await world.write(PODS, pod(runtimeClassName="none"))


async def test_limit_ranges_default_and_bound_containers(world: World) -> None:
    item = {
        "type": "Container",
        "default": {"cpu": "500m"},
        "defaultRequest": {"cpu": "100m"},
        "max": {"cpu": "1"},
        "min": {"cpu": "50m"},
    }
    world.cache.put(LIMIT_RANGES, named("l", "ns", spec={"limits": [item]}))
    made = await world.made(PODS, pod())
    assert made["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}
    assert made["metadata"]["annotations"]["kubernetes.io/limit-ranger"] == (
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    )
    big = container(resources={"limits": {"cpu": "2"}, "requests": {"cpu": "10m"}})
    with pytest.raises(ApiError) as refused:
        await world.write(PODS, pod(containers=[big]))
    assert refused.value.message == (
        'pods "p" is forbidden: [minimum cpu usage per Container is 50m, but request is 10m, '
        "maximum cpu usage per Container is 1, but limit is 2]"
    )


async def test_limit_ranges_bound_claims_and_ratios(world: World) -> None:
    items = [
        {"type": "PersistentVolumeClaim", "max": {"storage": "2Gi"}, "min": {"storage": "1Gi"}},
        {"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}},
    ]
    world.cache.put(LIMIT_RANGES, named("l", "ns", spec={"limits": items}))
    claim = named("c", "ns", spec={"resources": {"requests": {"storage": "3Gi"}}})
    with pytest.raises(ApiError, match="maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"):
        await world.write(PERSISTENT_VOLUME_CLAIMS, claim)
    wide = container(resources={"limits": {"cpu": "4"}, "requests": {"cpu": "1"}})
    with pytest.raises(ApiError, match="cpu max limit to request ratio per Pod is 2, but provided ratio is 4"):
        await world.write(PODS, pod(containers=[wide]))


def quota(name: str = "q", namespace: str = "ns", scopes: list[str] | None = None, **hard: str) -> Object:
    spec: Object = {"hard": {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}}
    if scopes:
        spec["scopes"] = scopes
    return named(name, namespace, spec=spec)


async def test_a_quota_counts_what_lives_and_what_is_on_its_way(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(pods="2"))
    first = await world.write(PODS, pod("a"))
    second = await world.write(PODS, pod("b"))
    with pytest.raises(ApiError) as refused:
        await world.write(PODS, pod("c"))
    assert refused.value.message == (
        'pods "c" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2'
    )
    # the object is visible a moment before its writer is told: it counts once
    world.cache.put(PODS, pod("a"))
    with pytest.raises(ApiError, match="used: pods=2"):
        await world.write(PODS, pod("c"))
    for finished in first.finished:
        finished()
    with pytest.raises(ApiError, match="used: pods=2"):
        await world.write(PODS, pod("c"))
    for finished in second.finished:
        finished()
    await world.write(PODS, pod("c"), dry_run=True)
    await world.write(PODS, pod("c"))


async def test_finished_pods_are_free_but_still_objects(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(pods="1", count__pods="2"))
    world.cache.put(PODS, {**pod("done"), "status": {"phase": "Succeeded"}})
    await world.write(PODS, pod("a"))
    with pytest.raises(
        ApiError, match="requested: count/pods=1,pods=1, used: count/pods=2,pods=1, limited: count/pods=2,pods=1"
    ):
        await world.write(PODS, pod("b"))


async def test_a_quota_on_compute_wants_every_container_to_say(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(limits_cpu="2", requests_memory="1Gi"))
    with pytest.raises(ApiError, match=r"failed quota: q: must specify limits.cpu for: c; requests.memory for: c"):
        await world.write(PODS, pod())
    fits = container(resources={"limits": {"cpu": "1500m"}, "requests": {"memory": "512Mi", "cpu": "1"}})
    await world.write(PODS, pod("a", containers=[fits]))
    with pytest.raises(ApiError) as refused:
        await world.write(PODS, pod("b", containers=[fits]))
    assert refused.value.message.endswith(
        "exceeded quota: q, requested: limits.cpu=1500m, used: limits.cpu=1500m, limited: limits.cpu=2"
    )


async def test_quota_scopes_choose_pods(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(scopes=["BestEffort"], pods="0"))
    await world.write(PODS, pod(containers=[sized("1")]))
    await world.write(SERVICES, named("s", "ns", spec={}))
    with pytest.raises(ApiError, match="exceeded quota"):
        await world.write(PODS, pod("b"))


async def test_a_quota_counts_node_ports_also_when_a_service_changes(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(services_nodeports="1"))
    plain = named("s", "ns", spec={"type": "ClusterIP", "ports": [{}, {}]})
    await world.write(SERVICES, plain)
    with pytest.raises(ApiError, match=r"requested: services.nodeports=2"):
        await world.write(SERVICES, named("s", "ns", spec={"type": "NodePort", "ports": [{}, {}]}), plain)


async def test_any_kind_can_be_counted(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(count__deployments_apps="0"))
    with pytest.raises(ApiError, match=r"requested: count/deployments.apps=1"):
        await world.write(DEPLOYMENTS, named("d", "ns", spec={}))


def secured(**labels: str) -> Object:
    made = named("ns")
    made["metadata"]["labels"] = {f"pod-security.kubernetes.io/{key}": value for key, value in labels.items()}
    return made


async def test_a_privileged_pod_is_refused_where_baseline_is_enforced(world: World) -> None:
    world.cache.put(NAMESPACES, secured(enforce="baseline"))
    with pytest.raises(ApiError) as refused:
        await world.write(PODS, pod(hostNetwork=True, containers=[container(securityContext={"privileged": True})]))
    assert refused.value.message == (
        'pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true), '
        'privileged (container "c" must not set securityContext.privileged=true)'
    )
    await world.write(PODS, pod())


async def test_restricted_says_everything_that_a_plain_pod_lacks(world: World) -> None:
    world.cache.put(NAMESPACES, secured(warn="restricted", audit="restricted"))
    template = {"spec": {"template": {"spec": {"containers": [container("nginx")]}}}}
    request = await world.write(DEPLOYMENTS, {**named("d", "ns"), **template})
    text = (
        'would violate PodSecurity "restricted:latest": '
        'allowPrivilegeEscalation != false (container "nginx" must set securityContext.allowPrivilegeEscalation=false), '
        'unrestricted capabilities (container "nginx" must set securityContext.capabilities.drop=["ALL"]), '
        'runAsNonRoot != true (pod or container "nginx" must set securityContext.runAsNonRoot=true), '
        'seccompProfile (pod or container "nginx" must set securityContext.seccompProfile.type to "RuntimeDefault" or '
        '"Localhost")'
    )
    assert request.warnings == [text]
    assert request.audit["pod-security.kubernetes.io/audit-violations"] == text
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    world.cache.put(NAMESPACES, secured(enforce="restricted"))
    await world.write(PODS, pod(containers=[container(securityContext=context)]))


async def test_raising_a_namespaces_level_warns_of_its_pods(world: World) -> None:
    world.cache.put(PODS, pod("a", hostPID=True), pod("b", hostPID=True))
    request = await world.write(NAMESPACES, secured(enforce="baseline"), named("ns"))
    assert request.warnings == [
        'existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest"',
        "a (and 1 other pod): host namespaces",
    ]
    with pytest.raises(ApiError, match="must be one of privileged, baseline, restricted"):
        await world.write(NAMESPACES, secured(enforce="strict"), named("ns"))


async def test_nobody_grants_more_than_they_hold(world: World) -> None:
    world.cache.put(
        CLUSTER_ROLES,
        named(
            "mine", rules=[rule([""], ["pods"], ["get"]), rule(["rbac.authorization.k8s.io"], ["roles"], ["create"])]
        ),
    )
    world.cache.put(CLUSTER_ROLES, named("big", rules=[rule(["*"], ["*"], ["*"])]))
    world.cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "mine"), ("User", "ann")))
    ann = User("ann", ("dev",))
    await world.write(ROLES, named("r", "ns", rules=[rule([""], ["pods"], ["get"], ["x"])]), user=ann)
    with pytest.raises(ApiError) as refused:
        await world.write(ROLES, named("r", "ns", rules=[rule([""], ["pods"], ["get", "delete"])]), user=ann)
    assert refused.value.message == (
        'roles.rbac.authorization.k8s.io "r" is forbidden: user "ann" (groups=["dev"]) is attempting to grant RBAC '
        'permissions not currently held:\n{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}'
    )
    with pytest.raises(ApiError, match="not currently held"):
        await world.write(CLUSTER_ROLE_BINDINGS, binding("x", ("ClusterRole", "big"), ("User", "ann")), user=ann)
    await world.write(CLUSTER_ROLE_BINDINGS, binding("x", ("ClusterRole", "big"), ("User", "ann")))


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"volumes": [{"name": "v", "secret": {"secretName": "admin"}}]}, "secrets"),
        ({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "admin"}}]}}]}, "secrets"),
        ({"volumes": [{"name": "v", "csi": {"nodePublishSecretRef": {"name": "admin"}}}]}, "secrets"),
        ({"imagePullSecrets": [{"name": "admin"}]}, "secrets"),
        ({"containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "admin"}}]}]}, "secrets"),
        ({"volumes": [{"name": "v", "configMap": {"name": "all"}}]}, "configmaps"),
        ({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}, "persistentvolumeclaims"),
        ({"serviceAccountName": "admin"}, "a service account"),
    ],
)
async def test_a_nodes_own_pods_refer_to_nothing_it_could_then_read(
    world: World, spec: dict[str, Any], what: str
) -> None:
    node = User("system:node:n1", ("system:nodes",))
    mirror = pod(nodeName="n1")
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    await world.write(PODS, mirror, user=node)
    with pytest.raises(ApiError, match=f"can not create pods that reference {what}"):
        await world.write(PODS, {**mirror, "spec": {**mirror["spec"], **spec}}, user=node)


async def test_a_node_writes_only_what_is_its_own(world: World) -> None:
    node = User("system:node:n1", ("system:nodes",))
    made = await world.made(NODES, named("n1"), user=node)
    assert made["spec"]["taints"] == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    assert made["metadata"]["annotations"] == {JOINED: "true"}  # and is never taken for the platform's own
    bare = copy(made)
    bare["metadata"]["annotations"] = {"sampan.dev/pods-cgroup": "/sys/fs/cgroup"}
    changed = (await world.write(NODES, bare, made, user=node)).object
    assert changed is not None and changed["metadata"]["annotations"][JOINED] == "true"
    for ranges in (
        {"podCIDR": "0.0.0.0/1"},
        {"podCIDRs": ["192.168.0.0/24"]},
        {"podCIDR": "10.244.0.0/16"},
        {"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.7.128/25"]},
        {"podCIDR": "all"},
    ):
        world.cache.put(NODES, {**named("n3"), "spec": {"podCIDR": "10.244.7.0/24"}})
        with pytest.raises(ApiError, match=r"is not allowed to have the pod range"):
            await world.write(NODES, {**made, "spec": {**made["spec"], **ranges}}, made, user=node)
    own = {**made, "spec": {**made["spec"], "podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]}}
    await world.write(NODES, own, made, user=node)
    with pytest.raises(ApiError, match='node "n1" is not allowed to modify node "n2"'):
        await world.write(NODES, named("n2"), user=node)
    with pytest.raises(ApiError, match="can only create mirror pods"):
        await world.write(PODS, pod(nodeName="n1"), user=node)
    other = pod(nodeName="n2")
    with pytest.raises(ApiError, match=r"can only update pod status for pods with spec.nodeName set to itself"):
        await world.write(PODS, other, other, user=node, subresource="status")
    with pytest.raises(ApiError, match="can only delete pods"):
        await world.write(PODS, None, other, user=node)
    labelled = named("n1")
    labelled["metadata"]["labels"] = {"tier.node-restriction.kubernetes.io/x": "y"}
    with pytest.raises(ApiError, match="is not allowed to modify labels"):
        await world.write(NODES, labelled, named("n1"), user=node)


NODE = User("system:node:n1", ("system:nodes",))


def at(pod_ip: str, host_ip: str = "192.168.0.1", **spec: Any) -> Object:
    status = {"podIP": pod_ip, "podIPs": [{"ip": pod_ip}], "hostIP": host_ip, "hostIPs": [{"ip": host_ip}]}
    return {**pod(nodeName="n1", **spec), "status": status}


@pytest.mark.parametrize(
    ("reported", "ranges", "why"),
    [
        (at("10.244.3.9"), ["10.244.3.0/24"], ""),
        (at("127.116.3.9"), ["10.244.3.0/24"], ""),
        (at("192.168.0.1", hostNetwork=True), ["10.244.3.0/24"], ""),
        (at("192.168.0.1"), ["10.244.3.0/24"], "a pod at"),
        (at("10.244.7.9"), ["10.244.3.0/24"], "a pod at"),
        (at("127.116.7.9"), ["10.244.3.0/24"], "a pod at"),
        (at("127.0.0.1"), ["10.244.3.0/24"], "a pod at"),
        (at("127.0.0.1", hostNetwork=True), ["10.244.3.0/24"], "a pod at"),
        (at("169.254.169.254"), ["10.244.3.0/24"], "a pod at"),
        (at("10.96.0.10"), ["10.244.3.0/24"], "a pod at"),
        (at("nowhere"), ["10.244.3.0/24"], "a pod at"),
        (at("10.244.3.9", "192.168.0.2"), ["10.244.3.0/24"], "does not have the host IP"),
        (at("172.20.1.1"), [], ""),
        (at("10.244.7.9"), [], "a pod at"),
        (at("127.1.2.3"), [], "a pod at"),
        (at("10.96.0.10"), [], "a pod at"),
        (at("127.96.0.10"), [], "a pod at"),
        (at("::ffff:10.244.7.9"), [], "a pod at"),
        (at("::ffff:127.0.0.1"), [], "a pod at"),
    ],
)
async def test_a_nodes_pods_are_where_the_node_is(world: World, reported: Object, ranges: list[str], why: str) -> None:
    addresses = [{"type": "InternalIP", "address": "192.168.0.1"}, {"type": "Hostname", "address": "n1"}]
    world.cache.put(NODES, {**named("n1"), "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses}})
    world.cache.put(NODES, {**named("n2"), "spec": {"podCIDR": "10.244.7.0/24"}})
    world.cache.put(SERVICES, named("dns", "ns", spec={"clusterIPs": ["10.96.0.10"]}))
    before = {**reported, "status": {}}
    if why:
        with pytest.raises(ApiError, match=f'node "n1" .*{why}'):
            await world.write(PODS, reported, before, user=NODE, subresource="status")
        await world.write(PODS, reported, before, subresource="status")  # others are not held to it
        await world.write(PODS, reported, reported, user=NODE, subresource="status")  # nor what is there already
    else:
        await world.write(PODS, reported, before, user=NODE, subresource="status")


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("192.168.0.9", True),
        ("127.0.0.1", True),
        ("fd00::9", True),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("10.244.3.1", False),
        ("127.116.3.9", False),
        ("127.7.3.9", False),
        ("10.96.0.10", False),
        ("127.96.0.10", False),
        ("::ffff:10.96.0.10", False),
        ("::ffff:10.244.3.1", False),
        ("fd00:96::a", False),
        ("fd00:96:0::a", False),
        ("somewhere", False),
    ],
)
async def test_a_node_is_not_where_pods_and_services_are(world: World, address: str, good: bool) -> None:
    world.cache.put(SERVICES, named("dns", "ns", spec={"clusterIPs": ["10.96.0.10", "fd00:96::a"]}))
    world.cache.put(SERVICES, named("headless", "ns", spec={"clusterIPs": ["None"]}))
    told = {**named("n1"), "status": {"addresses": [{"type": "InternalIP", "address": address}]}}
    if good:
        await world.write(NODES, told, named("n1"), user=NODE, subresource="status")
        return
    with pytest.raises(ApiError, match='node "n1" is not allowed to be at'):
        await world.write(NODES, told, named("n1"), user=NODE, subresource="status")


@pytest.mark.parametrize("address", ["192.0.2.1", "127.0.0.1", "::1", "fd00::1", "::ffff:192.0.2.1"])
async def test_a_node_is_at_the_platforms_machine_only_if_it_runs_there(
    world: World, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"192.0.2.1", "127.0.0.1", "::1", "fd00::1", "::ffff:192.0.2.1"}
    monkeypatch.setattr(node_restriction, "is_here", here.__contains__)
    told = {**named("n1"), "status": {"addresses": [{"type": "InternalIP", "address": address}]}}

    async def tell(source: str, old: Object | None = None, user: User = NODE) -> None:
        await world.write(NODES, told, old or named("n1"), user=user, subresource="status", source=source)

    await tell("192.0.2.1")
    await tell("127.0.0.1")
    await tell("192.0.2.2", told)  # it was told before
    await tell("192.0.2.2", user=MASTER)
    with pytest.raises(ApiError, match="that is the platform's machine, and this request comes from another"):
        await tell("192.0.2.2")


async def test_approving_needs_the_signer(world: World) -> None:
    spec = {"signerName": "example.com/one"}
    pending = named("r", spec=spec, status={})
    approved = named("r", spec=spec, status={"conditions": [{"type": "Approved", "status": "True"}]})
    world.cache.put(
        CLUSTER_ROLES, named("a", rules=[rule(["certificates.k8s.io"], ["signers"], ["approve"], ["example.com/*"])])
    )
    ann = User("ann")
    with pytest.raises(ApiError, match=r'user not permitted to approve requests with signerName "example.com/one"'):
        await world.write(CERTIFICATE_SIGNING_REQUESTS, approved, pending, user=ann, subresource="approval")
    world.cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "a"), ("User", "ann")))
    await world.write(CERTIFICATE_SIGNING_REQUESTS, approved, pending, user=ann, subresource="approval")
    signed = named("r", spec=spec, status={"certificate": "x"})
    with pytest.raises(ApiError, match="user not permitted to sign"):
        await world.write(CERTIFICATE_SIGNING_REQUESTS, signed, pending, user=ann, subresource="status")


async def test_a_request_for_a_certificate_records_who_asks(world: World) -> None:
    asked = named(
        "r", spec={"signerName": "example.com/one", "username": "somebody else", "groups": ["system:masters"]}
    )
    made = await world.made(CERTIFICATE_SIGNING_REQUESTS, asked, user=User("ann", ("dev",)))
    assert (made["spec"]["username"], made["spec"]["groups"]) == ("ann", ["dev"])


async def test_a_parts_plugin_runs_between_the_first_and_the_last(world: World) -> None:
    world.cache.put(RESOURCE_QUOTAS, quota(pods="0"))
    seen: list[str] = []

    class Sidecars:
        async def admit(self, request: AdmissionRequest) -> None:
            assert request.object is not None
            seen.append(request.object["spec"]["serviceAccountName"])
            request.object["spec"]["containers"].append(container("sidecar"))

        async def validate(self, request: AdmissionRequest) -> None:
            seen.append("validated")

    world.chain.add(Sidecars())
    with pytest.raises(ApiError, match="exceeded quota"):
        await world.write(PODS, pod())
    assert seen == ["default", "validated"]
