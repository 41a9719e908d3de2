"""Ingress: hosts and paths to Services, on the gateway's HTTP and HTTPS ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.client.resources import INGRESSES
from sampan.kube.objects import Key, Object, dig
from sampan.parts.traffic.model import Certificate, Forward, Listener, Match, PathMatch, Respond, Rule, Target
from sampan.parts.traffic.references import Backends, Problem, read_certificate
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.world import World

CONTROLLER = "sampan.dev/ingress-controller"
"""``spec.controller`` of the IngressClasses we serve."""
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
LEGACY_CLASS = "kubernetes.io/ingress.class"


def translate(world: World, backends: Backends, address: str, http_port: int, https_port: int) -> Result:
    """Listeners for all Ingresses of our classes, and their load balancer status."""
    result = Result()
    plain = Listener("ingress", "http", address, http_port, "HTTP")
    secure: dict[str, Listener] = {}
    for key, ingress in sorted(world.ingresses.items(), key=_age):
        if not _is_ours(world, ingress):
            continue
        rules = _rules(world, backends, key, ingress)
        for host, one in rules:
            plain.host(host).rules.append(one)
        certificates = _certificates(world, key, ingress)
        for host in {host for host, _ in rules} & certificates.keys():
            listener = secure.setdefault(host, Listener("ingress", host, address, https_port, "HTTPS", hostname=host))
            if certificates[host] not in listener.certificates:
                listener.certificates.append(certificates[host])
            listener.host(host).rules.extend(rule for rule_host, rule in rules if rule_host == host)
        status = {"loadBalancer": {"ingress": [{"ip": address}]}}
        result.statuses[INGRESSES, key] = status
    if plain.hosts:
        result.listeners.append(plain)
    result.listeners += secure.values()
    return result


def _age(item: tuple[Key, Object]) -> tuple[str, Key]:
    return item[1]["metadata"].get("creationTimestamp") or "", item[0]


def _is_ours(world: World, ingress: Object) -> bool:
    name = ingress["spec"].get("ingressClassName") or dig(ingress, "metadata", "annotations", LEGACY_CLASS)
    ours = {key.name: one for key, one in world.ingress_classes.items() if one["spec"].get("controller") == CONTROLLER}
    if name:
        return name in ours
    return any(dig(one, "metadata", "annotations", DEFAULT_CLASS) == "true" for one in ours.values())


def _rules(world: World, backends: Backends, key: Key, ingress: Object) -> list[tuple[str, Rule]]:
    spec, created = ingress["spec"], ingress["metadata"].get("creationTimestamp") or ""
    name = f"ingress/{key}"
    found: list[tuple[str, Rule]] = []
    for position, rule in enumerate(spec.get("rules") or ()):
        for index, path in enumerate(dig(rule, "http", "paths", default=[])):
            kind = "Exact" if path.get("pathType") == "Exact" else "Prefix"
            match = Match(PathMatch(kind, path.get("path") or "/"))  # type: ignore[arg-type]
            order = (created, key.namespace, key.name, position, index)
            found.append(
                (
                    rule.get("host") or "*",
                    Rule(match, _action(world, backends, key, path["backend"]), order=order, name=name),
                )
            )
    if spec.get("defaultBackend"):
        hosts = {rule.get("host") or "*" for rule in spec.get("rules") or ()} or {"*"}
        action = _action(world, backends, key, spec["defaultBackend"])
        order = (created, key.namespace, key.name, 1 << 30, 0)
        found += [(host, Rule(Match(), action, order=order, name=name)) for host in hosts | {"*"}]
    return found


def _action(world: World, backends: Backends, key: Key, backend: Mapping[str, Any]) -> Forward | Respond:
    reference = backend.get("service")
    if reference is None:
        return Respond(503)
    service = Key(key.namespace, reference["name"])
    wanted = reference.get("port") or {}
    port = world.service_port(service, wanted.get("name") or wanted.get("number") or "")
    if port is None:
        return Respond(503)
    cluster = backends.cluster(service, port)
    affinity = dig(world.services.get(service), "spec", "sessionAffinity") == "ClientIP"
    return Forward((Target(cluster),), hash_source_ip=affinity)


def _certificates(world: World, key: Key, ingress: Object) -> dict[str, Certificate]:
    """Certificates by host; one that cannot be read leaves its hosts without TLS."""
    found: dict[str, Certificate] = {}
    for entry in ingress["spec"].get("tls") or ():
        name = entry.get("secretName")
        secret = world.secrets.get(Key(key.namespace, name)) if name else None
        if secret is None:
            continue
        read = read_certificate(Key(key.namespace, name), secret)
        if not isinstance(read, Problem):
            found |= dict.fromkeys(entry.get("hosts") or (), read)
    return found
