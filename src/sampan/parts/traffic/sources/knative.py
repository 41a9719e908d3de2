"""Knative's internal Ingress: hosts, splits and the gate before revisions that are cold or limited.

Names visible outside are served on the gateway's ports, with TLS where the Ingress names a certificate; cluster-local ones on two
ports of their own, likewise, behind the Service ``gateway`` in ``knative-serving``, so that a Host header cannot reach them from
outside.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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


class _Place(NamedTuple):
    """Where rules stand: on which of the listeners, under which host."""

    kind: Literal["public", "private", "secure", "sealed"]
    """Visible outside, cluster-local, and both with TLS."""
    host: str


@dataclass(slots=True, eq=False)
class _Piece:
    """What one Ingress came to, and what that rests on."""

    wish: bytes
    """Digest of what is looked at of the Ingress..."""
    state: bytes
    """...and of the Services and Secrets it names; as long as they are the same, so is the piece."""
    secrets: frozenset[Key]
    services: frozenset[Key]
    clusters: frozenset[str]
    placed: dict[_Place, list[Rule]]
    certificates: dict[str, Certificate]
    """By the hosts that are served with TLS."""
    status: Object


class KnativeSource:
    """Translates the internal Ingresses one by one, each anew only when something changes that it depends on.

    Envoy chooses a request's revision before the gate lets the request pass, and answers 500 when the revision's cluster is gone
    by then. So clusters stay for as long as a request may wait after the last split that names them.
    """

    def __init__(
        self,
        address: str,
        http_port: int,
        https_port: int,
        internal: tuple[int, int],
        now: Callable[[], float],
    ) -> None:
        """``internal``: the ports of cluster-local names, plain and with TLS; ``now``: monotonic platform seconds."""
        self._address, self._https = address, https_port
        self._ports = {"secure": https_port, "sealed": internal[1]}
        self._now = now
        self._version = -1
        self._pieces: dict[Key, _Piece] = {}
        self._public = Listener("knative", "public", address, http_port, "HTTP")
        self._private = Listener("knative", "private", address, internal[0], "HTTP")
        self._secure: dict[_Place, Listener] = {}
        self._claims: Counter[_Place] = Counter()
        """How many Ingresses have rules there."""
        self._clusters: Counter[str] = Counter()
        """How many Ingresses send requests there."""
        self._held: set[str] = set()
        """Clusters that are kept: those, and for a while those that no split names any more."""
        self._leaving: dict[str, float] = {}
        """Until when the latter are."""
        self._result = Result()

    def translate(self, world: World, backends: Backends) -> Result:
        """Listeners and statuses for all internal Ingresses of our class."""
        result = self._result
        result.changed = set()
        looked_at = set(world.changed.knative_ingresses)
        touched = world.changed.services | world.changed.endpoints
        other, self._version = self._version != world.version, world.version
        for key, piece in self._pieces.items():
            if (other and piece.secrets) or not touched.isdisjoint(piece.services):
                looked_at.add(key)
        for key in sorted(looked_at):
            self._look(world, backends, key)
        self._let_go(backends)
        result.listeners = [self._public, self._private, *self._secure.values()] if self._pieces else []
        return result

    def _let_go(self, backends: Backends) -> None:
        """Release the clusters that have been without a split for long enough."""
        now = self._now()
        for name in self._held - self._clusters.keys() - self._leaving.keys():
            self._leaving[name] = now + LONGEST_WAIT
        for name in self._leaving.keys() & self._clusters.keys():
            del self._leaving[name]
        over = sorted(name for name, until in self._leaving.items() if until <= now)
        backends.release(over)
        self._held.difference_update(over)
        for name in over:
            del self._leaving[name]

    def _look(self, world: World, backends: Backends, key: Key) -> None:
        """Bring one Ingress's piece up to date."""
        ingress, known = world.knative_ingresses.get(key), self._pieces.get(key)
        if ingress is None or dig(ingress, "metadata", "annotations", CLASS_ANNOTATION) not in (None, CLASS):
            if known is not None:
                self._replace(key, None)
            return
        if (
            known is not None
            and known.wish == _wish(ingress)
            and known.state == _state(world, known.services, known.secrets)
        ):
            return
        backends.used, backends.asked = set(), set()
        piece = self._made(world, backends, key, ingress, known)
        backends.hold(piece.clusters - self._held)
        self._held |= piece.clusters
        self._replace(key, piece)

    def _made(self, world: World, backends: Backends, key: Key, ingress: Object, known: _Piece | None) -> _Piece:
        have = {rule: rule for rules in known.placed.values() for rule in rules} if known is not None else {}
        placed: dict[_Place, list[Rule]] = {}
        used: dict[str, Certificate] = {}

        def place(where: _Place, rules: Iterable[Rule]) -> None:
            kept = placed.setdefault(where, [])
            kept += [rule for rule in (have.setdefault(one, one) for one in rules) if rule not in kept]

        # the kind takes any spec: a malformed one must not keep everybody else's from being published
        try:
            certificates, ready = _certificates(world, ingress)
            rules = [(rule, _hosts(rule)) for rule in ingress["spec"].get("rules") or ()]
        except Exception:
            log.exception("Ingress %s of Knative cannot be translated", key)
            certificates, ready, rules = {}, False, []
        redirected = dig(ingress, "spec", "httpOption") == "Redirected"
        for rule, hosts in rules:
            try:
                made, complete = _rules(world, backends, key, ingress, rule)
                hash(tuple(made))  # a list or an object where a text belongs cannot be compared with what is there
            except Exception:
                log.exception("Ingress %s of Knative cannot be translated", key)
                ready = False
                continue
            ready = ready and complete
            internal = rule.get("visibility") == "ClusterLocal"
            for host in hosts:
                place(_Place("private", host), made)
                certificate = certificates.get(host)
                if certificate is not None:
                    used[host] = certificate
                    place(_Place("sealed" if internal else "secure", host), made)
                if internal:
                    continue
                if certificate is not None and redirected:
                    place(_Place("public", host), [Rule(Match(), self._to_https(), name=f"knative/{key}")])
                else:
                    place(_Place("public", host), made)
        services, secrets = frozenset(backends.asked), frozenset(_asked_secrets(ingress))
        state, status = _state(world, services, secrets), _status(ingress, ready)
        return _Piece(_wish(ingress), state, secrets, services, frozenset(backends.used), placed, used, status)

    def _replace(self, key: Key, piece: _Piece | None) -> None:
        """Put a piece in the place of what was known under its key; None takes that away."""
        known = self._pieces.pop(key, None)
        if piece is not None:
            self._pieces[key] = piece
        self._result.tell((KNATIVE_INGRESSES, key), None if piece is None else piece.status)
        old, new = (known.placed if known else {}), (piece.placed if piece else {})
        self._clusters.update(piece.clusters if piece else ())
        self._clusters.subtract(known.clusters if known else ())
        self._clusters += Counter()  # forgets those that are at zero
        self._claims.update(new.keys())
        for where in new:
            before, after = old.get(where), new[where]
            if before is None or list(map(id, before)) != list(map(id, after)):
                host = self._listener(where).host(where.host)
                host.remove(before or ())
                host.add(after)
        for where in old:
            self._claims[where] -= 1
            if where not in new:
                self._listener(where).host(where.host).remove(old[where])
            if not self._claims[where]:
                del self._claims[where]
                self._listener(where).drop_empty(where.host)
                self._secure.pop(where, None)
        for where in {*old, *new} & self._secure.keys():
            self._certify(where)

    def _certify(self, where: _Place) -> None:
        """Give a host's listener the certificates of the Ingresses that want it served."""
        pieces = [piece for _, piece in sorted(self._pieces.items()) if where in piece.placed]
        certificates = list(dict.fromkeys(piece.certificates[where.host] for piece in pieces))
        if self._secure[where].certificates != certificates:
            self._secure[where].certificates = certificates
            self._secure[where].reshaped()

    def _listener(self, where: _Place) -> Listener:
        port = self._ports.get(where.kind)
        if port is not None:
            if where not in self._secure:
                made = Listener("knative", where.host, self._address, port, "HTTPS", hostname=where.host)
                self._secure[where] = made
            return self._secure[where]
        return self._public if where.kind == "public" else self._private

    def _to_https(self) -> Redirect:
        return Redirect(301, scheme="https", port=self._https if self._https != HTTPS else None)


def _wish(ingress: Object) -> bytes:
    """A digest of what is looked at of an Ingress."""
    metadata = ingress["metadata"]
    looked_at = [metadata.get(name) for name in ("annotations", "generation", "creationTimestamp")]
    return _digest([ingress.get("spec"), *looked_at])


def _state(world: World, services: frozenset[Key], secrets: frozenset[Key]) -> bytes:
    """A digest of what is looked at of these Services and Secrets."""
    found: list[Any] = []
    for service in sorted(services):
        ports = dig(world.services.get(service), "spec", "ports")
        found.append((service, ports, _asks_gate(world, service)))
    found += [world.secrets.get(key) for key in sorted(secrets)]
    return _digest(found)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).digest()


def _asked_secrets(ingress: Object) -> list[Key]:
    """Secrets an Ingress names, as far as it is well-formed."""
    entries = dig(ingress, "spec", "tls")
    if not isinstance(entries, list):
        return []
    namespace = ingress["metadata"]["namespace"]
    entries = [one for one in entries if isinstance(one, dict)]
    named = [(one.get("secretNamespace") or namespace, one.get("secretName")) for one in entries]
    return [Key(place, name) for place, name in named if isinstance(place, str) and isinstance(name, str)]


def _hosts(rule: Mapping[str, Any]) -> list[str]:
    """The hosts of a rule, or of an entry for TLS. Raises TypeError: they are no list of names."""
    hosts = rule.get("hosts") or []
    if not isinstance(hosts, list) or not all(isinstance(one, str) and one.isprintable() for one in hosts):
        raise TypeError("hosts is no list of names")
    return [one.lower() for one in hosts]  # for Envoy two that differ in case are one host named twice


def _certificates(world: World, ingress: Object) -> tuple[dict[str, Certificate], bool]:
    """Certificates by host, and whether all that are asked for are there."""
    found: dict[str, Certificate] = {}
    complete = True
    own = ingress["metadata"]["namespace"]
    for entry in ingress["spec"].get("tls") or ():
        key = Key(entry.get("secretNamespace") or own, entry["secretName"])
        if key.namespace != own:
            # whoever may write Ingresses in one namespace must not serve with the keys of another
            complete = False
            log.warning("Ingress %s of Knative names Secret %s of another namespace: refused", Key.of(ingress), key)
            continue
        secret = world.secret(key)
        read = read_certificate(key, secret) if secret is not None else None
        if isinstance(read, Certificate):
            found |= dict.fromkeys(_hosts(entry), read)
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
    gate = f"/{service.namespace}/{service.name}" if _asks_gate(world, service) else ""
    return Target(backends.cluster(service, port), weight, HeaderEdit(set=headers), gate=gate)


def _asks_gate(world: World, service: Key) -> bool:
    """A pod that is ready takes any number of requests unless its revision limits them: then there is nothing to wait for."""
    sks = world.serverless_services.get(service)
    limited = dig(sks, "metadata", "annotations", LIMIT_ANNOTATION) is not None
    return sks is not None and (limited or not _has_ready_pod(world, service))


def _has_ready_pod(world: World, service: Key) -> bool:
    for one in world.slices(service):
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
