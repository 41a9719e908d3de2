"""Following references of the Gateway API: grants across namespaces, backends, certificates."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sampan.kube.objects import Key, Object, dig
from sampan.parts.traffic.model import Backend, Certificate, Endpoint, UpstreamTls
from sampan.parts.traffic.world import World, by_age

GROUP = "gateway.networking.k8s.io"

UNION_SCALE = 1_000_000
"""Sum of the endpoints' weights in a cluster over several backends."""
RSA_BITS = 2048
CURVES = ("secp256r1", "secp384r1", "secp521r1")

Stream = Literal["TCP", "UDP"]


class Problem(NamedTuple):
    """Why a reference does not resolve: the condition's reason and message."""

    reason: str
    message: str


class Origin(NamedTuple):
    """Who refers."""

    group: str
    kind: str
    namespace: str


def granted(world: World, origin: Origin, group: str, kind: str, target: Key) -> bool:
    """A ReferenceGrant in the target's namespace allows the reference (none is needed within one namespace)."""
    if origin.namespace == target.namespace:
        return True
    for key, grant in world.reference_grants.items():
        if key.namespace != target.namespace:
            continue
        allowed_from = any(
            (one.get("group") or "", one["kind"], one["namespace"]) == (origin.group, origin.kind, origin.namespace)
            for one in grant["spec"].get("from") or ()
        )
        allowed_to = any(
            (one.get("group") or "") == group and one["kind"] == kind and one.get("name") in (None, "", target.name)
            for one in grant["spec"].get("to") or ()
        )
        if allowed_from and allowed_to:
            return True
    return False


class Recipe(NamedTuple):
    """How a cluster was asked for."""

    service: Key
    port: Object
    grpc: bool
    stream: Stream | None


class Backends:
    """Resolves backend references into clusters, each made once and kept while somebody holds it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._version = -1
        self._recipes: dict[str, Recipe] = {}
        self._by_service: dict[Key, set[str]] = {}
        self._unions: dict[str, tuple[tuple[str, int], ...]] = {}
        """(cluster, weight) of what clusters over several backends consist of."""
        self._holders: Counter[str] = Counter()
        self.made: dict[str, Backend] = {}
        self.used: set[str] = set()
        """Clusters asked for; the caller empties it to see which a piece of work needs."""
        self.asked: set[Key] = set()
        """Services asked for, also those that do not exist; likewise."""
        self.policies = TlsPolicies(world)

    def follow(self) -> None:
        """Bring the clusters in step with the world's changes; to be called before anything is resolved."""
        if self._version != self._world.version:
            self._version = self._world.version
            self.policies = TlsPolicies(self._world)
            services = set(self._by_service)
        else:
            services = self._world.changed.services | self._world.changed.endpoints
        for service in services:
            for name in self._by_service.get(service, ()):
                recipe = self._recipes[name]
                port = self._world.service_port(service, recipe.port["port"], recipe.stream or "TCP")
                if port is not None:  # else whoever holds it looks at the Service anew, too
                    self._make(name, recipe._replace(port=port))
        if services:
            for name in self._unions:
                self._unite(name)

    def hold(self, names: Iterable[str]) -> None:
        """Keep these clusters until they are released as often."""
        self._holders.update(names)

    def release(self, names: Iterable[str]) -> None:
        """Let go of clusters; those nobody holds are forgotten."""
        for name in names:
            self._holders[name] -= 1
            if self._holders[name] <= 0:
                del self._holders[name], self.made[name]
                if self._unions.pop(name, None) is not None:
                    continue
                service = self._recipes.pop(name).service
                self._by_service[service].discard(name)
                if not self._by_service[service]:
                    del self._by_service[service]

    def resolve(
        self, origin: Origin, reference: Mapping[str, Any], *, grpc: bool = False, stream: Stream | None = None
    ) -> str | Problem:
        """The cluster name behind a backendRef, or why there is none. ``stream``: for connections or datagrams as they are."""
        group, kind = reference.get("group") or "", reference.get("kind") or "Service"
        key = Key(reference.get("namespace") or origin.namespace, reference["name"])
        if (group, kind) != ("", "Service"):
            return Problem("InvalidKind", f"backend kind {group}/{kind} is not supported")
        self.asked.add(key)
        if not granted(self._world, origin, group, kind, key):
            return Problem("RefNotPermitted", f"Service {key} may not be referred to from namespace {origin.namespace}")
        if reference.get("port") is None:
            return Problem("BackendNotFound", f"a reference to Service {key} needs a port")
        port = self._world.service_port(key, reference["port"], stream or "TCP")
        if port is None:
            what = (
                f"port {reference['port']} of Service {key}"
                if self._world.services.get(key) is not None
                else f"Service {key}"
            )
            return Problem("BackendNotFound", f"{what} does not exist")
        return self.cluster(key, port, grpc=grpc, stream=stream)

    def cluster(self, service: Key, port: Object, *, grpc: bool = False, stream: Stream | None = None) -> str:
        """The cluster of a Service port; one per protocol it is spoken to in."""
        protocol = "tcp" if stream else _protocol(port, grpc=grpc)
        suffix = f"/{stream.lower()}" if stream else {"http1": "", "h2c": "/h2"}[protocol]
        name = f"{service.namespace}/{service.name}/{port['port']}{suffix}"
        self.used.add(name)
        self.asked.add(service)
        if name not in self.made:
            self._by_service.setdefault(service, set()).add(name)
            self._make(name, Recipe(service, port, grpc, stream))
        return name

    def union(self, parts: tuple[tuple[str, int], ...]) -> str | None:
        """One cluster over the endpoints of several, (name, weight) each; None where they are not spoken to in one way.

        Sessions need it: the data plane chooses among clusters anew for every request, within one it knows whose turn it is.
        """
        first, *others = (self.made[name] for name, _ in parts)
        if any(_spoken_to(one) != _spoken_to(first) for one in others):
            return None
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()
        name = f"{first.name}+{digest}"
        self.used.add(name)
        if name not in self.made:
            self._unions[name] = parts
            self._unite(name)
        return name

    def _unite(self, name: str) -> None:
        """Make a cluster over several: each part's weight is spread over its endpoints."""
        parts = [(self.made[part], weight) for part, weight in self._unions[name] if part in self.made]
        shares: Counter[tuple[str, int]] = Counter()
        whole = sum(weight for _, weight in parts)
        for backend, weight in parts:
            live = [one for one in backend.endpoints if one.healthy] or backend.endpoints
            for one in live:
                shares[one.address, one.port] += max(1, round(weight / whole / len(live) * UNION_SCALE))
        endpoints = tuple(Endpoint(*place, weight=share) for place, share in sorted(shares.items()))
        # parts that have come to differ are told of when their routes are looked at, which is now
        broken = len({_spoken_to(backend) for backend, _ in parts}) != 1
        made = replace(parts[0][0], name=name, endpoints=endpoints, broken=broken or parts[0][0].broken)
        if made != self.made.get(name):
            self.made[name] = made

    def _make(self, name: str, recipe: Recipe) -> None:
        self._recipes[name] = recipe
        service, port, _, stream = recipe
        tls, broken = self.policies.upstream_tls(service, port) if not stream else (None, False)
        made = Backend(
            name,
            self._world.endpoints(service, port),
            protocol="tcp" if stream else "h2c" if name.endswith("/h2") else "http1",
            tls=tls,
            broken=broken,
            affinity=dig(self._world.services.get(service), "spec", "sessionAffinity") == "ClientIP",
        )
        if made != self.made.get(name):
            self.made[name] = made


def _spoken_to(backend: Backend) -> tuple[object, ...]:
    """How a backend is connected to, whatever its endpoints are."""
    return backend.protocol, backend.tls, backend.broken, backend.affinity


def _protocol(port: Mapping[str, Any], *, grpc: bool) -> str:
    declared = port.get("appProtocol") or ""
    name = port.get("name") or ""
    if grpc or declared in ("kubernetes.io/h2c", "grpc", "http2", "h2c"):
        return "h2c"
    if not declared and (name in ("h2c", "grpc", "http2") or name.startswith(("h2c-", "grpc-", "http2-"))):
        return "h2c"
    return "http1"


class TlsPolicies:
    """BackendTLSPolicies by the Service they target."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_service: dict[Key, list[Object]] = {}
        for key, policy in sorted(world.backend_tls_policies.items(), key=by_age):
            for target in policy["spec"].get("targetRefs") or ():
                if (target.get("group") or "", target["kind"]) == ("", "Service"):
                    self._by_service.setdefault(Key(key.namespace, target["name"]), []).append(policy)

    def of(self, service: Key, port: Mapping[str, Any]) -> Object | None:
        """The policy in force for a Service port: one naming the port before one for the whole Service, then the oldest."""
        whole = None
        for policy in self._by_service.get(service, ()):
            for target in policy["spec"]["targetRefs"]:
                if target["name"] != service.name:
                    continue
                if target.get("sectionName") and target["sectionName"] == port.get("name"):
                    return policy
                if not target.get("sectionName") and whole is None:
                    whole = policy
        return whole

    def upstream_tls(self, service: Key, port: Mapping[str, Any]) -> tuple[UpstreamTls | None, bool]:
        """(TLS settings, the policy is broken) for a Service port."""
        policy = self.of(service, port)
        if policy is None:
            return None, False
        authority = self.authority(policy)
        if isinstance(authority, Problem):
            return None, True
        validation = policy["spec"]["validation"]
        names = tuple(
            ("URI", one["uri"]) if one["type"] == "URI" else ("DNS", one["hostname"])
            for one in validation.get("subjectAltNames") or ()
        )
        return UpstreamTls(validation["hostname"], authority, names), False

    def authority(self, policy: Mapping[str, Any]) -> bytes | Problem | None:
        """The PEM bundle a policy trusts (None: the system's), or what is wrong with it."""
        validation = policy["spec"]["validation"]
        namespace = policy["metadata"]["namespace"]
        if validation.get("wellKnownCACertificates"):
            return None
        bundles = []
        for reference in validation.get("caCertificateRefs") or ():
            if (reference.get("group") or "", reference["kind"]) != ("", "ConfigMap"):
                return Problem("InvalidKind", f"CA certificate kind {reference['kind']} is not supported")
            bundle = authority_bundle(self._world, Key(namespace, reference["name"]))
            if isinstance(bundle, Problem):
                return bundle
            bundles.append(bundle)
        if not bundles:
            return Problem("InvalidCACertificateRef", "the policy names no CA certificate")
        return b"\n".join(bundles)


def authority_bundle(world: World, key: Key) -> bytes | Problem:
    """The PEM bundle of CA certificates in a ConfigMap's ``ca.crt``."""
    from cryptography import x509  # eight megabytes that most platforms never need

    text = dig(world.config_map(key), "data", "ca.crt")
    if not text:
        return Problem("InvalidCACertificateRef", f"ConfigMap {key} does not exist or has no ca.crt")
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        return Problem("InvalidCACertificateRef", f"ca.crt of ConfigMap {key} is no certificate: {error}")
    bundle: bytes = text.encode()
    return bundle


def client_authority(world: World, gateway: Object, port: int) -> tuple[bytes | Problem | None, bool]:
    """(who signs the client certificates a Gateway's HTTPS port asks for, whether they are demanded); None: nobody is asked."""
    frontend = dig(gateway, "spec", "tls", "frontend", default={})
    chosen = next((one["tls"] for one in frontend.get("perPort") or () if one["port"] == port), frontend.get("default"))
    validation = dig(chosen, "validation")
    if not validation:
        return None, False
    key = Key.of(gateway)
    bundles = []
    for reference in validation["caCertificateRefs"]:
        target = Key(reference.get("namespace") or key.namespace, reference["name"])
        if (reference.get("group") or "", reference["kind"]) != ("", "ConfigMap"):
            return Problem(
                "InvalidCACertificateKind", f"CA certificate kind {reference['kind']} is not supported"
            ), True
        if not granted(world, Origin(GROUP, "Gateway", key.namespace), "", "ConfigMap", target):
            return Problem("RefNotPermitted", f"ConfigMap {target} may not be referred to from {key.namespace}"), True
        bundle = authority_bundle(world, target)
        if isinstance(bundle, Problem):
            return bundle, True
        bundles.append(bundle)
    return b"\n".join(bundles), validation.get("mode") != "AllowInsecureFallback"


def certificate(world: World, origin: Origin, reference: Mapping[str, Any]) -> Certificate | Problem:
    """The certificate behind a certificateRef."""
    group, kind = reference.get("group") or "", reference.get("kind") or "Secret"
    key = Key(reference.get("namespace") or origin.namespace, reference["name"])
    if (group, kind) != ("", "Secret"):
        return Problem("InvalidCertificateRef", f"certificate kind {group}/{kind} is not supported")
    if not granted(world, origin, group, kind, key):
        return Problem("RefNotPermitted", f"Secret {key} may not be referred to from namespace {origin.namespace}")
    secret = world.secret(key)
    if secret is None:
        return Problem("InvalidCertificateRef", f"Secret {key} does not exist")
    return read_certificate(key, secret)


def unusable(key: Any) -> str:
    """Why the data plane cannot serve with this private key; empty where it can."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < RSA_BITS:
        return f"RSA keys need {RSA_BITS} bits, this one has {key.key_size}"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name not in CURVES:
        return f"no client speaks the curve {key.curve.name}; {', '.join(CURVES)} are understood"
    return ""


def read_certificate(key: Key, secret: Mapping[str, Any]) -> Certificate | Problem:
    """Certificate and key of a ``kubernetes.io/tls`` Secret, checked to be a pair Envoy will take."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    data = secret.get("data") or {}
    try:
        chain, private = (
            base64.b64decode(data["tls.crt"], validate=True),
            base64.b64decode(data["tls.key"], validate=True),
        )
        parsed = x509.load_pem_x509_certificates(chain)
        loaded = serialization.load_pem_private_key(private, None)
    except KeyError as error:
        return Problem("InvalidCertificateRef", f"Secret {key} has no {error.args[0]}")
    except (ValueError, TypeError, binascii.Error) as error:
        return Problem("InvalidCertificateRef", f"Secret {key} holds no valid certificate and key: {error}")
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if parsed[0].public_key().public_bytes(encoding, form) != loaded.public_key().public_bytes(encoding, form):
        return Problem("InvalidCertificateRef", f"the key in Secret {key} does not belong to its certificate")
    if why := unusable(loaded):
        return Problem("InvalidCertificateRef", f"Secret {key} cannot be used: {why}")
    return Certificate(f"{key.namespace}/{key.name}", chain, private)
