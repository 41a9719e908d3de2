"""Delete: at once, gracefully, or when the last finalizer is gone.

DELETE of an object with finalizers, or of a kind that stops gracefully, only marks it (``deletionTimestamp``); whoever holds
a finalizer removes it when done, and the write that removes the last one deletes the object. The propagation policy is
itself a finalizer: ``foregroundDeletion`` and ``orphan`` are for the garbage collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import Admission, AdmissionRequest
from sampan.kube.objects import Object, copy, encode
from sampan.kube.server.call import Answer, Call
from sampan.kube.server.conversion import prepared, served_object, stored_form
from sampan.kube.server.options import DeleteOptions
from sampan.kube.server.writes import RETRIES, remaining_finalizers, timestamp
from sampan.kube.status import ApiError, conflict, not_found
from sampan.kube.store.interface import ConflictError, Entry, Store

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
COLLECTION_BATCH = 64
"""Deletions of a collection that are under way together, so that they share commits."""

_ORPHAN_WARNING = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them "
    "or set propagationPolicy=Orphan to suppress this warning"
)


class Deleter:
    """The deleting verbs over one store."""

    def __init__(self, store: Store, admission: Admission, clock: Clock) -> None:
        self._store = store
        self._admission = admission
        self._clock = clock

    async def delete(self, call: Call, options: DeleteOptions) -> Answer:
        """Delete one object, or mark it for deletion.

        Raises:
            ApiError: 404, 409 for a failed precondition, or admission's refusal.
        """
        warned = False
        for _ in range(RETRIES + 1):
            entry = self._store.get(call.key)
            if entry is None:
                raise not_found(call.type.resource, call.name)
            await prepared(call.type, (entry.value,))
            obj = served_object(call.type, entry.value)
            self._check(call, obj, options)
            if not warned and _preserves_quietly(call, options):
                call.warnings.append(_ORPHAN_WARNING)
            warned = True
            request = AdmissionRequest(
                operation="DELETE",
                type=call.type,
                user=call.user,
                namespace=call.namespace,
                name=call.name,
                object=None,
                old_object=obj,
                subresource=call.subresource,
                options=options.as_object(),
                dry_run=options.dry_run,
            )
            try:
                await self._admission.admit(request)
                await self._admission.validate(request)
                return await self._delete(call, entry, obj, options)
            except ConflictError:
                if options.revision:
                    break
                await self._store.settled(call.key)
            finally:
                call.warnings.extend(request.warnings)
                for finished in request.finished:
                    finished()
        raise conflict(call.type.resource, call.name)

    async def delete_all(self, call: Call, names: Sequence[tuple[str, str]], options: DeleteOptions) -> list[Object]:
        """Delete many objects by (namespace, name); those that are gone by then are passed over.

        Raises:
            ApiError: the first refusal.
        """
        answers: list[Object] = []

        async def one(namespace: str, name: str) -> Object | None:
            single = Call(call.user, call.type, namespace, name, options=call.options, warnings=call.warnings)
            entry = self._store.get(single.key)
            if entry is None:
                return None
            await prepared(call.type, (entry.value,))
            before = served_object(call.type, entry.value)
            try:
                answer = await self.delete(single, options)
            except ApiError as error:
                if error.not_found:
                    return None
                raise
            return answer.object if answer.type is not None else before

        for start in range(0, len(names), COLLECTION_BATCH):
            batch = names[start : start + COLLECTION_BATCH]
            results = await asyncio.gather(*(one(*place) for place in batch), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                if result is not None:
                    answers.append(result)
        return answers

    @staticmethod
    def _check(call: Call, obj: Object, options: DeleteOptions) -> None:
        metadata = obj["metadata"]
        for given, field, named in (
            (options.uid, "uid", "UID"),
            (options.revision, "resourceVersion", "ResourceVersion"),
        ):
            if given and given != metadata[field]:
                why = (
                    f"Precondition failed: {named} in precondition: {given}, {named} in object meta: {metadata[field]}"
                )
                raise conflict(call.type.resource, call.name, why)

    async def _delete(self, call: Call, entry: Entry, obj: Object, options: DeleteOptions) -> Answer:
        type = call.type
        marked = copy(obj)
        metadata = marked["metadata"]
        finalizers = _finalizers(call, metadata.get("finalizers") or [], options)
        if finalizers:
            metadata["finalizers"] = finalizers
        else:
            metadata.pop("finalizers", None)
        grace = max(type.strategy.deletion_grace(obj, options.grace_period), 0)
        pending = metadata.get("deletionTimestamp")
        waiting = remaining_finalizers(type, marked)
        if pending:
            left = metadata.get("deletionGracePeriodSeconds") or 0
            if options.grace_period is None or grace > left:
                grace = left
            shortened = grace != left
        else:
            shortened = True
        if not grace and not waiting:
            if not options.dry_run:
                form = await stored_form(type, marked)
                change = await self._store.delete(call.key, entry.revision, lambda revision: encode(form, revision))
                metadata["resourceVersion"] = str(change.revision)
            return self._gone(call, marked)
        if shortened:
            if not pending or grace:
                metadata["deletionTimestamp"] = timestamp(self._clock.now() + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
            if metadata.get("generation") and not pending:
                metadata["generation"] += 1
        if type.kind == "Namespace" and not type.resource.group:
            marked.setdefault("status", {})["phase"] = "Terminating"
        if marked == obj or options.dry_run:
            return Answer(marked, None, 200, type)
        form = await stored_form(type, marked)
        fresh = await self._store.put(call.key, lambda revision: encode(form, revision), entry.revision)
        metadata["resourceVersion"] = str(fresh.revision)
        # 202 only tells clients of the old orphanDependents option that the object is still there.
        return Answer(marked, None, 202 if options.orphan_dependents is False else 200, type)

    @staticmethod
    def _gone(call: Call, obj: Object) -> Answer:
        if call.type.strategy.delete_returns_object:
            return Answer(obj, None, 200, call.type)
        details: Object = {"name": call.name}
        if call.type.resource.group:
            details["group"] = call.type.resource.group
        details["kind"] = call.type.resource.plural
        details["uid"] = obj["metadata"]["uid"]
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }
        return Answer(status)


def _preserves_quietly(call: Call, options: DeleteOptions) -> bool:
    return (
        call.type.strategy.default_propagation == "Orphan"
        and options.propagation is None
        and options.orphan_dependents is None
        and call.type.kind == "Job"
    )


def _finalizers(call: Call, present: list[str], options: DeleteOptions) -> list[str]:
    """The finalizers after the propagation policy has added and removed the garbage collector's."""
    if options.orphan_dependents is not None:
        orphan, foreground = options.orphan_dependents, False
    elif options.propagation is not None:
        orphan, foreground = options.propagation == "Orphan", options.propagation == "Foreground"
    elif ORPHAN in present or FOREGROUND in present:
        orphan, foreground = ORPHAN in present, FOREGROUND in present
    else:
        orphan, foreground = call.type.strategy.default_propagation == "Orphan", False
    kept = [finalizer for finalizer in present if finalizer not in (ORPHAN, FOREGROUND)]
    if orphan:
        kept.append(ORPHAN)
    if foreground:
        kept.append(FOREGROUND)
    return kept
