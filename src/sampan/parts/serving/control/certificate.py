"""Certificate: what Routes and DomainMappings ask for becomes a Secret signed by the platform's authority.

The authority vouches for the platform's own servers too, so a namespace gets no certificate for any name in the cluster but its
own Services'.

The internal Certificate names its hosts and the Secret it wants; the Secret belongs to it and goes with it. A certificate is
issued anew in its last third. Certificates of another class are somebody else's to issue.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from ipaddress import ip_address

from sampan.kernel.certificates import Authority, CertificateError, KeyPair
from sampan.kube.client.resources import NAMESPACES, SECRETS
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, controller_of, copy, owner_reference
from sampan.parts.serving import keys
from sampan.parts.serving.configmaps import LOCAL_DOMAIN
from sampan.parts.serving.resources import CERTIFICATES

TLS_OFF = ("TLSNotEnabled", "external-domain-tls is not enabled")
TLS_OFF_INSIDE = ("TLSNotEnabled", "TLS is not enabled for cluster-local")
CLUSTER_NAMES = (".svc", ".cluster.local")
"""How names end that mean nothing outside the cluster."""
LOOK_AGAIN = 12 * 3600.0
"""Seconds between looks at whether a certificate is due."""


EXTERNAL = "external-domain"
CLUSTER_LOCAL = "cluster-local-domain"


async def ask(
    controller: Controller, owner: Object, name: str, hosts: list[str], domain: str, issuer: str, kind: str = EXTERNAL
) -> Object:
    """The Certificate ``name`` for hosts, asked for on behalf of its owner.

    Raises:
        NotOwnedError: it belongs to somebody else.
    """
    labels = {keys.ROUTE: owner["metadata"]["name"]} if owner.get("kind") == "Route" else {}
    labels[keys.CERTIFICATE_TYPE] = kind
    metadata = {"name": name, "namespace": owner["metadata"]["namespace"], "labels": labels}
    wanted: Object = {
        "apiVersion": "networking.internal.knative.dev/v1alpha1",
        "kind": "Certificate",
        "metadata": {**metadata, "annotations": {keys.CERTIFICATE_CLASS: issuer}},
        "spec": {"dnsNames": sorted(hosts), "domain": domain, "secretName": name},
    }
    return await ensure(controller, CERTIFICATES, owner, wanted, exact=())


def is_reserved(name: str, namespace: str, is_namespace: Callable[[str], bool]) -> bool:
    """A name or address that is not for a namespace to have a certificate for.

    The platform's own servers may have it, or the Services of other namespaces: of the names in the cluster a namespace has those
    of its own Services.
    """
    plain = name.lower().rstrip(".")
    with contextlib.suppress(ValueError):
        ip_address(plain)
        return True
    inside = plain.endswith(CLUSTER_NAMES)
    service, _, place = plain.removesuffix(f".{LOCAL_DOMAIN}").removesuffix(".svc").partition(".")
    if not place or (service, place) == ("kubernetes", "default"):
        return True
    if inside:
        return place != namespace
    return "." not in place and place != namespace and is_namespace(place)


def entry(certificate: Object) -> Object:
    """What an internal Ingress says of a Certificate that is there."""
    spec = certificate["spec"]
    namespace = certificate["metadata"]["namespace"]
    return {"hosts": list(spec["dnsNames"]), "secretName": spec["secretName"], "secretNamespace": namespace}


class CertificateController(Controller):
    """Certificates of networking.internal.knative.dev."""

    name = "serving-certificate-controller"

    def __init__(self, context: ControlContext, authority: Authority) -> None:
        super().__init__(context)
        self._authority = authority
        self._leaves: dict[Key, str] = {}
        """What the authority keeps for each Certificate."""

    def sources(self) -> list[Source]:
        return [For(CERTIFICATES), Owns(SECRETS, "Certificate")]

    async def reconcile(self, key: Key) -> float | None:
        certificate = self.informer(CERTIFICATES).get(key)
        if certificate is None:
            await self._forget(key)
            return None
        if certificate["metadata"].get("deletionTimestamp"):
            return None
        found = (certificate["metadata"].get("annotations") or {}).get(keys.CERTIFICATE_CLASS)
        if found not in (None, keys.OUR_CERTIFICATE_CLASS):
            return None
        conditions = ConditionSet(certificate, (), self.clock.now())
        status: Object = copy(certificate.get("status") or {})
        names: list[str] = list(certificate["spec"].get("dnsNames") or ())
        try:
            if not names:
                raise CertificateError("spec.dnsNames is empty")
            if refused := next((one for one in names if self._is_refused(one, key.namespace)), ""):
                raise CertificateError(
                    f"{refused} is no name that is visible outside or of a Service of {key.namespace}"
                )
            leaf = f"knative-{certificate['metadata']['uid']}"
            if self._leaves.get(key) != leaf:
                await self._forget(key)
                self._leaves[key] = leaf
            pair = await asyncio.to_thread(self._authority.server_certificate, names, leaf)
            await self._write(certificate, await asyncio.to_thread(self._content, pair))
        except NotOwnedError as error:
            conditions.false("Ready", "NotOwned", str(error))
        except CertificateError as error:
            conditions.false("Ready", "CertificateProvisionFailed", str(error))
        else:
            conditions.true("Ready")
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = certificate["metadata"].get("generation")
        if status != (certificate.get("status") or {}):
            await self.client.update(CERTIFICATES, {**certificate, "status": status}, subresource="status")
        return LOOK_AGAIN

    def _is_refused(self, name: str, namespace: str) -> bool:
        # the API server may be known outside, too (its setting ``names``)
        return is_reserved(name, namespace, self._is_namespace) or self._authority.shows(name)

    def _is_namespace(self, name: str) -> bool:
        return self.informer(NAMESPACES).get(Key("", name)) is not None

    async def _forget(self, key: Key) -> None:
        leaf = self._leaves.pop(key, None)
        if leaf is not None:
            await asyncio.to_thread(self._authority.forget, leaf)

    def _content(self, pair: KeyPair) -> dict[str, str]:
        chain = pair.certificate.read_bytes() + self._authority.certificate_pem
        return {
            "tls.crt": base64.b64encode(chain).decode(),
            "tls.key": base64.b64encode(pair.key.read_bytes()).decode(),
            "ca.crt": base64.b64encode(self._authority.certificate_pem).decode(),
        }

    async def _write(self, certificate: Object, data: dict[str, str]) -> None:
        metadata, name = certificate["metadata"], certificate["spec"]["secretName"]
        current = self.informer(SECRETS).get(Key(metadata["namespace"], name))
        if current is None:
            secret: Object = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": {keys.CERTIFICATE_UID: metadata["uid"]},
                    "ownerReferences": [owner_reference(certificate)],
                },
                "data": data,
            }
            await self.client.create(SECRETS, secret, metadata["namespace"])
            return
        owner = controller_of(current)
        if owner is None or owner["uid"] != metadata["uid"]:
            raise NotOwnedError("Secret", name)
        if current.get("data") != data:
            await self.client.update(SECRETS, {**current, "data": data})
