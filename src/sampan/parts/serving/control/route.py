"""Route: which revisions get which share of traffic, under which URLs.

A Route becomes one internal Ingress (the traffic part serves it) and a Service a name, so that the cluster-local URL resolves.
Which configurations and revisions a Route uses is written on them, so that revisions know whether they are reachable.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from zlib import adler32

from sampan.kube.client.resources import CONFIG_MAPS
from sampan.kube.client.resources import SERVICES as CORE_SERVICES
from sampan.kube.control.conditions import ConditionSet, condition, is_ready
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import Lookup
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.serving import keys
from sampan.parts.serving.autoscaling.settings import duration
from sampan.parts.serving.configmaps import LOCAL_DOMAIN, Config, everything
from sampan.parts.serving.control.certificate import CLUSTER_LOCAL, EXTERNAL, TLS_OFF, TLS_OFF_INSIDE, ask, entry
from sampan.parts.serving.control.inheritance import OURS, inherited
from sampan.parts.serving.control.targets import (
    Assignment,
    Target,
    goal,
    not_owned,
    rows,
    splits,
    spread,
    timeouts,
    was_routable,
)
from sampan.parts.serving.resources import CERTIFICATES, CONFIGURATIONS, INGRESSES, REVISIONS, ROUTES
from sampan.parts.serving.rollouts import Rollout, advance, observe

SECOND = 1_000_000_000


class RouteController(Controller):
    """Routes of serving.knative.dev."""

    name = "route-controller"
    workers = 2

    def __init__(self, context: ControlContext, config: Config) -> None:
        super().__init__(context)
        self._config = config

    def sources(self) -> list[Source]:
        return [
            For(ROUTES),
            Watches(CONFIG_MAPS, everything(lambda: self.informer(ROUTES))),
            Owns(INGRESSES, "Route"),
            Owns(CORE_SERVICES, "Route"),
            Owns(CERTIFICATES, "Route"),
            Watches(CONFIGURATIONS, self._routes_using),
            Watches(REVISIONS, self._routes_using),
        ]

    def _routes_using(self, obj: Object) -> list[Key]:
        namespace, name = Key.of(obj)
        configuration = dig(obj, "metadata", "labels", keys.CONFIGURATION)
        found: list[Key] = []
        for target in {name, configuration} - {None}:
            found += map(Key.of, _BY_TARGET(self.informer(ROUTES), f"{namespace}/{target}"))
        return found

    async def reconcile(self, key: Key) -> float | None:
        route = self.informer(ROUTES).get(key)
        if route is None or route["metadata"].get("deletionTimestamp"):
            await self._unlabel(key)
            return None
        dependents = ("AllTrafficAssigned", "IngressReady", "CertificateProvisioned")
        conditions = ConditionSet(route, dependents, self.clock.now())
        status: Object = copy(route.get("status") or {})
        domains = self._domains(route)
        tls = await self._certify(route, domains, conditions)
        secure = {host for one in tls for host in one["hosts"]}
        status["url"] = self._url(self._config.host(key.name, key.namespace, domains[""]), secure)
        inside = f"{key.name}.{key.namespace}.{LOCAL_DOMAIN}"
        status["address"] = {"url": f"{'https' if inside in secure else 'http'}://{inside}"}
        assignment = self._assign(route)
        again: float | None = None
        if assignment.problem is not None:
            state, reason, message = assignment.problem
            (conditions.false if state == "False" else conditions.unknown)("AllTrafficAssigned", reason, message)
            if not condition(route, "IngressReady"):
                conditions.unknown("IngressReady", "IngressNotConfigured", "Ingress has not yet been reconciled.")
        else:
            conditions.true("AllTrafficAssigned")
            try:
                again = await self._route(route, assignment, domains, conditions, status, tls)
            except NotOwnedError as error:
                conditions.false("IngressReady", "NotOwned", str(error))
        # what lost its traffic is let go only once the gateway has stopped sending it there
        await self._label(route, assignment, settled=conditions.is_true("IngressReady") and assignment.problem is None)
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = route["metadata"].get("generation")
        if status != (route.get("status") or {}):
            await self.client.update(ROUTES, {**route, "status": status}, subresource="status")
        return again

    def _domains(self, route: Object) -> dict[str, str]:
        """The domain of the route's own name (under ``""``) and of each tag's.

        A label on the route makes all of them cluster-local, one on the Service of a name that name.
        """
        metadata = route["metadata"]
        labels = metadata.get("labels") or {}
        domain = LOCAL_DOMAIN if labels.get(keys.VISIBILITY) == keys.CLUSTER_LOCAL else self._config.domain(labels)
        found = {}
        for tag in {"", *(one.get("tag") or "" for one in route["spec"].get("traffic") or ())}:
            name = self._config.tag_name(tag, metadata["name"]) if tag else metadata["name"]
            service = self.informer(CORE_SERVICES).get(Key(metadata["namespace"], name))
            theirs = dig(service, "metadata", "labels", default={})
            local = theirs.get(keys.ROUTE) == metadata["name"] and theirs.get(keys.VISIBILITY) == keys.CLUSTER_LOCAL
            found[tag] = LOCAL_DOMAIN if local else domain
        return found

    # -- targets

    def _assign(self, route: Object) -> Assignment:
        made = Assignment()
        namespace = route["metadata"]["namespace"]
        for target in route["spec"].get("traffic") or ():
            percent, tag = int(target.get("percent") or 0), target.get("tag") or ""
            if target.get("configurationName"):
                made.configurations.add(target["configurationName"])
                self._assign_latest(made, namespace, target["configurationName"], percent, tag)
            else:
                name = target["revisionName"]
                made.revisions.add(name)
                revision = self.informer(REVISIONS).get(Key(namespace, name))
                if revision is None:
                    made.problem = ("False", "RevisionMissing", f'Revision "{name}" referenced in traffic not found.')
                    continue
                if problem := not_owned(route, revision):
                    made.problem = ("False", "RevisionNotOwned", problem)
                    continue
                ready = condition(revision)
                if ready is None or ready["status"] == "Unknown":
                    made.problem = made.problem or (
                        "Unknown",
                        "RevisionMissing",
                        f'Revision "{name}" is not yet ready.',
                    )
                elif ready["status"] == "False" and not was_routable(revision):
                    made.problem = ("False", "RevisionMissing", f'Revision "{name}" failed to become ready.')
                made.targets.append(Target(revision, percent, tag))
        return made

    def _assign_latest(self, made: Assignment, namespace: str, name: str, percent: int, tag: str) -> None:
        configuration = self.informer(CONFIGURATIONS).get(Key(namespace, name))
        if configuration is None:
            made.problem = ("False", "ConfigurationMissing", f'Configuration "{name}" referenced in traffic not found.')
            return
        if created := dig(configuration, "status", "latestCreatedRevisionName"):
            # the next to take over: its bounds hold already, so that it has all its pods when it does
            made.revisions.add(created)
        latest = dig(configuration, "status", "latestReadyRevisionName")
        revision = self.informer(REVISIONS).get(Key(namespace, latest)) if latest else None
        if revision is None:
            ready = condition(configuration)
            if ready is not None and ready["status"] == "False":
                made.problem = ("False", "RevisionMissing", f'Configuration "{name}" does not have any ready Revision.')
            else:
                made.problem = made.problem or (
                    "Unknown",
                    "RevisionMissing",
                    f'Configuration "{name}" is waiting for a Revision to become ready.',
                )
            return
        made.targets.append(Target(revision, percent, tag, latest=True, configuration=name))

    # -- ingress

    async def _route(
        self,
        route: Object,
        assignment: Assignment,
        domains: Mapping[str, str],
        conditions: ConditionSet,
        status: Object,
        tls: list[Object],
    ) -> float | None:
        metadata = route["metadata"]
        key = Key.of(route)
        current = self.informer(INGRESSES).get(key)
        now = self.clock.time_ns()
        seconds = self._rollout_duration(route)
        previous = Rollout.parse(dig(current, "metadata", "annotations", keys.ROLLOUT))
        rollout = advance(previous, goal(assignment), now, gradual=seconds > 0)
        served = condition(current) if current is not None else None
        current_generation = dig(current, "metadata", "generation")
        is_served = (
            served is not None
            and served["status"] == "True"
            and dig(current, "status", "observedGeneration") == current_generation
        )
        if is_served and rollout.text() == previous.text():
            rollout = observe(rollout, now, seconds)
        targets = spread(assignment, rollout, self.informer(REVISIONS), key.namespace)
        assignment.revisions |= {one.revision["metadata"]["name"] for one in targets}
        await self._placeholders(route, {"", *(one.tag for one in targets)})
        wanted = self._ingress(route, targets, domains, rollout)
        if tls:
            wanted["spec"]["tls"] = tls
            if self._config.redirects(metadata.get("annotations") or {}):
                wanted["spec"]["httpOption"] = "Redirected"
        secure = {host for one in tls for host in one["hosts"]}
        ingress = await ensure(self, INGRESSES, route, wanted, exact=OURS)
        self._follow_ingress(conditions, ingress, rollout)
        status["traffic"] = [self._status_row(target, key, domains, secure) for target in rows(targets)]
        if metadata.get("deletionTimestamp"):
            return None
        due = rollout.next_step
        return None if due is None else max(0.0, (due - now) / SECOND)

    def _rollout_duration(self, route: Object) -> float:
        annotations = route["metadata"].get("annotations") or {}
        text = annotations.get(keys.ROLLOUT_DURATION) or annotations.get(keys.PREFIX + "rolloutDuration")
        return duration(text) if text else self._config.rollout_duration()

    def _ingress(self, route: Object, targets: list[Target], domains: Mapping[str, str], rollout: Rollout) -> Object:
        metadata = route["metadata"]
        name, namespace = metadata["name"], metadata["namespace"]
        rules = []
        tag_headers = self._config.feature("tag-header-based-routing") in ("enabled", "allowed")
        tags = sorted({one.tag for one in targets if one.tag})
        for tag in ("", *tags):
            chosen = [one for one in targets if one.tag == tag] if tag else [one for one in targets if one.percent > 0]
            if not chosen:
                continue
            paths: list[Object] = [{"splits": splits(chosen, whole=bool(tag))}]
            if not tag and tag_headers:
                paths = [
                    *self._tag_paths(targets, tags),
                    {**paths[0], "appendHeaders": {"Knative-Serving-Default-Route": "true"}},
                ]
            label = self._config.tag_name(tag, name) if tag else name
            rules.append(
                {"hosts": _local_hosts(label, namespace), "visibility": "ClusterLocal", "http": {"paths": paths}}
            )
            if domains[tag] != LOCAL_DOMAIN:
                host = self._config.host(label, namespace, domains[tag])
                rules.append({"hosts": [host], "visibility": "ExternalIP", "http": {"paths": paths}})
        annotations = {
            **inherited(metadata.get("annotations")),
            keys.INGRESS_CLASS: self._config.data("config-network").get("ingress-class", keys.OUR_INGRESS_CLASS),
            keys.ROLLOUT: rollout.text(),
            keys.TIMEOUTS: timeouts(targets),
        }
        labels = {**(metadata.get("labels") or {}), keys.ROUTE: name, keys.ROUTE_NAMESPACE: namespace}
        return {
            "apiVersion": "networking.internal.knative.dev/v1alpha1",
            "kind": "Ingress",
            "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
            "spec": {"httpOption": "Enabled", "rules": rules},
        }

    def _tag_paths(self, targets: list[Target], tags: list[str]) -> list[Object]:
        return [
            {
                "headers": {"Knative-Serving-Tag": {"exact": tag}},
                "splits": splits([one for one in targets if one.tag == tag], whole=True),
            }
            for tag in tags
        ]

    def _follow_ingress(self, conditions: ConditionSet, ingress: Object, rollout: Rollout) -> None:
        ready = condition(ingress)
        observed = dig(ingress, "status", "observedGeneration") == ingress["metadata"].get("generation")
        if ready is None or not observed:
            conditions.unknown("IngressReady", "Uninitialized", "Waiting for load balancer to be ready")
        elif ready["status"] == "True" and rollout.running:
            conditions.unknown(
                "IngressReady", "RolloutInProgress", "A gradual rollout of the latest revision(s) is in progress."
            )
        else:
            conditions.mirror("IngressReady", ingress["status"])

    async def _placeholders(self, route: Object, tags: set[str]) -> None:
        """A Service for the route's name and each tag's, and none for a tag that is gone."""
        metadata = route["metadata"]
        wanted = {self._config.tag_name(tag, metadata["name"]) if tag else metadata["name"] for tag in tags}
        for name in sorted(wanted):
            await self._placeholder(route, name)
        for service in self.informer(CORE_SERVICES).indexed("owner", metadata["uid"]):
            if service["metadata"]["name"] not in wanted and not service["metadata"].get("deletionTimestamp"):
                try:
                    await self.client.delete(CORE_SERVICES, service["metadata"]["name"], metadata["namespace"])
                except ApiError as error:
                    if not error.not_found:
                        raise

    async def _placeholder(self, route: Object, name: str) -> None:
        """The Service that makes a cluster-local name resolve to the gateway."""
        metadata = route["metadata"]
        # whether a name is cluster-local may be said of each on its own
        labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != keys.VISIBILITY}
        wanted: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": {**labels, keys.ROUTE: metadata["name"]},
                "annotations": inherited(metadata.get("annotations")),
            },
            "spec": {
                "type": "ExternalName",
                "externalName": f"gateway.knative-serving.{LOCAL_DOMAIN}",
                "sessionAffinity": "None",
                "ports": [
                    {
                        "name": "http2",
                        "appProtocol": "kubernetes.io/h2c",
                        "port": 80,
                        "targetPort": 80,
                        "protocol": "TCP",
                    }
                ],
            },
        }
        await ensure(self, CORE_SERVICES, route, wanted)

    # -- certificates

    async def _certify(self, route: Object, domains: Mapping[str, str], conditions: ConditionSet) -> list[Object]:
        """Ask for the certificates of all names that are to have one; those that are there, as the Ingress tells them."""
        metadata = route["metadata"]
        annotations = metadata.get("annotations") or {}
        inside, outside = self._config.local_tls(), self._config.external_tls(annotations)
        if inside or (outside and set(domains.values()) != {LOCAL_DOMAIN}):
            conditions.true("CertificateProvisioned")
        else:
            conditions.true("CertificateProvisioned", *(TLS_OFF_INSIDE if outside else TLS_OFF))
        made: list[Object] = []
        asked = set()
        for tag, domain in sorted(domains.items()) if inside or outside else ():
            name = f"route-{metadata['uid']}{f'-{adler32(tag.encode())}' if tag else ''}"
            label = self._config.tag_name(tag, metadata["name"]) if tag else metadata["name"]
            if outside and domain != LOCAL_DOMAIN:
                asked.add(name)
                host = self._config.host(label, metadata["namespace"], domain)
                made += await self._certificate(route, name, [host], domain, conditions)
            if inside:
                name += "-local"
                asked.add(name)
                hosts = _local_hosts(label, metadata["namespace"])
                made += await self._certificate(route, name, hosts, LOCAL_DOMAIN, conditions)
        for one in self.informer(CERTIFICATES).indexed("owner", metadata["uid"]):
            if one["metadata"]["name"] not in asked and not one["metadata"].get("deletionTimestamp"):
                try:
                    await self.client.delete(CERTIFICATES, one["metadata"]["name"], metadata["namespace"])
                except ApiError as error:
                    if not error.not_found:
                        raise
        return made

    async def _certificate(
        self, route: Object, name: str, hosts: list[str], domain: str, conditions: ConditionSet
    ) -> list[Object]:
        """One certificate as the Ingress tells it; none, and the condition says why, while it is not there."""
        annotations = route["metadata"].get("annotations") or {}
        issuer = self._config.certificate_class(annotations)
        kind = CLUSTER_LOCAL if domain == LOCAL_DOMAIN else EXTERNAL
        try:
            certificate = await ask(self, route, name, hosts, domain, issuer, kind)
        except NotOwnedError:
            text = f"There is an existing certificate {name} that we don't own."
            conditions.false("CertificateProvisioned", "CertificateNotOwned", text)
            return []
        if is_ready(certificate):
            return [entry(certificate)]
        ready = condition(certificate) or {}
        reason = ready.get("reason", "")
        if kind == EXTERNAL and not self._config.redirects(annotations):
            text = f"Certificate {name} is not ready downgrade HTTP."
            conditions.true("CertificateProvisioned", "HTTPDowngrade", text)
        elif ready.get("status") == "False":
            text = f"Certificate {name} fails to be provisioned: {reason}"
            conditions.false("CertificateProvisioned", "CertificateProvisionFailed", text)
        else:
            text = f"Certificate {name} is not ready: {reason}"
            conditions.unknown("CertificateProvisioned", "CertificateNotReady", text)
        return []

    def _url(self, host: str, secure: Collection[str]) -> str:
        return f"{'https' if host in secure else self._config.scheme()}://{host}"

    def _status_row(self, target: Target, key: Key, domains: Mapping[str, str], secure: Collection[str]) -> Object:
        row: Object = {"revisionName": target.revision["metadata"]["name"], "percent": target.percent}
        row["latestRevision"] = target.latest
        if target.tag:
            row["tag"] = target.tag
            label = self._config.tag_name(target.tag, key.name)
            row["url"] = self._url(self._config.host(label, key.namespace, domains[target.tag]), secure)
        return row

    # -- what a route uses knows it

    async def _label(self, route: Object, assignment: Assignment, *, settled: bool) -> None:
        name, namespace = route["metadata"]["name"], route["metadata"]["namespace"]
        used = {target.revision["metadata"]["name"] for target in assignment.targets} | assignment.revisions
        for resource, wanted in ((CONFIGURATIONS, assignment.configurations), (REVISIONS, used)):
            informer = self.informer(resource)
            marked = {one["metadata"]["name"] for one in _MARKED(informer, f"{namespace}/{name}")}
            for each in sorted({*marked, *wanted}):
                obj = informer.get(Key(namespace, each))
                if obj is not None:
                    await self._mark(resource, obj, name, uses=each in wanted, settled=settled)

    async def _unlabel(self, key: Key) -> None:
        for resource in (CONFIGURATIONS, REVISIONS):
            for obj in _MARKED(self.informer(resource), str(key)):
                await self._mark(resource, obj, key.name, uses=False, settled=True)

    async def _mark(self, resource: Resource, obj: Object, route: str, *, uses: bool, settled: bool) -> None:
        metadata = obj["metadata"]
        listed = _routes_of(obj)
        if (route in listed) == uses or (not uses and not settled) or metadata.get("deletionTimestamp"):
            return
        remaining = sorted({*listed, route} if uses else set(listed) - {route})
        patch: Object = {"annotations": {keys.ROUTES: ",".join(remaining) or None}}
        if resource == REVISIONS:
            patch["labels"] = {keys.ROUTING_STATE: "active" if remaining else "reserve"}
            patch["annotations"][keys.ROUTING_STATE_MODIFIED] = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            await self.client.patch(resource, metadata["name"], {"metadata": patch}, metadata["namespace"])
        except ApiError as error:
            if not error.not_found:
                raise


def _routes_of(obj: Object) -> list[str]:
    """The routes that a configuration or revision says it is used by."""
    return [one for one in (dig(obj, "metadata", "annotations", keys.ROUTES) or "").split(",") if one]


def _targets_of(route: Object) -> Iterable[str]:
    namespace, named = route["metadata"]["namespace"], ("configurationName", "revisionName")
    targets = route["spec"].get("traffic") or ()
    return {f"{namespace}/{target[field]}" for target in targets for field in named if target.get(field)}


_BY_TARGET = Lookup("target", _targets_of)
"""Routes by what they lead to."""
_MARKED = Lookup("route", lambda obj: {f"{obj['metadata']['namespace']}/{one}" for one in _routes_of(obj)})
"""Configurations and revisions by the routes that use them."""


def _local_hosts(label: str, namespace: str) -> list[str]:
    """The names inside the cluster of a Service."""
    return [f"{label}.{namespace}", f"{label}.{namespace}.svc", f"{label}.{namespace}.{LOCAL_DOMAIN}"]
