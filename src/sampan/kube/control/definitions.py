"""CustomResourceDefinitions: from a stored definition to served types, and back to nothing.

`ServedDefinitions` keeps the table of types in step with the definitions: at start for those that are established already,
later for each that the controller accepts. `DefinitionController` decides what is accepted: names must be free within the
group, then the types are served, and only then does the definition become Established, so whoever waits for that condition
finds the endpoint, discovery and OpenAPI in place. A definition that is being deleted keeps its finalizer until all its
instances are gone. `install` is how a part brings its own definitions.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.kube.client import Client
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Source, Watches
from sampan.kube.objects import Key, Object, Resource, copy, dig
from sampan.kube.resources import CUSTOM_RESOURCE_DEFINITIONS
from sampan.kube.status import ApiError
from sampan.kube.types.duration import format_time
from sampan.kube.types.resource import Conversion, ResourceType, TypeRegistry

if TYPE_CHECKING:
    from sampan.kube.types.custom.served import Converter

FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
INSTALLED = "sampan.dev/definition"
"""Annotation of installed definitions: a digest of what was installed, so that the next start finds nothing to do."""
CLEANUP_SECONDS = 0.25
"""How soon a definition whose instances linger is looked at again; grows to `CLEANUP_LIMIT`."""
CLEANUP_LIMIT = 5.0

_NAMES = (
    ("plural", "PluralConflict"),
    ("singular", "SingularConflict"),
    ("shortNames", "ShortNamesConflict"),
    ("kind", "KindConflict"),
    ("listKind", "ListKindConflict"),
)
_KINDS = ("kind", "listKind")


class Conversions:
    """Makes the conversion of a definition's versions where a webhook does it; see ``control.conversion``."""

    def of(self, definition: Object) -> tuple[Conversion, Converter] | None:
        """The two halves of the conversion; None: only the version's name differs."""
        return None


class ServedDefinitions:
    """The types of all accepted definitions, in the table of types."""

    def __init__(self, types: TypeRegistry, conversions: Conversions | None = None) -> None:
        self._types = types
        self._conversions = conversions or Conversions()
        self._served: dict[str, tuple[Any, Any, bool, list[ResourceType]]] = {}

    def load(self, definitions: Iterable[Object]) -> None:
        """Serve the definitions that are established already."""
        for definition in definitions:
            if condition(definition, "Established") == "True":
                self.serve(definition)

    def serve(self, definition: Object) -> None:
        """Serve a definition as it is now (it must not change afterwards); nothing happens where nothing about its types changed."""
        name = definition["metadata"]["name"]
        accepted = dig(definition, "status", "acceptedNames")
        terminating = bool(definition["metadata"].get("deletionTimestamp"))
        known = self._served.get(name)
        if known is not None and known[:3] == (definition["spec"], accepted, terminating):
            return
        # A platform without definitions does not pay for what serves them.
        from sampan.kube.types.custom.served import resource_types

        conversion = self._conversions.of(definition)
        prepare, convert = conversion or (None, None)
        fresh = resource_types(definition, conversion=prepare, convert=convert, creatable=not terminating)
        if known is not None:
            left = {kind.resource for kind in fresh}
            gone = [kind.resource for kind in known[3] if kind.resource not in left]
            if gone:
                self._types.remove(gone)
        self._served[name] = (definition["spec"], accepted, terminating, fresh)
        self._types.add(fresh)

    def share(self, definition: Object) -> None:
        """Give an object its specification as it is served, where the two are equal: it may be large, and every change of
        the status decodes it anew."""
        known = self._served.get(definition["metadata"]["name"])
        if known is not None and known[0] == definition["spec"]:
            definition["spec"] = known[0]

    def forget(self, name: str) -> None:
        """Serve a definition no longer."""
        known = self._served.pop(name, None)
        if known is not None:
            self._types.remove(kind.resource for kind in known[3])

    def taken(self, group: str) -> list[Object]:
        """Names of a group that no definition may have, because what is not a definition serves them."""
        return [
            {
                "spec": {"group": group},
                "status": {
                    "acceptedNames": {
                        "plural": kind.resource.plural,
                        "singular": kind.singular,
                        "shortNames": list(kind.short_names),
                        "kind": kind.kind,
                        "listKind": kind.list_kind,
                    }
                },
            }
            for kind in self._types.all()
            if kind.resource.group == group and not kind.custom
        ]

    def types_of(self, name: str) -> Sequence[ResourceType]:
        """The served types of a definition, preferred version first."""
        known = self._served.get(name)
        return () if known is None else known[3]


class DefinitionController(Controller):
    """Accepts names, establishes definitions, and clears away the instances of those that go."""

    name = "customresourcedefinition"
    workers = 4

    def __init__(self, context: ControlContext, served: ServedDefinitions) -> None:
        super().__init__(context)
        self._served = served
        self._looked: dict[Key, int] = {}

    def sources(self) -> list[Source]:
        return [For(CUSTOM_RESOURCE_DEFINITIONS), Watches(CUSTOM_RESOURCE_DEFINITIONS, self._waiting_for_names)]

    def _waiting_for_names(self, changed: Object) -> Iterable[Key]:
        """Definitions of the same group that lack a name, which another's change may have freed."""
        for other in self.informer(CUSTOM_RESOURCE_DEFINITIONS).objects():
            if other["spec"]["group"] == changed["spec"]["group"] and condition(other, "NamesAccepted") == "False":
                yield Key.of(other)

    async def reconcile(self, key: Key) -> float | None:
        informer = self.informer(CUSTOM_RESOURCE_DEFINITIONS)
        definition = informer.get(key)
        if definition is None:
            self._served.forget(key.name)
            self._looked.pop(key, None)
            return None
        if definition["metadata"].get("deletionTimestamp"):
            return await self._clear(key, definition)
        self._served.share(definition)
        others = [one for one in informer.objects() if one["metadata"]["name"] != key.name]
        others += self._served.taken(definition["spec"]["group"])
        accepted, conditions = names_and_conditions(definition, others)
        fresh = _changeable(definition)
        status = fresh["status"]
        status["acceptedNames"] = accepted
        if _true(conditions, "NamesAccepted") and accepted.get("plural"):
            self._served.serve(fresh)
            established = ("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
            conditions = [one for one in conditions if one[0] != "Established"] + [established]
        elif condition(definition, "Established") == "True":
            self._served.serve(fresh)
        status["conditions"] = self._conditions(definition, conditions)
        finalizers = fresh["metadata"]["finalizers"] = list(definition["metadata"].get("finalizers") or ())
        if FINALIZER not in finalizers:
            finalizers.append(FINALIZER)
        if fresh.get("status") != definition.get("status") or finalizers != definition["metadata"].get("finalizers"):
            await self.client.update(CUSTOM_RESOURCE_DEFINITIONS, fresh, subresource="status")
        return None

    def _conditions(self, definition: Object, wanted: Sequence[tuple[str, str, str, str]]) -> list[Object]:
        """The definition's conditions with these in place; a transition time moves with the status only."""
        known = {one["type"]: one for one in dig(definition, "status", "conditions", default=[])}
        now = format_time(self.clock.now())
        for type, status, reason, message in wanted:
            before = known.get(type)
            since = before["lastTransitionTime"] if before and before["status"] == status else now
            known[type] = {
                "lastTransitionTime": since,
                "message": message,
                "reason": reason,
                "status": status,
                "type": type,
            }
        return list(known.values())

    # -- the end

    async def _clear(self, key: Key, definition: Object) -> float | None:
        """Delete all instances, then let the definition go."""
        if FINALIZER not in (definition["metadata"].get("finalizers") or ()):
            return None
        if condition(definition, "Established") == "True":
            self._served.serve(definition)
        types = self._served.types_of(key.name)
        if types:
            definition = await self._say(
                definition, "True", "InstanceDeletionInProgress", "CustomResource deletion is in progress"
            )
            resource = types[0].resource
            await self._delete_instances(resource, types[0].namespaced)
            if (await self.client.list(resource, limit=1)).items:
                looked = self._looked[key] = self._looked.get(key, 0) + 1
                return min(CLEANUP_SECONDS * (1 << min(looked - 1, 10)), CLEANUP_LIMIT)
        fresh = _changeable(definition)
        done = ("Terminating", "False", "InstanceDeletionCompleted", "removed all instances")
        fresh["status"]["conditions"] = self._conditions(definition, [done])
        fresh["metadata"]["finalizers"] = [one for one in fresh["metadata"]["finalizers"] if one != FINALIZER]
        self._served.forget(key.name)
        self._looked.pop(key, None)
        try:
            await self.client.update(CUSTOM_RESOURCE_DEFINITIONS, fresh, subresource="status")
        except ApiError as error:
            if not error.not_found:
                raise
        return None

    async def _delete_instances(self, resource: Resource, namespaced: bool) -> None:
        instances = (await self.client.list(resource)).items
        if not namespaced:
            if instances:
                await self.client.delete_collection(resource)
            return
        for namespace in sorted({one["metadata"].get("namespace") or "" for one in instances}):
            await self.client.delete_collection(resource, namespace)

    async def _say(self, definition: Object, status: str, reason: str, message: str) -> Object:
        """Set the Terminating condition."""
        if condition(definition, "Terminating") == status:
            return definition
        fresh = _changeable(definition)
        fresh["status"]["conditions"] = self._conditions(definition, [("Terminating", status, reason, message)])
        return await self.client.update(CUSTOM_RESOURCE_DEFINITIONS, fresh, subresource="status")


def _changeable(definition: Mapping[str, Any]) -> Object:
    """A copy whose metadata and status may be changed; the specification, which may be large, is shared."""
    return {**definition, "metadata": dict(definition["metadata"]), "status": dict(definition.get("status") or {})}


def condition(definition: Mapping[str, Any], type: str) -> str:
    """The status of a condition; empty when it is not there."""
    for one in dig(definition, "status", "conditions", default=[]):
        if one.get("type") == type:
            status: str = one["status"]
            return status
    return ""


def _true(conditions: Iterable[tuple[str, str, str, str]], type: str) -> bool:
    return any(one[0] == type and one[1] == "True" for one in conditions)


def names_and_conditions(
    definition: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> tuple[Object, list[tuple[str, str, str, str]]]:
    """The names a definition may have beside others, and the conditions that say so (type, status, reason, message).

    A name that it already has it keeps; one that another definition of the group has stays as it was accepted before.
    """
    wanted = definition["spec"]["names"]
    before = dig(definition, "status", "acceptedNames", default={})
    resources: set[str] = set()
    kinds: set[str] = set()
    for other in others:
        if other["spec"]["group"] != definition["spec"]["group"]:
            continue
        names = dig(other, "status", "acceptedNames", default={})
        resources |= {names.get("plural"), names.get("singular"), *(names.get("shortNames") or ())} - {None, ""}
        kinds |= {names.get("kind"), names.get("listKind")} - {None, ""}
    accepted: Object = dict(before)
    problem: tuple[str, str] | None = None
    for field, reason in _NAMES:
        asked = wanted.get(field)
        taken = kinds if field in _KINDS else resources
        clashes = [one for one in (asked if isinstance(asked, list) else [asked]) if one in taken]
        if asked != before.get(field) and clashes:
            message = ", ".join(f'"{one}" is already in use' for one in clashes)
            problem = (reason, message)
            continue
        if asked:
            accepted[field] = asked
        else:
            accepted.pop(field, None)
    if wanted.get("categories"):
        accepted["categories"] = wanted["categories"]
    else:
        accepted.pop("categories", None)
    accepted.setdefault("plural", "")
    accepted.setdefault("kind", "")
    if problem is not None:
        conditions = [("NamesAccepted", "False", *problem)]
        if condition(definition, "Established") != "True":
            conditions.append(("Established", "False", "NotAccepted", "not all names are accepted"))
        return accepted, conditions
    conditions = [("NamesAccepted", "True", "NoConflicts", "no conflicts found")]
    if condition(definition, "Established") != "True":
        conditions.append(("Established", "False", "Installing", "the initial names have been accepted"))
    return accepted, conditions


# -- bringing definitions


async def install(client: Client, definitions: Sequence[Mapping[str, Any]]) -> None:
    """Create or update these definitions and wait until all are established; those that are unchanged cost one read.

    They come with Sampan: their schemas are trusted to be structural, which a test of all of them sees to.

    Raises:
        ApiError: a definition is invalid, or its names are taken.
    """
    from sampan.kube.types.custom.structure import trust_schemas  # most platforms start without looking into one

    for definition in definitions:
        trust_schemas(definition)
    names = await asyncio.gather(*(_install(client, definition) for definition in definitions))
    waiting = {name for name in names if name}
    if not waiting:
        return
    async with client.watch(CUSTOM_RESOURCE_DEFINITIONS) as events:
        async for event in events:
            name = event.object["metadata"].get("name")
            if name not in waiting or event.type not in ("ADDED", "MODIFIED"):
                continue
            if condition(event.object, "NamesAccepted") == "False":
                why = next(
                    one["message"] for one in event.object["status"]["conditions"] if one["type"] == "NamesAccepted"
                )
                raise ApiError(409, "Conflict", f'names of customresourcedefinition "{name}" are not accepted: {why}')
            if condition(event.object, "Established") == "True":
                waiting.discard(name)
                if not waiting:
                    return
    raise ApiError(504, "Timeout", f"customresourcedefinitions {', '.join(sorted(waiting))} are not established")


async def _install(client: Client, definition: Mapping[str, Any]) -> str:
    """The name of a definition that was written and is to be waited for; empty when there was nothing to do."""
    digest = hashlib.sha256(msgspec.json.encode(definition, order="deterministic")).hexdigest()[:32]
    name: str = definition["metadata"]["name"]
    wanted: Object = copy(definition)
    wanted.pop("status", None)
    wanted["metadata"].setdefault("annotations", {})[INSTALLED] = digest
    try:
        live = await client.get(CUSTOM_RESOURCE_DEFINITIONS, name)
    except ApiError as error:
        if not error.not_found:
            raise
        await client.create(CUSTOM_RESOURCE_DEFINITIONS, wanted)
        return name
    established = condition(live, "Established") == "True"
    if (live["metadata"].get("annotations") or {}).get(INSTALLED) == digest:
        return "" if established else name
    for field in ("labels", "annotations"):
        merged = {**(live["metadata"].get(field) or {}), **(wanted["metadata"].get(field) or {})}
        if merged:
            wanted["metadata"][field] = merged
    if finalizers := live["metadata"].get("finalizers"):
        wanted["metadata"]["finalizers"] = finalizers
    wanted["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    await client.update(CUSTOM_RESOURCE_DEFINITIONS, wanted)
    return "" if established else name
