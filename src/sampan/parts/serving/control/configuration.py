"""Configuration: a new Revision for every change of its template; and the collection of old ones."""

from __future__ import annotations

from datetime import datetime

from sampan.kube.client.resources import CONFIG_MAPS
from sampan.kube.control.conditions import ConditionSet, condition, is_ready
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.objects import Key, Object, controller_of, copy, dig, owner_reference
from sampan.kube.status import ApiError
from sampan.kube.types.duration import parse_time
from sampan.parts.serving import keys, names
from sampan.parts.serving.configmaps import Config, GarbageSettings, everything
from sampan.parts.serving.resources import CONFIGURATIONS, REVISIONS


class ConfigurationController(Controller):
    """Configurations of serving.knative.dev."""

    name = "configuration-controller"
    workers = 2

    def __init__(self, context: ControlContext, config: Config) -> None:
        super().__init__(context)
        self._config = config

    def sources(self) -> list[Source]:
        return [
            For(CONFIGURATIONS),
            Owns(REVISIONS, "Configuration"),
            Watches(CONFIG_MAPS, everything(lambda: self.informer(CONFIGURATIONS))),
        ]

    async def reconcile(self, key: Key) -> float | None:
        configuration = self.informer(CONFIGURATIONS).get(key)
        if configuration is None or configuration["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(configuration, (), self.clock.now())
        status: Object = {
            name: value
            for name, value in copy(configuration.get("status") or {}).items()
            if name not in ("conditions", "observedGeneration")
        }
        latest = await self._latest_created(configuration, conditions)
        if latest is not None:
            status["latestCreatedRevisionName"] = latest["metadata"]["name"]
            ready = self._latest_ready(configuration, status.get("latestReadyRevisionName"))
            if ready is not None:
                status["latestReadyRevisionName"] = ready["metadata"]["name"]
            self._judge(conditions, latest, status)
        elif status.get("latestCreatedRevisionName") and conditions.get("Ready")[0] != "False":
            conditions.false(
                "Ready", "RevisionDeleted", f'Revision "{status["latestCreatedRevisionName"]}" was deleted.'
            )
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = configuration["metadata"].get("generation")
        if status != (configuration.get("status") or {}):
            await self.client.update(CONFIGURATIONS, {**configuration, "status": status}, subresource="status")
        await self._collect(configuration, status)
        return None

    async def _latest_created(self, configuration: Object, conditions: ConditionSet) -> Object | None:
        """The revision of the current generation, made when it does not exist."""
        metadata, template = configuration["metadata"], configuration["spec"]["template"]
        generation = str(metadata["generation"])
        named = dig(template, "metadata", "name")
        name = named or names.revision(metadata["name"], metadata["generation"])
        existing = self.informer(REVISIONS).get(Key(metadata["namespace"], name))
        if existing is None:
            if (
                configuration.get("status", {}).get("latestCreatedRevisionName") == name
                and configuration["status"].get("observedGeneration") == metadata["generation"]
            ):
                return None  # it was deleted by hand; it comes back with the next change
            try:
                return await self.client.create(REVISIONS, self._revision(configuration, name), metadata["namespace"])
            except ApiError as error:
                if not error.already_exists:
                    conditions.false(
                        "Ready", "RevisionFailed", f"Revision creation failed with message: {error.message}."
                    )
                    return None
            existing = await self.client.get(REVISIONS, name, metadata["namespace"])
        owner = controller_of(existing)
        labels = existing["metadata"].get("labels") or {}
        if (
            owner is None
            or owner["uid"] != metadata["uid"]
            or (named and labels.get(keys.CONFIGURATION_GENERATION) != generation and not _same(existing, template))
        ):
            message = f'Revision name "{name}" is already taken; choose another one for the changed template.'
            conditions.false("Ready", "RevisionNameTaken", message)
            return None
        return existing

    def _revision(self, configuration: Object, name: str) -> Object:
        metadata, template = configuration["metadata"], configuration["spec"]["template"]
        annotations = dict(dig(template, "metadata", "annotations", default={}))
        own = metadata.get("annotations") or {}
        if own.get(keys.LAST_MODIFIER):
            annotations[keys.CREATOR] = own[keys.LAST_MODIFIER]
        routed = own.get(keys.ROUTES)
        if routed:
            annotations[keys.ROUTES] = routed
        annotations[keys.ROUTING_STATE_MODIFIED] = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        labels = dict(dig(template, "metadata", "labels", default={}))
        labels |= {
            keys.CONFIGURATION: metadata["name"],
            keys.CONFIGURATION_UID: metadata["uid"],
            keys.CONFIGURATION_GENERATION: str(metadata["generation"]),
            keys.ROUTING_STATE: "active" if routed else "pending",
        }
        for label in (keys.SERVICE, keys.SERVICE_UID):
            if label in (metadata.get("labels") or {}):
                labels[label] = metadata["labels"][label]
        return {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [owner_reference(configuration)],
            },
            "spec": copy(template.get("spec") or {}),
        }

    def _latest_ready(self, configuration: Object, current: str | None) -> Object | None:
        """The ready revision of the highest generation, never older than the current one."""
        informer = self.informer(REVISIONS)
        known = informer.get(Key(configuration["metadata"]["namespace"], current)) if current else None
        floor = _generation(known) if known is not None else 0
        ready = [
            one
            for one in informer.indexed("owner", configuration["metadata"]["uid"])
            if is_ready(one) and _generation(one) >= floor
        ]
        return max(ready, key=_generation, default=None)

    def _judge(self, conditions: ConditionSet, latest: Object, status: Object) -> None:
        name = latest["metadata"]["name"]
        ready = condition(latest)
        if is_ready(latest):
            if status.get("latestReadyRevisionName") == name:
                conditions.true("Ready")
        elif ready is not None and ready["status"] == "False":
            message = f'Revision "{name}" failed with message: {ready.get("message") or ""}.'
            conditions.false("Ready", "RevisionFailed", message)
        else:
            conditions.unknown("Ready", "", "")

    # -- garbage collection

    async def _collect(self, configuration: Object, status: Object) -> None:
        pinned = {status.get("latestReadyRevisionName"), status.get("latestCreatedRevisionName")}
        owned = self.informer(REVISIONS).indexed("owner", configuration["metadata"]["uid"])
        for revision in stale(owned, pinned, self._config.garbage(), self.clock.now()):
            try:
                await self.client.delete(REVISIONS, revision["metadata"]["name"], revision["metadata"]["namespace"])
            except ApiError as error:
                if not error.not_found:
                    raise


def stale(owned: list[Object], pinned: set[str | None], settings: GarbageSettings, now: datetime) -> list[Object]:
    """Revisions to delete: those past both ages while more than the minimum remain, then the oldest beyond the maximum."""

    def modified(revision: Object) -> datetime:
        stamp = dig(revision, "metadata", "annotations", keys.ROUTING_STATE_MODIFIED)
        return parse_time(stamp or revision["metadata"]["creationTimestamp"])

    idle = [
        one
        for one in owned
        if one["metadata"]["name"] not in pinned
        and dig(one, "metadata", "annotations", keys.NO_GC) != "true"
        and dig(one, "metadata", "labels", keys.ROUTING_STATE) == "reserve"
        and not one["metadata"].get("deletionTimestamp")
    ]
    idle.sort(key=modified)
    doomed: list[Object] = []
    if settings.since_create is not None or settings.since_active is not None:
        for one in idle:
            if len(idle) - len(doomed) <= settings.minimum:
                break
            created = (now - parse_time(one["metadata"]["creationTimestamp"])).total_seconds()
            inactive = (now - modified(one)).total_seconds()
            old = settings.since_create is None or created > settings.since_create
            unused = settings.since_active is None or inactive > settings.since_active
            if old and unused:
                doomed.append(one)
    if settings.maximum is not None:
        left = [one for one in idle if one not in doomed]
        doomed += left[: max(0, len(left) - settings.maximum)]
    return doomed


def _generation(revision: Object) -> int:
    return int(dig(revision, "metadata", "labels", keys.CONFIGURATION_GENERATION, default="0"))


def _same(revision: Object, template: Object) -> bool:
    return bool(revision.get("spec") == template.get("spec"))
