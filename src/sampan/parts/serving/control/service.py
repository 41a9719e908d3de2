"""Service: a Configuration and a Route under one name."""

from __future__ import annotations

from sampan.kube.control.conditions import ConditionSet, condition
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Owns, Source
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.parts.serving import keys
from sampan.parts.serving.control.inheritance import OURS, inherited
from sampan.parts.serving.resources import CONFIGURATIONS, ROUTES, SERVICES

OUT_OF_DATE = "The {} is still working to reflect the latest desired specification."


class ServiceController(Controller):
    """Services of serving.knative.dev."""

    name = "serving-service-controller"
    workers = 2

    def sources(self) -> list[Source]:
        return [For(SERVICES), Owns(CONFIGURATIONS, "Service"), Owns(ROUTES, "Service")]

    async def reconcile(self, key: Key) -> float | None:
        service = self.informer(SERVICES).get(key)
        if service is None or service["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(service, ("ConfigurationsReady", "RoutesReady"), self.clock.now())
        status: Object = {
            name: value
            for name, value in copy(service.get("status") or {}).items()
            if name not in ("conditions", "observedGeneration")
        }
        taken = ""
        try:
            configuration = await ensure(self, CONFIGURATIONS, service, self._configuration(service), exact=OURS)
            self._follow_configuration(conditions, status, configuration)
            ready = condition(configuration)
            if ready is not None and ready.get("reason") == "RevisionNameTaken":
                taken = ready.get("message") or ""
        except NotOwnedError as error:
            conditions.false("ConfigurationsReady", "NotOwned", str(error))
        if taken:
            conditions.false("RoutesReady", "RevisionNameTaken", taken)
        else:
            try:
                route = await ensure(self, ROUTES, service, self._route(service), exact=OURS)
                self._follow_route(conditions, status, route, service)
            except NotOwnedError as error:
                conditions.false("RoutesReady", "NotOwned", str(error))
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = service["metadata"].get("generation")
        if status != (service.get("status") or {}):
            await self.client.update(SERVICES, {**service, "status": status}, subresource="status")
        return None

    def _child(self, service: Object, kind: str) -> Object:
        metadata = service["metadata"]
        labels = {**(metadata.get("labels") or {}), keys.SERVICE: metadata["name"], keys.SERVICE_UID: metadata["uid"]}
        return {
            "apiVersion": "serving.knative.dev/v1",
            "kind": kind,
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": inherited(metadata.get("annotations")),
            },
        }

    def _configuration(self, service: Object) -> Object:
        wanted = self._child(service, "Configuration")
        wanted["metadata"]["annotations"].pop(keys.ROLLOUT_DURATION, None)
        return {**wanted, "spec": {"template": copy(service["spec"]["template"])}}

    def _route(self, service: Object) -> Object:
        traffic = []
        for target in service["spec"].get("traffic") or ():
            one = dict(target)
            if not one.get("revisionName"):
                one["configurationName"] = service["metadata"]["name"]
            traffic.append(one)
        return {**self._child(service, "Route"), "spec": {"traffic": traffic}}

    def _follow_configuration(self, conditions: ConditionSet, status: Object, configuration: Object) -> None:
        found = configuration.get("status") or {}
        if found.get("observedGeneration") != configuration["metadata"].get("generation"):
            conditions.unknown("ConfigurationsReady", "OutOfDate", OUT_OF_DATE.format("Configuration"))
        else:
            conditions.mirror("ConfigurationsReady", found)
        for field in ("latestCreatedRevisionName", "latestReadyRevisionName"):
            if found.get(field):
                status[field] = found[field]

    def _follow_route(self, conditions: ConditionSet, status: Object, route: Object, service: Object) -> None:
        found = route.get("status") or {}
        if found.get("observedGeneration") != route["metadata"].get("generation"):
            conditions.unknown("RoutesReady", "OutOfDate", OUT_OF_DATE.format("Route"))
            return
        conditions.mirror("RoutesReady", found)
        for field in ("url", "address", "traffic"):
            if found.get(field):
                status[field] = found[field]
        if conditions.is_true("RoutesReady") and not _migrated(service, status):
            message = "Traffic is not yet migrated to the latest revision."
            conditions.unknown("RoutesReady", "TrafficNotMigrated", message)


def _migrated(service: Object, status: Object) -> bool:
    """The route's latest-revision targets carry the revision that is ready last."""
    wanted = [one for one in service["spec"].get("traffic") or () if one.get("latestRevision")]
    latest = status.get("latestReadyRevisionName")
    if not wanted or not latest:
        return True
    carried = [one.get("revisionName") for one in dig(status, "traffic", default=[]) if one.get("latestRevision")]
    return latest in carried
