"""Ingress: hosts and paths to Services, on the gateway's HTTP and HTTPS ports."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from sampan.kube.client.resources import INGRESSES
from sampan.kube.objects import Key, Object, dig
from sampan.parts.traffic.model import (
    Certificate,
    Forward,
    Listener,
    Match,
    NameMatch,
    PathMatch,
    Respond,
    Rule,
    Target,
)
from sampan.parts.traffic.references import Backends, Problem, read_certificate
from sampan.parts.traffic.sources.gateway_api import Result
from sampan.parts.traffic.sources.whole import WholeSource
from sampan.parts.traffic.world import World, by_age

log = logging.getLogger(__name__)

CONTROLLER = "sampan.dev/ingress-controller"
"""``spec.controller`` of the IngressClasses we serve."""
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
LEGACY_CLASS = "kubernetes.io/ingress.class"


class IngressSource(WholeSource):
    """Translates, and keeps what it made as long as nothing changes that Ingresses depend on."""

    def __init__(self, address: str, http_port: int, https_port: int) -> None:
        super().__init__()
        self._address, self._http, self._https = address, http_port, https_port
        self._seen: tuple[int, Certificate | None] = (-1, None)

    def translate(self, world: World, backends: Backends, default: Certificate | None = None) -> Result:
        """Listeners for all Ingresses of our classes, and their load balancer status.

        ``default``: the certificate for hosts that have none of their own; without it they are served in the clear only.
        """
        changed = world.changed.ingresses or world.changed.services & self._services
        if self._seen == (world.version, default) and not changed:
            return self._kept()
        self._seen = (world.version, default)
        return self._anew(backends, lambda: self._translate(world, backends, default))

    def _translate(self, world: World, backends: Backends, default: Certificate | None) -> Result:
        result = Result()
        plain = Listener("ingress", "http", self._address, self._http, "HTTP")
        fallback = Listener("ingress", "https", self._address, self._https, "HTTPS")
        if default is not None:
            fallback.certificates.append(default)
        secure: dict[str, Listener] = {}
        known, self._rules = self._rules, {}
        for key, ingress in sorted(world.ingresses.items(), key=by_age):
            if not _is_ours(world, ingress):
                continue
            try:
                certificates = _certificates(world, key, ingress, result)
                rules = _rules(world, backends, key, ingress)
            except Exception as error:
                log.exception("Ingress %s cannot be translated", key)
                result.warnings.append((ingress, "CannotTranslate", f"cannot be translated: {error!r}"))
                continue
            for host, fresh in rules:
                rule = self._rules[fresh] = known.get(fresh, fresh)  # its wire form is there already
                plain.host(host).add([rule])
                certificate = _certificate_for(host, certificates)
                if certificate is None:
                    fallback.host(host).add([rule])
                    continue
                pattern = "" if host == "*" else host
                listener = secure.setdefault(
                    pattern, Listener("ingress", host, self._address, self._https, "HTTPS", hostname=pattern)
                )
                if certificate not in listener.certificates:
                    listener.certificates.append(certificate)
                listener.host(host).add([rule])
            ports = [{"port": port, "protocol": "TCP"} for port in (self._http, self._https)]
            result.statuses[INGRESSES, key] = {"loadBalancer": {"ingress": [{"ip": self._address, "ports": ports}]}}
        if plain.hosts:
            result.listeners.append(plain)
        if fallback.hosts and default is not None:
            result.listeners.append(fallback)
        result.listeners += secure.values()
        return result


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
        host = (rule.get("host") or "*").lower()
        for index, path in enumerate(dig(rule, "http", "paths", default=[])):
            kind = "Exact" if path.get("pathType") == "Exact" else "Prefix"
            match = Match(PathMatch(kind, path.get("path") or "/"), headers=_one_label(host))  # type: ignore[arg-type]
            order = (created, key.namespace, key.name, position, index)
            found.append((host, Rule(match, _action(world, backends, key, path["backend"]), order=order, name=name)))
    if spec.get("defaultBackend"):
        hosts = {(rule.get("host") or "*").lower() for rule in spec.get("rules") or ()}
        action = _action(world, backends, key, spec["defaultBackend"])
        order = (created, key.namespace, key.name, 1 << 30, 0)
        for host in sorted(hosts | {"*"}):
            found.append((host, Rule(Match(headers=_one_label(host)), action, order=order, name=name)))
    return found


def _one_label(host: str) -> tuple[NameMatch, ...]:
    """An Ingress's wildcard stands for exactly one label, where the data plane's stands for one or more."""
    if not host.startswith("*."):
        return ()
    return (NameMatch(":authority", "Regex", rf"[^.:]+{re.escape(host[1:])}\.?(:[0-9]+)?"),)


def _action(world: World, backends: Backends, key: Key, backend: Mapping[str, Any]) -> Forward | Respond:
    reference = backend.get("service")
    if reference is None:
        return Respond(503)
    service = Key(key.namespace, reference["name"])
    backends.asked.add(service)
    wanted = reference.get("port") or {}
    port = world.service_port(service, wanted.get("name") or wanted.get("number") or "")
    if port is None:
        return Respond(503)
    cluster = backends.cluster(service, port)
    affinity = dig(world.services.get(service), "spec", "sessionAffinity") == "ClientIP"
    return Forward((Target(cluster),), hash_source_ip=affinity)


def _certificates(world: World, key: Key, ingress: Object, result: Result) -> dict[str, Certificate]:
    """Certificates by host (``*``: every host); what is wrong with one is told in an event."""
    found: dict[str, Certificate] = {}
    for entry in ingress["spec"].get("tls") or ():
        name = entry.get("secretName")
        if not name:
            continue  # the default certificate is asked for
        secret = world.secret(Key(key.namespace, name))
        read: Certificate | Problem
        if secret is None:
            read = Problem("InvalidCertificateRef", f"Secret {key.namespace}/{name} does not exist")
        else:
            read = read_certificate(Key(key.namespace, name), secret)
        if isinstance(read, Problem):
            result.warnings.append((ingress, "InvalidCertificate", read.message))
        else:
            found |= dict.fromkeys((host.lower() for host in entry.get("hosts") or ("*",)), read)
    return found


def _certificate_for(host: str, certificates: Mapping[str, Certificate]) -> Certificate | None:
    wildcard = f"*.{host.partition('.')[2]}"
    return certificates.get(host) or certificates.get(wildcard) or certificates.get("*")
