"""DomainMapping: a domain of one's own for a Service.

A domain is one namespace's at a time, by a ClusterDomainClaim. A claim that was made for a mapping goes with it, and the mapping
of another namespace that waited for the domain has it then.
"""

from __future__ import annotations

from sampan.kube.client.resources import CONFIG_MAPS
from sampan.kube.client.resources import SERVICES as CORE_SERVICES
from sampan.kube.control.conditions import ConditionSet, is_ready
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.indexes import Lookup
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.kube.status import ApiError
from sampan.parts.serving import keys
from sampan.parts.serving.configmaps import LOCAL_DOMAIN, Config, everything
from sampan.parts.serving.control.certificate import TLS_OFF, ask, entry
from sampan.parts.serving.resources import (
    CERTIFICATES,
    CLUSTER_DOMAIN_CLAIMS,
    DOMAIN_MAPPINGS,
    INGRESSES,
    ROUTES,
    SERVICES,
)

TLS_BROUGHT = ("CertificateExternallyProvided", "TLS certificate was provided externally")
NOT_CLAIMED = ("DomainAlreadyClaimed", "The domain name is already in use by another DomainMapping")
_BY_TARGET = Lookup(
    "target",
    lambda one: [f"{one['metadata']['namespace']}/{name}"] if (name := dig(one, "spec", "ref", "name")) else [],
)
"""DomainMappings by what they lead to."""
_BY_NAME = Lookup("name", lambda one: [one["metadata"]["name"]])


class DomainMappingController(Controller):
    """DomainMappings of serving.knative.dev."""

    name = "domainmapping-controller"

    def __init__(self, context: ControlContext, config: Config) -> None:
        super().__init__(context)
        self._config = config

    def sources(self) -> list[Source]:
        return [
            For(DOMAIN_MAPPINGS),
            Watches(CONFIG_MAPS, everything(lambda: self.informer(DOMAIN_MAPPINGS))),
            Owns(INGRESSES, "DomainMapping"),
            Owns(CERTIFICATES, "DomainMapping"),
            Watches(SERVICES, self._mappings_to),
            Watches(ROUTES, self._mappings_to),
            Watches(INGRESSES, self._mappings_to),
            Watches(CLUSTER_DOMAIN_CLAIMS, self._mapping_of_claim),
        ]

    def _mappings_to(self, target: Object) -> list[Key]:
        return [Key.of(one) for one in _BY_TARGET(self.informer(DOMAIN_MAPPINGS), str(Key.of(target)))]

    def _mapping_of_claim(self, claim: Object) -> list[Key]:
        name, namespace = claim["metadata"]["name"], dig(claim, "spec", "namespace")
        waiting = {Key.of(one) for one in _BY_NAME(self.informer(DOMAIN_MAPPINGS), name)}
        return sorted(waiting | ({Key(namespace, name)} if namespace else set()))

    async def reconcile(self, key: Key) -> float | None:
        mapping = self.informer(DOMAIN_MAPPINGS).get(key)
        if mapping is None or mapping["metadata"].get("deletionTimestamp"):
            await self._release(key)
            return None
        dependents = ("DomainClaimed", "ReferenceResolved", "IngressReady", "CertificateProvisioned")
        conditions = ConditionSet(mapping, dependents, self.clock.now())
        status: Object = copy(mapping.get("status") or {})
        # nobody gets a certificate for a name that is another namespace's
        claimed = await self._claim(mapping, conditions)
        tls = await self._certify(mapping, conditions) if claimed else []
        status["url"] = f"{'https' if tls else 'http'}://{key.name}"
        status["address"] = {"url": status["url"]}
        if claimed:
            target = self._resolve(mapping, conditions)
            if target is not None:
                try:
                    ingress = await ensure(self, INGRESSES, mapping, self._ingress(mapping, target, tls), exact=())
                except NotOwnedError as error:
                    conditions.false("IngressReady", "NotOwned", str(error))
                else:
                    if dig(ingress, "status", "observedGeneration") == ingress["metadata"].get("generation"):
                        conditions.mirror("IngressReady", ingress.get("status"))
                    else:
                        message = "Waiting for load balancer to be ready"
                        conditions.unknown("IngressReady", "Uninitialized", message)
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = mapping["metadata"].get("generation")
        if status != (mapping.get("status") or {}):
            await self.client.update(DOMAIN_MAPPINGS, {**mapping, "status": status}, subresource="status")
        return None

    async def _certify(self, mapping: Object, conditions: ConditionSet) -> list[Object]:
        """The Ingress's ``tls``: a certificate of the user's own, or one that is asked for."""
        metadata = mapping["metadata"]
        annotations = metadata.get("annotations") or {}
        name, own = metadata["name"], dig(mapping, "spec", "tls", "secretName")
        if own:
            conditions.true("CertificateProvisioned", *TLS_BROUGHT)
            return [{"hosts": [name], "secretName": own, "secretNamespace": metadata["namespace"]}]
        if not self._config.external_tls(annotations):
            conditions.true("CertificateProvisioned", *TLS_OFF)
            return []
        try:
            certificate = await ask(self, mapping, name, [name], "", self._config.certificate_class(annotations))
        except NotOwnedError:
            text = f"There is an existing certificate {name} that we don't own."
            conditions.false("CertificateProvisioned", "CertificateNotOwned", text)
            return []
        if is_ready(certificate):
            conditions.true("CertificateProvisioned")
            return [entry(certificate)]
        if self._config.redirects(annotations):
            conditions.unknown("CertificateProvisioned", "CertificateNotReady", f"Certificate {name} is not ready.")
        else:
            text = f"Certificate {name} is not ready downgrade HTTP."
            conditions.true("CertificateProvisioned", "HTTPDowngrade", text)
        return []

    async def _claim(self, mapping: Object, conditions: ConditionSet) -> bool:
        """The domain belongs to the mapping's namespace; on one machine an unclaimed one is claimed where allowed."""
        namespace, name = Key.of(mapping)
        claim = self.informer(CLUSTER_DOMAIN_CLAIMS).get(Key("", name))
        automatic = self._config.data("config-network").get("autocreate-cluster-domain-claims", "true") == "true"
        if claim is None and automatic:
            wanted = {
                "apiVersion": "networking.internal.knative.dev/v1alpha1",
                "kind": "ClusterDomainClaim",
                "metadata": {"name": name, "labels": {keys.CLAIMED: "true"}},
                "spec": {"namespace": namespace},
            }
            try:
                claim = await self.client.create(CLUSTER_DOMAIN_CLAIMS, wanted)
            except ApiError as error:
                if not error.already_exists:
                    raise
                claim = await self.client.get(CLUSTER_DOMAIN_CLAIMS, name)
        if dig(claim, "spec", "namespace") != namespace:
            conditions.false("DomainClaimed", *NOT_CLAIMED)
            conditions.unknown("IngressReady", "IngressNotConfigured", "Ingress has not yet been reconciled.")
            return False
        conditions.true("DomainClaimed")
        return True

    async def _release(self, key: Key) -> None:
        """Give up the claim that was made for a mapping that is gone."""
        claim = self.informer(CLUSTER_DOMAIN_CLAIMS).get(Key("", key.name))
        made_here = dig(claim, "metadata", "labels", keys.CLAIMED) is not None
        if claim is None or not made_here or dig(claim, "spec", "namespace") != key.namespace:
            return
        try:
            await self.client.delete(CLUSTER_DOMAIN_CLAIMS, key.name)
        except ApiError as error:
            if not error.not_found:
                raise

    def _resolve(self, mapping: Object, conditions: ConditionSet) -> list[Object] | None:
        """The ingress paths of what the mapping refers to."""
        namespace = mapping["metadata"]["namespace"]
        reference = mapping["spec"]["ref"]
        key = Key(namespace, reference["name"])
        if reference["kind"] in ("Service", "Route") and reference["apiVersion"].startswith("serving.knative.dev/"):
            host = f"{key.name}.{namespace}.{LOCAL_DOMAIN}"
            for rule in dig(self.informer(INGRESSES).get(key), "spec", "rules", default=[]):
                if host in rule.get("hosts", ()):
                    conditions.true("ReferenceResolved")
                    return [{**path, "rewriteHost": host} for path in rule["http"]["paths"]]
            what = f'services.serving.knative.dev "{key.name}" not found'
            if self.informer(SERVICES).get(key) is not None or self.informer(ROUTES).get(key) is not None:
                conditions.unknown("ReferenceResolved", "ResolveFailed", "address not set")
            else:
                conditions.false("ReferenceResolved", "ResolveFailed", f"failed to get object: {what}")
            return None
        if reference["kind"] == "Service" and self.informer(CORE_SERVICES).get(key) is not None:
            conditions.true("ReferenceResolved")
            split = {"serviceNamespace": namespace, "serviceName": key.name, "servicePort": 80, "percent": 100}
            return [{"rewriteHost": f"{key.name}.{namespace}.{LOCAL_DOMAIN}", "splits": [split]}]
        message = f'failed to get object: {reference["kind"]} "{key}" not found'
        conditions.false("ReferenceResolved", "ResolveFailed", message)
        return None

    def _ingress(self, mapping: Object, paths: list[Object], tls: list[Object]) -> Object:
        metadata = mapping["metadata"]
        labels = {
            keys.PREFIX + "domainMappingUID": metadata["uid"],
            keys.PREFIX + "domainMappingNamespace": metadata["namespace"],
        }
        annotations = {
            keys.INGRESS_CLASS: self._config.data("config-network").get("ingress-class", keys.OUR_INGRESS_CLASS)
        }
        # requests take as long as they may under the target's own name
        target = self.informer(INGRESSES).get(Key(metadata["namespace"], mapping["spec"]["ref"]["name"]))
        timeouts = dig(target, "metadata", "annotations", keys.TIMEOUTS)
        if timeouts:
            annotations[keys.TIMEOUTS] = timeouts
        redirected = bool(tls) and self._config.redirects(metadata.get("annotations") or {})
        option = "Redirected" if redirected else "Enabled"
        rule = {"hosts": [metadata["name"]], "visibility": "ExternalIP", "http": {"paths": paths}}
        return {
            "apiVersion": "networking.internal.knative.dev/v1alpha1",
            "kind": "Ingress",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations,
            },
            "spec": {"httpOption": option, "rules": [rule], **({"tls": tls} if tls else {})},
        }
