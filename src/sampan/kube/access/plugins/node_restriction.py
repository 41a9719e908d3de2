"""NodeRestriction: a node agent writes its own node, its own pods and little else."""

from __future__ import annotations

from ipaddress import IPv4Network

from sampan.kernel.addresses import is_here
from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.access.plugins.node_addresses import (
    CLUSTER_RANGE,
    host_addresses,
    may_be_node,
    may_have_pod,
    node_addresses,
    parsed_range,
    pod_addresses,
    pod_ranges,
)
from sampan.kube.access.plugins.plugin import Plugin
from sampan.kube.access.rbac import NODE_PREFIX, NODES_GROUP, references
from sampan.kube.access.refusal import refused
from sampan.kube.objects import Object, dig
from sampan.kube.resources import NODES, PODS, SERVICES

JOINED = "sampan.dev/joined"
"""Annotation of a Node that lives in a process of its own, maybe on another machine: what machine-local things its object
names are not those of the platform's machine."""
NODE_RANGE_PREFIX = 24
"""How long the prefix of such a part is."""
MIRROR = "kubernetes.io/config.mirror"
RESERVED_LABELS = "node-restriction.kubernetes.io"
KUBELET_LABELS = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    }
)


class NodeRestriction(Plugin):
    """Narrows the writes of ``system:node:<name>``."""

    operations = ("CREATE", "UPDATE", "DELETE")
    subresources = None

    async def admit(self, request: AdmissionRequest) -> None:
        user = request.user
        if NODES_GROUP not in user.groups or not user.name.startswith(NODE_PREFIX):
            return
        node = user.name.removeprefix(NODE_PREFIX)
        group, plural = request.type.resource.group, request.type.resource.plural
        if (group, plural) == ("", "pods"):
            self._pod(request, node)
        elif (group, plural) == ("", "nodes"):
            self._node(request, node)
        elif (group, plural) == ("", "serviceaccounts") and request.subresource == "token":
            self._token(request, node)
        elif (group, plural) == ("coordination.k8s.io", "leases"):
            if request.namespace == "kube-node-lease" and _name(request) != node:
                raise refused(request, "can only access node lease with the same name as the requesting node")
        elif (group, plural) == ("storage.k8s.io", "csinodes") and _name(request) != node:
            raise refused(request, "can only access CSINode with the same name as the requesting node")

    def _pod(self, request: AdmissionRequest, node: str) -> None:
        if request.subresource == "eviction" or (request.operation == "DELETE" and not request.subresource):
            pod = request.old_object or self.cache.get(PODS, request.namespace, request.name)
            if dig(pod, "spec", "nodeName") != node:
                verb = "evict" if request.subresource else "delete"
                raise refused(request, f"node {_quoted(node)} can only {verb} pods with spec.nodeName set to itself")
        elif request.operation == "CREATE" and not request.subresource:
            annotations = dig(request.object, "metadata", "annotations", default={})
            if MIRROR not in annotations:
                raise refused(
                    request,
                    f"pod does not have {_quoted(MIRROR)} annotation, node {_quoted(node)} can only create mirror pods",
                )
            if dig(request.object, "spec", "nodeName") != node:
                raise refused(request, f"node {_quoted(node)} can only create pods with spec.nodeName set to itself")
            # what a pod of its own refers to a node may read: so its own pods refer to nothing
            if dig(request.object, "spec", "serviceAccountName"):
                raise refused(request, f"node {_quoted(node)} can not create pods that reference a service account")
            for plural in ("secrets", "configmaps", "persistentvolumeclaims"):
                if request.object is not None and next(references(request.object, plural), None) is not None:
                    raise refused(request, f"node {_quoted(node)} can not create pods that reference {plural}")
        elif request.operation == "UPDATE" and request.subresource == "status":
            if dig(request.old_object, "spec", "nodeName") != node:
                own = "pods with spec.nodeName set to itself"
                raise refused(request, f"node {_quoted(node)} can only update pod status for {own}")
            if dig(request.old_object, "metadata", "labels", default={}) != dig(
                request.object, "metadata", "labels", default={}
            ):
                raise refused(request, f"node {_quoted(node)} cannot update labels through pod status")
            self._pod_addresses(request, node)
        elif request.operation == "UPDATE":
            raise refused(request, f"unexpected operation {_quoted(request.operation)}")

    def _pod_addresses(self, request: AdmissionRequest, node: str) -> None:
        """What a pod's status newly says of where it is: connections to Services go there."""
        record = self.cache.get(NODES, "", node)
        own = node_addresses(record)
        for text in sorted(host_addresses(request.object) - host_addresses(request.old_object) - own):
            raise refused(request, f"node {_quoted(node)} does not have the host IP {_quoted(text)}")
        on_host = dig(request.object, "spec", "hostNetwork", default=False)
        for text in sorted(pod_addresses(request.object) - pod_addresses(request.old_object)):
            if on_host and text in own:
                continue
            others = [one for one in self.cache.objects(NODES) if one["metadata"]["name"] != node]
            if not may_have_pod(text, record, others, self.cache.objects(SERVICES)):
                raise refused(request, f"node {_quoted(node)} is not allowed to have a pod at {_quoted(text)}")

    def _node(self, request: AdmissionRequest, node: str) -> None:
        name = _name(request)
        if name != node:
            raise refused(request, f"node {_quoted(node)} is not allowed to modify node {_quoted(name)}")
        if request.operation == "DELETE":
            raise refused(request, f"node {_quoted(node)} is not allowed to delete node {_quoted(name)}")
        # only who joined comes as a node; without this its object would be taken for the platform's own, which says where on
        # the platform's machine programs of the kernel are attached
        if request.object is not None:
            metadata = request.object["metadata"]
            metadata["annotations"] = {**(metadata.get("annotations") or {}), JOINED: "true"}
        self._pod_ranges(request, node)
        # what is on the platform's machine is reached at its addresses, also what listens there for itself alone
        from_here = not request.source or is_here(request.source)
        for text in sorted(node_addresses(request.object) - node_addresses(request.old_object)):
            if not may_be_node(text, self.cache.objects(SERVICES)):
                raise refused(request, f"node {_quoted(node)} is not allowed to be at {_quoted(text)}")
            if not from_here and is_here(text):
                why = "that is the platform's machine, and this request comes from another"
                raise refused(request, f"node {_quoted(node)} is not allowed to be at {_quoted(text)}: {why}")
        new, old = _labels(request.object), _labels(request.old_object)
        changed = {key for key in {*new, *old} if new.get(key) != old.get(key)}
        bad = sorted(key for key in changed if _forbidden(key))
        if bad:
            raise refused(request, f"is not allowed to modify labels: {', '.join(bad)}")
        if request.operation == "UPDATE":
            if dig(request.object, "spec", "taints", default=[]) != dig(
                request.old_object, "spec", "taints", default=[]
            ):
                raise refused(request, f"node {_quoted(node)} is not allowed to modify taints")
            if dig(request.object, "metadata", "ownerReferences", default=[]) != dig(
                request.old_object, "metadata", "ownerReferences", default=[]
            ):
                raise refused(request, f"node {_quoted(node)} is not allowed to modify ownerReferences")

    def _pod_ranges(self, request: AdmissionRequest, node: str) -> None:
        """Every machine of the cluster routes a node's pod ranges to it: they are none but pods', and nobody else's."""
        asked = pod_ranges(request.object)
        if asked == pod_ranges(request.old_object):
            return
        others = [
            network
            for one in self.cache.objects(NODES)
            if one["metadata"]["name"] != node
            for network in map(parsed_range, pod_ranges(one))
            if network is not None
        ]
        for text in sorted(asked):
            network = parsed_range(text)
            if (
                network is None
                or network.prefixlen < NODE_RANGE_PREFIX
                or not network.subnet_of(IPv4Network(CLUSTER_RANGE))
                or any(network.overlaps(other) for other in others)
            ):
                raise refused(request, f"node {_quoted(node)} is not allowed to have the pod range {_quoted(text)}")

    def _token(self, request: AdmissionRequest, node: str) -> None:
        reference = dig(request.object, "spec", "boundObjectRef", default={})
        if reference.get("kind") != "Pod":
            raise refused(request, f"node {_quoted(node)}: only tokens bound to a pod may be requested")
        pod = self.cache.get(PODS, request.namespace, reference.get("name") or "")
        if pod is None or pod["metadata"].get("uid") != reference.get("uid"):
            raise refused(request, f"pod {_quoted(reference.get('name') or '')} not found")
        if dig(pod, "spec", "nodeName") != node:
            raise refused(request, "node requested token bound to a pod scheduled on a different node")


def _name(request: AdmissionRequest) -> str:
    name: str = request.name or dig(request.object, "metadata", "name", default="")
    return name


def _labels(obj: Object | None) -> dict[str, str]:
    labels: dict[str, str] = dig(obj, "metadata", "labels", default={})
    return labels


def _forbidden(label: str) -> bool:
    """Labels by which pods are isolated onto nodes, and reserved ones the agent has no business with."""
    prefix, slash, _ = label.rpartition("/")
    if not slash:
        return False
    if prefix == RESERVED_LABELS or prefix.endswith(f".{RESERVED_LABELS}"):
        return True
    reserved = prefix in ("kubernetes.io", "k8s.io") or prefix.endswith((".kubernetes.io", ".k8s.io"))
    if not reserved or label in KUBELET_LABELS:
        return False
    own = ("kubelet.kubernetes.io", "node.kubernetes.io")
    return not (prefix in own or prefix.endswith(tuple(f".{each}" for each in own)))


def _quoted(text: str) -> str:
    return f'"{text}"'
