"""Create, update, patch and apply: the road of an object into the store.

Every write takes the same steps, in upstream's order: what the body says about itself is checked against the path; unknown
fields are dropped (and reported as the client asked); defaults are filled; metadata that belongs to the server is set or
carried over; field ownership is recorded; admission changes the object; the kind's strategy carries over what this path may
not change and validates; admission has the last word; the store takes it at the revision it was read at.

A write that changes nothing is answered with what is stored and is no event. A write that lost a race is tried again on the
fresh object unless the client named a revision. Removing the last finalizer of an object that is being deleted deletes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import Admission, AdmissionRequest, Operation
from sampan.kube.objects import Object, alike, copy, encode
from sampan.kube.patch import managed
from sampan.kube.server.allocation import ServiceAllocator
from sampan.kube.server.call import Answer, Call
from sampan.kube.server.conformance import conform
from sampan.kube.server.conversion import prepared, served_object, stored_form
from sampan.kube.server.sizes import bounded
from sampan.kube.server.subresources import PIECES
from sampan.kube.status import (
    ApiError,
    FieldError,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    method_not_allowed,
    not_found,
)
from sampan.kube.store.interface import ConflictError, Entry, Store
from sampan.kube.types.names import generate_name
from sampan.kube.types.resource import ResourceType

RETRIES = 200
"""How often a write that lost a race is tried again; each time somebody else's write was taken, so the bound only ends a
livelock."""
NAME_TRIES = 8
"""How many generated names are tried."""

Change = Callable[[Object], Awaitable[Object]]
"""Gives the wanted object for a stored one, which it must leave alone."""


def _copy(obj: Object) -> Object:
    duplicate: Object = copy(obj)
    return duplicate


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Writer:
    """The writing verbs over one store."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        allocator: ServiceAllocator,
        clock: Clock,
    ) -> None:
        self._store = store
        self._admission = admission
        self._allocator = allocator
        self._clock = clock

    # -- create

    async def create(self, call: Call, obj: Object) -> Answer:
        """Create ``obj``, which is the callee's to change.

        Raises:
            ApiError: see the module's steps.
        """
        check_body(call, obj)
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        base = "" if metadata.get("name") else metadata.get("generateName") or ""
        if not isinstance(base, str):
            raise bad_request("metadata.generateName: expected a string")
        name: str = metadata.get("name") or ""
        for attempt in range(NAME_TRIES if base else 1):
            if base:
                name = generate_name(base)
                if self._store.get(call.type.key(call.namespace, name)) is not None:
                    continue
            candidate = copy(obj) if base and attempt < NAME_TRIES - 1 else obj
            call.name = candidate["metadata"]["name"] = name
            try:
                return await self._create(call, candidate)
            except ConflictError:
                continue
        raise already_exists(call.type.resource, name)

    async def _create(self, call: Call, obj: Object, *, owned: bool = False) -> Answer:
        type = call.type
        strategy = type.strategy
        conform(call, obj)
        metadata = obj["metadata"]
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion", "generation"):
            metadata.pop(field, None)
        now = self._clock.now()
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp(now)
        if strategy.has_generation:
            metadata["generation"] = 1
        strategy.default(obj)
        if not owned:
            metadata.pop("managedFields", None)
            managed.record_update(None, obj, call.options.manager, "", now, type)
        request = self._request("CREATE", call, obj, None)
        try:
            await self._admission.admit(request)
            obj = self._admitted(call, request, metadata)
            strategy.default(obj)
            strategy.prepare_create(obj)
            with self._allocator.allocating(type, obj, None) as allocation:
                self._refuse(call, [*allocation.errors, *strategy.validate(obj)])
                request.object = obj
                await self._admission.validate(request)
                call.warnings.extend(strategy.warnings(obj))
                if call.options.dry_run:
                    if self._store.get(call.key) is not None:
                        raise already_exists(type.resource, call.name)
                    return Answer(obj, None, 201, type)
                form = await stored_form(type, obj)
                entry = await self._store.put(call.key, lambda revision: bounded(form, revision), 0)
                allocation.keep()
                strategy.stored(obj, None, entry.revision)
        finally:
            call.warnings.extend(request.warnings)
            for finished in request.finished:
                finished()
        return self._answer(call, obj, form, entry, 201)

    # -- update

    async def update(self, call: Call, obj: Object) -> Answer:
        """Replace the object (or its status) with ``obj``, which is the callee's to change.

        Raises:
            ApiError: see the module's steps.
        """
        check_body(call, obj)
        metadata = obj["metadata"]
        given = metadata.get("resourceVersion") or ""
        if not given and not call.type.strategy.unconditional_update:
            message = "Invalid value: 0x0: must be specified for an update"
            problem = FieldError("metadata.resourceVersion", "FieldValueInvalid", message)
            raise invalid(call.type.resource.group, call.type.kind, call.name, [problem])

        async def replacement(_: Object) -> Object:
            return obj if given else _copy(obj)

        try:
            return await self.change(call, replacement, given)
        except ApiError as error:
            if not (error.not_found and call.type.strategy.create_on_update and not call.subresource):
                raise
        if self._store.get(call.key) is not None:
            raise conflict(call.type.resource, call.name)
        metadata.pop("resourceVersion", None)
        try:
            return await self._create(call, obj)
        except ConflictError:
            raise conflict(call.type.resource, call.name) from None

    async def change(self, call: Call, change: Change, revision: str = "", *, owned: bool = False) -> Answer:
        """Write what ``change`` makes of the stored object; ``revision`` is the one it must be at, if any.

        ``owned``: field ownership is already recorded in what ``change`` returns.

        Raises:
            ApiError: 404, 409, 422, or what ``change`` and admission raise.
        """
        for _ in range(RETRIES + 1):
            entry = self._store.get(call.key)
            if entry is None:
                raise not_found(call.type.resource, call.name)
            await prepared(call.type, (entry.value,))
            old = served_object(call.type, entry.value)
            new = await change(old)
            wanted = revision or new["metadata"].get("resourceVersion") or ""
            if wanted and wanted != str(entry.revision):
                raise conflict(call.type.resource, call.name)
            try:
                return await self._replace(call, entry, old, new, owned=owned)
            except ConflictError:
                if revision:
                    break
                await self._store.settled(call.key)
        raise conflict(call.type.resource, call.name)

    async def _replace(self, call: Call, entry: Entry, old: Object, new: Object, *, owned: bool) -> Answer:
        type = call.type
        strategy = type.strategy
        status_only = call.subresource == "status"
        piece = call.subresource in PIECES
        conform(call, new, old)
        metadata, before = new["metadata"], old["metadata"]
        uid = metadata.get("uid")
        if uid and uid != before["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {before['uid']}"
            raise conflict(type.resource, call.name, why)
        _carry(metadata, before)
        reset = metadata.get("managedFields") in ([], [{}])
        if not owned and not reset:
            if "managedFields" in before:
                metadata["managedFields"] = before["managedFields"]
            else:
                metadata.pop("managedFields", None)
        if status_only:
            new = _with_status(type, new, old)
            metadata = new["metadata"]
        else:
            strategy.default_change(new, old)
            if not piece:
                strategy.prepare_update(new, old)
        now = self._clock.now()
        if reset and not owned:
            metadata.pop("managedFields", None)
        elif not owned:
            managed.record_update(old, new, call.options.manager, call.subresource, now, type)
        request = self._request("UPDATE", call, new, old)
        try:
            await self._admission.admit(request)
            new = self._admitted(call, request, before)
            metadata = new["metadata"]
            strategy.default_change(new, old)
            if not status_only:
                if not piece:
                    strategy.prepare_update(new, old)
                _count_generation(type, new, old)
            with self._allocator.allocating(type, new, old) as allocation:
                errors = [*allocation.errors]
                if status_only:
                    errors += strategy.validate_status_update(new, old)
                else:
                    errors += strategy.validate(new) if piece else strategy.validate_change(new, old)
                self._refuse(call, errors)
                request.object = new
                await self._admission.validate(request)
                call.warnings.extend(strategy.warnings(new))
                if _same(new, old):
                    old["metadata"]["resourceVersion"] = str(entry.revision)
                    return Answer(old, None, 200, type)
                if call.options.dry_run:
                    metadata["resourceVersion"] = str(entry.revision)
                    return Answer(new, None, 200, type)
                form = await stored_form(type, new)
                if _finished(type, new):
                    change = await self._store.delete(call.key, entry.revision, lambda revision: encode(form, revision))
                    metadata["resourceVersion"] = str(change.revision)
                    return Answer(new, None, 200, type)
                fresh = await self._store.put(call.key, lambda revision: bounded(form, revision), entry.revision)
                allocation.keep()
                if not piece:
                    strategy.stored(new, old, fresh.revision)
        finally:
            call.warnings.extend(request.warnings)
            for finished in request.finished:
                finished()
        return self._answer(call, new, form, fresh, 200)

    # -- patch and apply

    async def patch(self, call: Call, change: Change) -> Answer:
        """Patch the object; ``change`` applies the patch to a stored object.

        Raises:
            ApiError: the patch does not apply, or see `update`.
        """

        async def patched(old: Object) -> Object:
            before = old["metadata"]["resourceVersion"]
            new = await change(old)
            check_body(call, new)
            metadata = new["metadata"]
            # A revision in the patch is a precondition; one carried over from the stored object is not.
            if metadata.get("resourceVersion") == before:
                metadata.pop("resourceVersion", None)
            return new

        return await self.change(call, patched)

    async def apply(self, call: Call, config: Object) -> Answer:
        """Server-side apply of ``config``.

        Raises:
            ApiError: 409 with the conflicts, 422 without a field manager, or see `create` and `update`.
        """
        if not call.options.manager_given:
            problem = FieldError("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")
            raise invalid("meta.k8s.io", "PatchOptions", "", [problem])
        check_body(call, config)
        force = bool(call.options.force)
        given = config["metadata"].get("resourceVersion") or ""

        async def merged(live: Object) -> Object:
            new, _ = managed.server_side_apply(
                live, copy(config), call.options.manager, force, call.subresource, self._clock.now(), call.type
            )
            new["metadata"].pop("resourceVersion", None)
            return new

        try:
            return await self.change(call, merged, given, owned=True)
        except ApiError as error:
            if not error.not_found or call.subresource or self._store.get(call.key) is not None:
                raise
        if config["metadata"].get("uid"):
            raise conflict(
                call.type.resource,
                call.name,
                "uid mismatch: the provided object specified uid, and no existing object was found",
            )
        new, _ = managed.server_side_apply(
            None, copy(config), call.options.manager, force, "", self._clock.now(), call.type
        )
        try:
            return await self._create(call, new, owned=True)
        except ConflictError:
            return await self.change(call, merged, given, owned=True)

    # -- the pieces

    def _request(self, operation: Operation, call: Call, obj: Object | None, old: Object | None) -> AdmissionRequest:
        return AdmissionRequest(
            operation=operation,
            type=call.type,
            user=call.user,
            namespace=call.namespace,
            name=call.name,
            object=obj,
            old_object=old,
            subresource=call.subresource,
            options=call.options.as_object(),
            dry_run=call.options.dry_run,
            source=call.source,
        )

    @staticmethod
    def _admitted(call: Call, request: AdmissionRequest, before: Mapping[str, Any]) -> Object:
        obj = request.object
        assert obj is not None
        metadata = obj.setdefault("metadata", {})
        if (metadata.get("name") or "") != call.name or (metadata.get("namespace") or "") != call.namespace:
            raise forbidden(
                call.type.resource, call.name, "admission may not change the name or namespace of an object"
            )
        metadata["uid"] = before["uid"]
        return obj

    @staticmethod
    def _refuse(call: Call, errors: list[FieldError]) -> None:
        if errors:
            raise invalid(call.type.resource.group, call.type.kind, call.name, errors)

    @staticmethod
    def _answer(call: Call, obj: Object, form: Object, entry: Entry, code: int) -> Answer:
        obj["metadata"]["resourceVersion"] = str(entry.revision)
        return Answer(obj, entry.value if form is obj else None, code, call.type)


def check_body(call: Call, obj: Object) -> None:
    """What a body says of its own kind, namespace and name must agree with the path; what it leaves out is filled in.

    Raises:
        ApiError: 400, it does not agree or is no object.
    """
    type = call.type
    api_version, kind = obj.setdefault("apiVersion", type.resource.api_version), obj.setdefault("kind", type.kind)
    if not kind:
        kind = obj["kind"] = type.kind
    if not api_version:
        api_version = obj["apiVersion"] = type.resource.api_version
    if api_version != type.resource.api_version:
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version ({type.resource.api_version})"
        )
    if kind != type.kind:
        raise bad_request(
            f'{kind} in version "{type.resource.version}" cannot be handled as a {type.kind}: '
            f"the object provided is unrecognized (must be of type {type.kind})"
        )
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise bad_request(
            f'{type.kind} in version "{type.resource.version}" cannot be handled as a {type.kind}: '
            "json: cannot unmarshal into Go struct field .metadata of type v1.ObjectMeta"
        )
    namespace = metadata.get("namespace") or ""
    if type.namespaced:
        if not namespace:
            metadata["namespace"] = call.namespace
        elif namespace != call.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    name = metadata.get("name") or ""
    if call.name and not name:
        metadata["name"] = call.name
    elif call.name and name != call.name:
        raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({call.name})")


def require(call: Call, verb: str) -> None:
    """Refuse a verb that the type does not serve.

    Raises:
        ApiError: 405.
    """
    if verb not in call.type.verbs:
        raise method_not_allowed()


def _carry(metadata: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Metadata that a client may leave out and never changes."""
    for field in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
        if metadata.get(field) is None:
            if field in before:
                metadata[field] = before[field]
            else:
                metadata.pop(field, None)
    for field in ("generation", "selfLink"):
        metadata.pop(field, None)
    if "generation" in before:
        metadata["generation"] = before["generation"]
    metadata.pop("resourceVersion", None)


def _with_status(type: ResourceType, new: Object, old: Object) -> Object:
    """The stored object with the status of ``new``, and the metadata that a status write may touch."""
    result = dict(old)
    if "status" in new:
        result["status"] = new["status"]
    else:
        result.pop("status", None)
    metadata = dict(old["metadata"])
    fresh = new["metadata"]
    changeable = ["managedFields"]
    if not type.custom:
        changeable += ["annotations", "labels", "finalizers"]
    for field in changeable:
        if field in fresh:
            metadata[field] = fresh[field]
        else:
            metadata.pop(field, None)
    result["metadata"] = metadata
    return result


def _count_generation(type: ResourceType, new: Object, old: Object) -> None:
    if not type.strategy.has_generation:
        return
    apart = {"metadata", "status"} if type.strategy.has_status else {"metadata"}
    changed = any(new.get(key) != old.get(key) for key in (new.keys() | old.keys()) - apart)
    generation = old["metadata"].get("generation") or 0
    new["metadata"]["generation"] = generation + 1 if changed or not generation else generation


def _same(new: Object, old: Object) -> bool:
    """Nothing differs but the times at which fields were last claimed."""
    if new.keys() != old.keys():
        return False
    for key, value in new.items():
        if key != "metadata" and not alike(value, old[key]):
            return False
    fresh, stored_ = dict(new["metadata"]), dict(old["metadata"])
    for metadata in (fresh, stored_):
        metadata.pop("resourceVersion", None)
        metadata["managedFields"] = [
            {**claim, "time": None} for claim in metadata.get("managedFields") or () if isinstance(claim, dict)
        ]
    return alike(fresh, stored_)


def _finished(type: ResourceType, obj: Object) -> bool:
    """An object that was only waiting for its finalizers has none left."""
    metadata = obj["metadata"]
    return (
        bool(metadata.get("deletionTimestamp"))
        and not metadata.get("deletionGracePeriodSeconds")
        and not remaining_finalizers(type, obj)
    )


def remaining_finalizers(type: ResourceType, obj: Object) -> list[str]:
    """What keeps an object: its finalizers and, for a namespace, those in its spec."""
    finalizers = list(obj["metadata"].get("finalizers") or ())
    if type.kind == "Namespace" and not type.resource.group:
        finalizers += (obj.get("spec") or {}).get("finalizers") or ()
    return finalizers
