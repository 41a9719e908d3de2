"""Knative's internal Ingress: hosts, splits and the gate before revisions that are cold or limited.

Names visible outside are served on the gateway's ports, with TLS where the Ingress names a certificate; cluster-local ones on a port of their own, behind the Service
``gateway`` in ``knative-serving``, so that a Host header cannot reach them from outside.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from sampan.kube.objects import Key, Object, dig
from sampan.parts.traffic.model import (
    EVERYTHING,
    Certificate,
    Forward,
    HeaderEdit,
    Listener,
    Match,
    NameMatch,
    PathMatch,
    Redirect,
    Rule,
    Target,
)
from sampan.parts.traffic.references import Backends, read_certificate
from sampan.parts.traffic.resources import KNATIVE_INGRESSES
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.sources.whole import WholeSource
from sampan.parts.traffic.world import World

log = logging.getLogger(__name__)

CLASS = "sampan.ingress.networking.knative.dev"
CLASS_ANNOTATION = "networking.knative.dev/ingress.class"
TIMEOUTS_ANNOTATION = "sampan.dev/timeouts"
"""On an internal Ingress, by revision: ``[whole, response start, idle]`` in seconds, 0 where there is none (JSON)."""
LIMIT_ANNOTATION = "sampan.dev/container-concurrency"
LONGEST_WAIT = 600.0
"""Seconds a request may stand in the gate with its revision chosen: upstream's ``max-revision-timeout-seconds``."""
HTTPS = 443
GATEWAY_DOMAIN = "gateway.knative-serving.svc.cluster.local"
INTERNAL_HEADERS = ("Knative-Serving-Namespace", "Knative-Serving-Revision")
"""Upstream's proxies use these between themselves; an application never sees them."""


class KnativeSource(WholeSource):
    """Translates, and keeps what it made as long as nothing changes that the internal Ingresses depend on.

    Envoy chooses a request's revision before the gate lets the request pass, and answers 500 when the revision's cluster is gone
    by then. So clusters stay for as long as a request may wait after the last split that names them.
    """

    def __init__(
        self, address: str, http_port: int, https_port: int, internal_port: int, now: Callable[[], float]
    ) -> None:
        """``now``: monotonic platform seconds."""
        super().__init__()
        self._address, self._http, self._https, self._internal = address, http_port, https_port, internal_port
        self._now = now
        self._version = -1
        self._leaving: dict[str, float] = {}
        """Clusters that no split names any more, and until when they are held."""

    def translate(self, world: World, backends: Backends) -> Result:
        """Listeners and statuses for all internal Ingresses of our class."""
        touched = (world.changed.services | world.changed.endpoints) & self._services
        if self._version == world.version and not touched:
            return self._kept()
        self._version = world.version
        return self._anew(backends, lambda: self._translate(world, backends))

    def _let_go(self, backends: Backends, names: frozenset[str]) -> None:
        now = self._now()
        backends.release(names & self._clusters)
        self._leaving |= dict.fromkeys(sorted(names - self._clusters), now + LONGEST_WAIT)
        over = [name for name, until in self._leaving.items() if until <= now or name in self._clusters]
        backends.release(over)
        for name in over:
            del self._leaving[name]

    def _translate(self, world: World, backends: Backends) -> Result:
        result = Result()
        known, self._rules = self._rules, {}
        if not world.knative_ingresses:
            return result
        public = Listener("knative", "public", self._address, self._http, "HTTP")
        private = Listener("knative", "private", self._address, self._internal, "HTTP")
        secure: dict[str, Listener] = {}
        for key, ingress in sorted(world.knative_ingresses.items()):
            if dig(ingress, "metadata", "annotations", CLASS_ANNOTATION) not in (None, CLASS):
                continue
            # the kind takes any spec: a malformed one must not keep everybody else's from being published
            try:
                certificates, ready = _certificates(world, ingress)
                rules = [(rule, _hosts(rule)) for rule in ingress["spec"].get("rules") or ()]
            except Exception:
                log.exception("Ingress %s of Knative cannot be translated", key)
                result.statuses[KNATIVE_INGRESSES, key] = _status(ingress, False)
                continue
            redirected = dig(ingress, "spec", "httpOption") == "Redirected"
            for rule, hosts in rules:
                try:
                    made, complete = _rules(world, backends, key, ingress, rule)
                except Exception:
                    log.exception("Ingress %s of Knative cannot be translated", key)
                    ready = False
                    continue
                kept = []
                for fresh in made:
                    kept.append(self._rules.setdefault(fresh, known.get(fresh, fresh)))
                ready = ready and complete
                internal = rule.get("visibility") == "ClusterLocal"
                for host in hosts:
                    private.host(host).add(kept)
                    if internal:
                        continue
                    certificate = certificates.get(host)
                    if certificate is not None:
                        listener = Listener("knative", host, self._address, self._https, "HTTPS", hostname=host)
                        listener = secure.setdefault(host, listener)
                        if certificate not in listener.certificates:
                            listener.certificates.append(certificate)
                        listener.host(host).add(kept)
                    if certificate is not None and redirected:
                        away = Rule(Match(), self._to_https(), name=f"knative/{key}")
                        public.host(host).add([self._rules.setdefault(away, known.get(away, away))])
                    else:
                        public.host(host).add(kept)
            result.statuses[KNATIVE_INGRESSES, key] = _status(ingress, ready)
        result.listeners += [public, private, *secure.values()]
        return result

    def _to_https(self) -> Redirect:
        return Redirect(301, scheme="https", port=self._https if self._https != HTTPS else None)


def _hosts(rule: Mapping[str, Any]) -> list[str]:
    """Raises TypeError."""
    hosts = rule.get("hosts") or []
    if not isinstance(hosts, list) or not all(isinstance(one, str) for one in hosts):
        raise TypeError("hosts is no list of names")
    return hosts


def _certificates(world: World, ingress: Object) -> tuple[dict[str, Certificate], bool]:
    """Certificates by host, and whether all that are asked for are there."""
    found: dict[str, Certificate] = {}
    complete = True
    for entry in ingress["spec"].get("tls") or ():
        key = Key(entry.get("secretNamespace") or ingress["metadata"]["namespace"], entry["secretName"])
        secret = world.secret(key)
        read = read_certificate(key, secret) if secret is not None else None
        if isinstance(read, Certificate):
            found |= dict.fromkeys(entry.get("hosts") or (), read)
        else:
            complete = False
            if read is not None:
                log.warning("Ingress %s of Knative: %s", Key.of(ingress), read.message)
    return found, complete


def _rules(
    world: World, backends: Backends, key: Key, ingress: Object, rule: Mapping[str, Any]
) -> tuple[list[Rule], bool]:
    """Rules of one host set, and whether all their targets exist."""
    made, complete = [], True
    timeouts = msgspec.json.decode(dig(ingress, "metadata", "annotations", TIMEOUTS_ANNOTATION, default="{}"))
    for position, path in enumerate(dig(rule, "http", "paths", default=[])):
        targets: dict[tuple[float, ...], list[Target]] = defaultdict(list)
        for split in path.get("splits") or ():
            target = _target(world, backends, split)
            complete = complete and bool(target.cluster)
            targets[tuple(timeouts.get(split["serviceName"], ()))].append(target)
        matched = PathMatch("Prefix", path["path"]) if path.get("path") else EVERYTHING
        headers = tuple(
            NameMatch(name.lower(), "Exact", value.get("exact") or "")
            for name, value in (path.get("headers") or {}).items()
        )
        edit = HeaderEdit(set=tuple(sorted((path.get("appendHeaders") or {}).items())), remove=INTERNAL_HEADERS)
        host, name = path.get("rewriteHost") or "", f"knative/{key}"
        for index, (share, limits, chosen) in enumerate(_shares(targets)):
            action = _forward(tuple(chosen), limits, host)
            order = (ingress["metadata"].get("creationTimestamp") or "", key.namespace, key.name, position, index)
            made.append(Rule(Match(matched, headers=headers, share=share), action, edit, order=order, name=name))
    return made, complete


def _shares(
    targets: Mapping[tuple[float, ...], list[Target]],
) -> Iterator[tuple[tuple[int, int] | None, tuple[float, ...], list[Target]]]:
    """(share, timeouts, targets) of the rules a path needs: one, or, since timeouts are a rule's, one a target."""
    if len(targets) <= 1:
        for limits, chosen in targets.items():
            yield None, limits, chosen
        return
    # targets of one rule would draw again what its share has drawn already
    single = [(limits, target) for limits, chosen in targets.items() for target in chosen if target.weight]
    whole, drawn = sum(target.weight for _, target in single), 0
    for limits, target in single:
        drawn += target.weight
        yield (drawn, whole) if drawn < whole else None, limits, [target]


def _forward(targets: tuple[Target, ...], limits: tuple[float, ...], host: str) -> Forward:
    whole, start, silence = limits or (0.0, 0.0, 0.0)
    # the gate has its own deadline for the line, and only then does the request's own time begin
    waits = any(target.gate for target in targets)
    return Forward(
        targets,
        timeout=whole or None,
        try_timeout=start or None,
        silence_timeout=silence or None,
        longest=whole * (2 if waits else 1) or None,
        host=host,
        forwarded=True,
    )


def _target(world: World, backends: Backends, split: Mapping[str, Any]) -> Target:
    service = Key(split["serviceNamespace"], split["serviceName"])
    weight = int(split.get("percent") or 100)
    backends.asked.add(service)
    port = world.service_port(service, split.get("servicePort") or 80)
    if port is None:
        return Target("", weight)
    headers = tuple(
        sorted(
            (name, value) for name, value in (split.get("appendHeaders") or {}).items() if name not in INTERNAL_HEADERS
        )
    )
    sks = world.serverless_services.get(service)
    # a pod that is ready takes any number of requests unless its revision limits them: then there is nothing to wait for
    limited = dig(sks, "metadata", "annotations", LIMIT_ANNOTATION) is not None
    waits = sks is not None and (limited or not _has_ready_pod(world, service))
    gate = f"/{service.namespace}/{service.name}" if waits else ""
    return Target(backends.cluster(service, port), weight, HeaderEdit(set=headers), gate=gate)


def _has_ready_pod(world: World, service: Key) -> bool:
    for one in world.slices.get(service, ()):
        for endpoint in one.get("endpoints") or ():
            if dig(endpoint, "conditions", "ready", default=True) is not False:
                return True
    return False


def _status(ingress: Object, ready: bool) -> Object:
    state = "True" if ready else "Unknown"
    conditions = [{"type": kind, "status": state} for kind in ("LoadBalancerReady", "NetworkConfigured", "Ready")]
    if not ready:
        for condition in conditions:
            condition |= {"reason": "Uninitialized", "message": "Waiting for load balancer to be ready"}
    balancer = {"ingress": [{"domainInternal": GATEWAY_DOMAIN}]}
    return {
        "conditions": conditions,
        "observedGeneration": ingress["metadata"].get("generation", 0),
        "publicLoadBalancer": balancer,
        "privateLoadBalancer": balancer,
    }
