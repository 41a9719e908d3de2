"""Authorization: who may do what, decided from roles and bindings in memory.

Three authorizers stand in a row and the first that allows wins: ``system:masters`` may do everything, a node may touch what
its own pods need (`NodeAuthorizer`), and everybody else is judged by RBAC (`RbacAuthorizer`): the union of the rules that
ClusterRoleBindings, and RoleBindings of the namespace, give to the user, to its groups or to it as a service account.

A request is judged some thousand times a second, roles change a few times an hour. So the rules of one user in one namespace
are compiled once into a table from (verb, group, resource) to "yes" or to the names it is restricted to, each answer is
remembered beside the table, and all tables are dropped when any role or binding changes. A repeated question costs one
dictionary look-up (see ``bench/rbac.py``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sampan.kube.access.interface import Attributes, Authorizer, Decision, ObjectCache, User
from sampan.kube.objects import Object
from sampan.kube.resources import (
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
)

MASTERS = "system:masters"
NODES_GROUP = "system:nodes"
NODE_PREFIX = "system:node:"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"
TABLES_LIMIT = 4096
"""Compiled (user, namespace) tables kept; the least recently used go first."""
ANSWERS_LIMIT = 4096
"""Remembered answers of one table; beyond it they are forgotten all at once."""

_ALLOWED_MASTER = Decision(True)
_NO_OPINION = Decision(False)


class Grant(NamedTuple):
    """Rules that one binding gives to the user, with where they come from."""

    rules: list[Mapping[str, Any]]
    reason: str
    namespace: str
    """The RoleBinding's namespace; "" for a ClusterRoleBinding."""


class Grants(NamedTuple):
    """All that bindings give to one user in one namespace, and the roles they name in vain."""

    grants: list[Grant]
    missing: list[str]


class _Table:
    """The compiled rules of one user in one namespace."""

    __slots__ = ("_answers", "_missing", "_named", "_paths", "_plain")

    def __init__(self, grants: Grants) -> None:
        self._plain: dict[tuple[str, str, str], Decision] = {}
        self._named: dict[tuple[str, str, str], dict[str, Decision]] = {}
        self._paths: list[tuple[str, str, Decision]] = []
        self._answers: dict[tuple[str, str, str, str, str], Decision] = {}
        missing = ", ".join(f"{name} not found" for name in grants.missing)
        self._missing = Decision(False, f"RBAC: {missing}") if missing else _NO_OPINION
        for grant in grants.grants:
            decision = Decision(True, grant.reason)
            for rule in grant.rules:
                self._add(rule, decision, grant.namespace)

    def _add(self, rule: Mapping[str, Any], decision: Decision, namespace: str) -> None:
        verbs = rule.get("verbs") or ()
        names = rule.get("resourceNames") or ()
        for verb in verbs:
            for group in rule.get("apiGroups") or ():
                for resource in rule.get("resources") or ():
                    key = (verb, group, resource)
                    if names:
                        named = self._named.setdefault(key, {})
                        for name in names:
                            named.setdefault(name, decision)
                    else:
                        self._plain.setdefault(key, decision)
            if not namespace:
                for path in rule.get("nonResourceURLs") or ():
                    self._paths.append((verb, path, decision))

    def decide(self, attributes: Attributes) -> Decision:
        resource = attributes.resource
        if resource is None:
            return self._decide_path(attributes.verb, attributes.path)
        key = (attributes.verb, resource.group, resource.plural, attributes.subresource, attributes.name)
        decision = self._answers.get(key)
        if decision is None:
            decision = self._decide(*key)
            if len(self._answers) >= ANSWERS_LIMIT:
                self._answers.clear()
            self._answers[key] = decision
        return decision

    def _decide(self, verb: str, group: str, plural: str, subresource: str, name: str) -> Decision:
        resources = (f"{plural}/{subresource}", "*", f"*/{subresource}") if subresource else (plural, "*")
        for v in (verb, "*"):
            for g in (group, "*"):
                for r in resources:
                    key = (v, g, r)
                    if (decision := self._plain.get(key)) is not None:
                        return decision
                    if name and (named := self._named.get(key)) and (decision := named.get(name)) is not None:
                        return decision
        return self._missing

    def _decide_path(self, verb: str, path: str) -> Decision:
        for allowed_verb, allowed_path, decision in self._paths:
            if allowed_verb in (verb, "*") and _path_matches(allowed_path, path):
                return decision
        return self._missing


def _path_matches(allowed: str, path: str) -> bool:
    return allowed == "*" or allowed == path or (allowed.endswith("*") and path.startswith(allowed[:-1]))


class RbacAuthorizer:
    """RBAC over the object cache."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._generation: tuple[int, int, int, int] | None = None
        self._tables: OrderedDict[tuple[str, tuple[str, ...], str], _Table] = OrderedDict()
        self._cluster: dict[tuple[str, str], list[Object]] = {}
        self._spaced: dict[str, dict[tuple[str, str], list[Object]]] = {}

    def authorize(self, attributes: Attributes) -> Decision:
        """The union of what the user's bindings allow; a refusal's reason names roles that do not exist."""
        self._refresh()
        user = attributes.user
        key = (user.name, user.groups, attributes.namespace)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = _Table(self.grants(user, attributes.namespace))
            if len(self._tables) > TABLES_LIMIT:
                self._tables.popitem(last=False)
        return table.decide(attributes)

    def grants(self, user: User, namespace: str) -> Grants:
        """What the user's bindings give it in ``namespace`` ("": only what holds for the whole cluster)."""
        self._refresh()
        grants: list[Grant] = []
        missing: list[str] = []
        for index, space in ((self._cluster, ""), (self._spaced.get(namespace, {}) if namespace else {}, namespace)):
            for binding, subject in _bindings(index, user):
                rules = self.role_rules(binding["roleRef"], space)
                if rules is None:
                    missing.append(_missing_role(binding["roleRef"]))
                else:
                    grants.append(Grant(rules, _reason(binding, subject, space), space))
        return Grants(grants, missing)

    def rules(self, user: User, namespace: str) -> list[Mapping[str, Any]]:
        """All rules the user holds in ``namespace``, cluster-wide ones included."""
        if MASTERS in user.groups:
            return list(EVERYTHING)
        return [rule for grant in self.grants(user, namespace).grants for rule in grant.rules]

    def role_rules(self, reference: Mapping[str, Any], namespace: str) -> list[Mapping[str, Any]] | None:
        """The rules of a referenced role, or None where it does not exist."""
        if reference.get("kind") == "ClusterRole":
            role = self._cache.get(CLUSTER_ROLES, "", reference["name"])
        else:
            role = self._cache.get(ROLES, namespace, reference["name"])
        return None if role is None else list(role.get("rules") or ())

    def _refresh(self) -> None:
        generation = self._cache.generation
        now = (
            generation(ROLES),
            generation(ROLE_BINDINGS),
            generation(CLUSTER_ROLES),
            generation(CLUSTER_ROLE_BINDINGS),
        )
        if now == self._generation:
            return
        before, self._generation = self._generation, now
        self._tables.clear()
        if before is None or before[3] != now[3]:
            self._cluster = _index(self._cache.objects(CLUSTER_ROLE_BINDINGS))
        if before is None or before[1] != now[1]:
            spaces: dict[str, list[Object]] = {}
            for binding in self._cache.objects(ROLE_BINDINGS):
                spaces.setdefault(binding["metadata"]["namespace"], []).append(binding)
            self._spaced = {space: _index(bindings) for space, bindings in spaces.items()}


EVERYTHING: tuple[Mapping[str, Any], ...] = (
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
)
"""The rules of who may do everything."""


def _index(bindings: Iterable[Object]) -> dict[tuple[str, str], list[Object]]:
    """Bindings by (subject kind, subject name); a service account's name is its user name."""
    index: dict[tuple[str, str], list[Object]] = {}
    for binding in bindings:
        for subject in binding.get("subjects") or ():
            kind, name = subject.get("kind", ""), subject.get("name", "")
            if kind == "ServiceAccount":
                namespace = subject.get("namespace") or binding["metadata"].get("namespace") or ""
                name = f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"
            index.setdefault((kind, name), []).append(binding)
    return index


def _bindings(index: Mapping[tuple[str, str], list[Object]], user: User) -> Iterator[tuple[Object, str]]:
    """Bindings that name the user, each with the subject through which it does."""
    for binding in index.get(("User", user.name), ()):
        yield binding, f'User "{user.name}"'
    for group in user.groups:
        for binding in index.get(("Group", group), ()):
            yield binding, f'Group "{group}"'
    if user.name.startswith(SERVICE_ACCOUNT_PREFIX):
        namespace, _, name = user.name.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
        for binding in index.get(("ServiceAccount", user.name), ()):
            yield binding, f'ServiceAccount "{name}/{namespace}"'


def _reason(binding: Object, subject: str, namespace: str) -> str:
    reference = binding["roleRef"]
    kind, name = (
        ("RoleBinding", f"{binding['metadata']['name']}/{namespace}")
        if namespace
        else ("ClusterRoleBinding", binding["metadata"]["name"])
    )
    return f'RBAC: allowed by {kind} "{name}" of {reference["kind"]} "{reference["name"]}" to {subject}'


def _missing_role(reference: Mapping[str, Any]) -> str:
    return f'{reference["kind"].lower()}.rbac.authorization.k8s.io "{reference["name"]}"'


class NodeAuthorizer:
    """A node agent (``system:node:<name>`` in ``system:nodes``) may read what its own pods refer to, and little else.

    The general rights of nodes are the rules of `NODE_RULES`; secrets, config maps, claims, volumes and service account
    tokens only as far as a pod bound to the node uses them. NodeRestriction (admission) narrows the writes further.
    """

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._table = _Table(Grants([Grant(list(NODE_RULES), "", "")], []))

    def authorize(self, attributes: Attributes) -> Decision:
        """Decide for nodes; no opinion about anybody else."""
        user = attributes.user
        if NODES_GROUP not in user.groups or not user.name.startswith(NODE_PREFIX) or attributes.resource is None:
            return _NO_OPINION
        node = user.name.removeprefix(NODE_PREFIX)
        resource = attributes.resource
        if not resource.group:
            reading = attributes.verb in ("get", "list", "watch") and not attributes.subresource
            if resource.plural in ("secrets", "configmaps", "persistentvolumeclaims", "persistentvolumes"):
                if resource.plural == "persistentvolumeclaims" and attributes.subresource == "status":
                    reading = attributes.verb in ("get", "update", "patch")
                if reading and attributes.name and self._uses(node, resource.plural, attributes):
                    return _ALLOWED_MASTER
                return Decision(False, f"no relationship found between node '{node}' and this object")
            if resource.plural == "serviceaccounts":
                token = attributes.verb == "create" and attributes.subresource == "token"
                if (token or reading) and any(
                    pod.get("spec", {}).get("serviceAccountName") == attributes.name
                    for pod in self._pods(node, attributes.namespace)
                ):
                    return _ALLOWED_MASTER
                return Decision(False, f"no relationship found between node '{node}' and this object")
        if resource.group == "coordination.k8s.io" and resource.plural == "leases":
            own = attributes.namespace == "kube-node-lease" and attributes.name in ("", node)
            creating = attributes.verb == "create"
            if own and (creating or (attributes.name and attributes.verb in ("get", "update", "patch", "delete"))):
                return _ALLOWED_MASTER
            return Decision(False, "can only access node lease with the same name as the requesting node")
        if resource.group == "storage.k8s.io" and resource.plural == "csinodes":
            if attributes.verb in ("get", "create", "update", "patch", "delete") and attributes.name in ("", node):
                return _ALLOWED_MASTER
            return Decision(False, "can only access CSINode with the same name as the requesting node")
        return self._table.decide(attributes)

    def _pods(self, node: str, namespace: str | None) -> Iterator[Object]:
        for pod in self._cache.objects(PODS, namespace or None):
            if pod.get("spec", {}).get("nodeName") == node:
                yield pod

    def _uses(self, node: str, plural: str, attributes: Attributes) -> bool:
        name = attributes.name
        if plural == "persistentvolumes":
            for pod in self._pods(node, None):
                for _, claim in references(pod, "persistentvolumeclaims"):
                    found = self._cache.get(PERSISTENT_VOLUME_CLAIMS, pod["metadata"]["namespace"], claim)
                    if found is not None and (found.get("spec") or {}).get("volumeName") == name:
                        return True
            return False
        pods = self._pods(node, attributes.namespace)
        return any(used == name for pod in pods for _, used in references(pod, plural))


def references(pod: Object, plural: str) -> Iterator[tuple[str, str]]:
    """(plural, name) of secrets, config maps or claims that a pod's volumes, environment and image pulls name."""
    spec = pod.get("spec") or {}
    if plural == "secrets":
        for reference in spec.get("imagePullSecrets") or ():
            yield plural, reference.get("name", "")
    source, name = {
        "secrets": ("secret", "secretName"),
        "configmaps": ("configMap", "name"),
        "persistentvolumeclaims": ("persistentVolumeClaim", "claimName"),
    }[plural]
    for volume in spec.get("volumes") or ():
        if source in volume:
            yield plural, volume[source].get(name, "")
        if plural == "persistentvolumeclaims" and "ephemeral" in volume:
            yield plural, f"{pod['metadata']['name']}-{volume['name']}"
        for projection in (volume.get("projected") or {}).get("sources") or ():
            if source in projection and plural != "persistentvolumeclaims":
                yield plural, projection[source].get("name", "")
        if plural == "secrets":
            for kind in volume.values():
                if isinstance(kind, dict):
                    for key in ("secretRef", "nodePublishSecretRef"):
                        if key in kind:
                            yield plural, (kind[key] or {}).get("name", "")
    if plural == "persistentvolumeclaims":
        return
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            for origin in container.get("envFrom") or ():
                if f"{source}Ref" in origin:
                    yield plural, origin[f"{source}Ref"].get("name", "")
            for variable in container.get("env") or ():
                chosen = (variable.get("valueFrom") or {}).get(f"{source}KeyRef")
                if chosen:
                    yield plural, chosen.get("name", "")


def _rule(groups: str, resources: str, verbs: str) -> Mapping[str, Any]:
    """A rule from words separated by blanks; ``-`` is the core group."""
    return {
        "apiGroups": ["" if group == "-" else group for group in groups.split()],
        "resources": resources.split(),
        "verbs": verbs.split(),
    }


NODE_RULES: tuple[Mapping[str, Any], ...] = (
    _rule("authentication.k8s.io", "tokenreviews", "create"),
    _rule("authorization.k8s.io", "subjectaccessreviews localsubjectaccessreviews", "create"),
    _rule("-", "services", "get list watch"),
    _rule("-", "nodes", "create get list watch"),
    _rule("-", "nodes/status", "patch update"),
    _rule("-", "nodes", "patch update"),
    _rule("-", "events", "create patch update"),
    _rule("events.k8s.io", "events", "create patch update"),
    _rule("-", "pods", "get list watch"),
    _rule("-", "pods", "create delete"),
    _rule("-", "pods/status", "patch update"),
    _rule("-", "pods/eviction", "create"),
    _rule("-", "secrets configmaps", "get list watch"),
    _rule("-", "persistentvolumeclaims persistentvolumes", "get"),
    _rule("-", "persistentvolumeclaims/status", "get patch update"),
    _rule("-", "endpoints", "get"),
    _rule("certificates.k8s.io", "certificatesigningrequests", "create get list watch"),
    _rule("coordination.k8s.io", "leases", "create delete get patch update"),
    _rule("storage.k8s.io", "volumeattachments", "get"),
    _rule("storage.k8s.io", "csidrivers", "get list watch"),
    _rule("storage.k8s.io", "csinodes", "create delete get patch update"),
    _rule("node.k8s.io", "runtimeclasses", "get list watch"),
    _rule("-", "serviceaccounts/token", "create"),
    _rule("-", "serviceaccounts", "get"),
    _rule("resource.k8s.io", "resourceclaims", "get"),
)
"""What a node may do at all; also the rules of the ClusterRole ``system:node``."""


class AuthorizerChain:
    """``system:masters`` first, then each authorizer in turn; the first that allows wins."""

    def __init__(self, authorizers: Iterable[Authorizer]) -> None:
        self._authorizers = tuple(authorizers)

    def authorize(self, attributes: Attributes) -> Decision:
        """Allowed by the first that allows; a refusal carries what all of them had to say."""
        if MASTERS in attributes.user.groups:
            return _ALLOWED_MASTER
        reasons: list[str] | None = None
        for authorizer in self._authorizers:
            decision = authorizer.authorize(attributes)
            if decision.allowed:
                return decision
            if decision.reason:
                reasons = [*(reasons or ()), decision.reason]
        return Decision(False, ", ".join(reasons)) if reasons else _NO_OPINION


class AlwaysAllow:
    """Authorization switched off; the review kinds keep answering from RBAC (they hold an authorizer of their own)."""

    def authorize(self, attributes: Attributes) -> Decision:
        """Everything."""
        return _ALLOWED_MASTER


# -- escalation: nobody may grant what they do not hold


def uncovered(held: Iterable[Mapping[str, Any]], wanted: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The atomic parts of ``wanted`` rules that no ``held`` rule covers, in upstream's compact form."""
    held = list(held)
    missing = [part for rule in wanted for part in _parts(rule) if not any(_covers(rule, part) for rule in held)]
    compact: dict[tuple[Any, ...], dict[str, Any]] = {}
    for part in missing:
        key = tuple((field, tuple(value)) for field, value in part.items() if field != "verbs")
        entry = compact.setdefault(key, {**part, "verbs": []})
        if part["verbs"][0] not in entry["verbs"]:
            entry["verbs"].append(part["verbs"][0])
    return list(compact.values())


def _parts(rule: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for verb in rule.get("verbs") or ():
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                names = rule.get("resourceNames") or ()
                base = {"apiGroups": [group], "resources": [resource]}
                if not names:
                    yield {**base, "verbs": [verb]}
                for name in names:
                    yield {**base, "resourceNames": [name], "verbs": [verb]}
        for path in rule.get("nonResourceURLs") or ():
            yield {"nonResourceURLs": [path], "verbs": [verb]}


def _covers(held: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    verbs = held.get("verbs") or ()
    if part["verbs"][0] not in verbs and "*" not in verbs:
        return False
    if "nonResourceURLs" in part:
        path = part["nonResourceURLs"][0]
        return any(_path_matches(allowed, path) for allowed in held.get("nonResourceURLs") or ())
    groups, resources = held.get("apiGroups") or (), held.get("resources") or ()
    if part["apiGroups"][0] not in groups and "*" not in groups:
        return False
    resource = part["resources"][0]
    if resource not in resources and "*" not in resources:
        _, slash, subresource = resource.partition("/")
        if not slash or f"*/{subresource}" not in resources:
            return False
    names = held.get("resourceNames") or ()
    return not names or ("resourceNames" in part and part["resourceNames"][0] in names)


def describe_rule(rule: Mapping[str, Any]) -> str:
    """A rule as upstream's escalation message prints it."""
    fields = (
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("ResourceNames", "resourceNames"),
        ("NonResourceURLs", "nonResourceURLs"),
        ("Verbs", "verbs"),
    )
    shown = [f"{label}:[{', '.join(_quote(item) for item in rule[key])}]" for label, key in fields if rule.get(key)]
    return "{" + ", ".join(shown) + "}"


def _quote(text: str) -> str:
    return f'"{text}"'
