"""The `Api`: every verb on every resource, the same for HTTP and for the in-process client.

A transport authenticates, asks `Api.authorize`, and calls a verb with a `Call`. Verbs answer decoded objects (`Answer`), or
for reads the stored encodings themselves. Everything raises ``ApiError``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import (
    Admission,
    AdmissionRequest,
    Attributes,
    Authorizer,
    ObjectCache,
    Reviews,
    ServiceAccountTokens,
    User,
)
from sampan.kube.access.refusal import denied
from sampan.kube.objects import Object, Resource, decode, dig
from sampan.kube.patch import json_patch, merge_patch, strategic
from sampan.kube.server import subresources
from sampan.kube.server.allocation import SERVICE_RANGE, ServiceAllocator
from sampan.kube.server.call import Answer, Call
from sampan.kube.server.conversion import prepared, served_object
from sampan.kube.server.deletes import Deleter
from sampan.kube.server.eviction import Evictor
from sampan.kube.server.options import DeleteOptions, ListOptions
from sampan.kube.server.reads import Page, Reader
from sampan.kube.server.selection import select
from sampan.kube.server.watches import Watch, WatchHub
from sampan.kube.server.writes import Writer, timestamp
from sampan.kube.status import (
    ApiError,
    bad_request,
    method_not_allowed,
    not_found,
    unsupported_media_type,
)
from sampan.kube.store.interface import Entry, Store
from sampan.kube.types import schemas
from sampan.kube.types.resource import ResourceType, TypeRegistry

PATCH_TYPES = ("json", "merge", "strategic")


class Api:
    """The verbs over one store and one table of types."""

    def __init__(
        self,
        store: Store,
        types: TypeRegistry,
        clock: Clock,
        *,
        cache: ObjectCache,
        authorizer: Authorizer,
        admission: Admission,
        reviews: Reviews | None = None,
        tokens: ServiceAccountTokens | None = None,
        service_range: str = SERVICE_RANGE,
    ) -> None:
        self.store = store
        self.types = types
        self.clock = clock
        self.cache = cache
        self.authorizer = authorizer
        self.admission = admission
        self.reviews = reviews
        self.tokens = tokens
        self.hub = WatchHub(store, types, clock)
        self.allocator = ServiceAllocator(store, service_range)
        self._reader = Reader(store, self.hub.reached)
        self._writer = Writer(store, admission, self.allocator, clock)
        self._deleter = Deleter(store, admission, clock)
        self._evictor = Evictor(self._writer, self._deleter, types, cache, clock)

    def close(self) -> None:
        """End all watches and stop following the store."""
        self.hub.close()
        self.allocator.close()

    # -- before the verbs

    def type_of(self, resource: Resource, subresource: str = "") -> ResourceType:
        """The served type of a resource.

        Raises:
            ApiError: 404, not served.
        """
        type = self.types.find(resource)
        if type is None or (subresource and subresource not in type.subresources):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return type

    def authorize(
        self,
        user: User,
        verb: str,
        resource: Resource | None,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
        path: str = "",
    ) -> None:
        """Let the authorizer decide.

        Raises:
            ApiError: 403.
        """
        attributes = Attributes(user, verb, resource, subresource, namespace, name, path)
        decision = self.authorizer.authorize(attributes)
        if not decision.allowed:
            raise denied(attributes, decision.reason)

    # -- reading

    async def get(self, call: Call, revision: str = "") -> Entry:
        """The stored entry of an object (its `Answer` with `get_object`).

        Raises:
            ApiError: 404, 405, 504.
        """
        if "get" not in (call.type.subresources[call.subresource].verbs if call.subresource else call.type.verbs):
            raise method_not_allowed()
        entry = await self._reader.get(call.type, call.namespace, call.name, revision)
        await prepared(call.type, (entry.value,))
        return entry

    async def get_object(self, call: Call, revision: str = "") -> Object:
        """An object, or what a subresource shows of it, decoded.

        Raises:
            ApiError: 404, 405, 504.
        """
        entry = await self.get(call, revision)
        return subresources.view(call, served_object(call.type, entry.value))

    async def list(self, call: Call, options: ListOptions) -> Page:
        """One page of a collection.

        Raises:
            ApiError: 400, 405, 410, 504.
        """
        if "list" not in call.type.verbs:
            raise method_not_allowed()
        selection = select(call.type, options.label_selector, options.field_selector)
        return await self._reader.list(call.type, call.namespace, selection, options)

    async def watch(self, call: Call, options: ListOptions) -> Watch:
        """Open a watch of a collection.

        Raises:
            ApiError: 400, 405, 410, 504.
        """
        if "watch" not in call.type.verbs:
            raise method_not_allowed()
        selection = select(call.type, options.label_selector, options.field_selector)
        await self._reader.convertible(call.type, call.namespace)
        return await self.hub.open(call.type, call.namespace, selection, options)

    # -- writing

    async def create(self, call: Call, obj: Object) -> Answer:
        """Create an object, or POST to a subresource.

        Raises:
            ApiError: any refusal.
        """
        if call.subresource:
            return await self._act(call, obj)
        if "create" not in call.type.verbs:
            raise method_not_allowed()
        if self.reviews is not None and call.type.resource in self.reviews.resources:
            obj.setdefault("apiVersion", call.type.resource.api_version)
            obj.setdefault("kind", call.type.kind)
            answer = await self.reviews.create(call.user, call.type.resource, call.namespace, obj)
            return Answer(answer, None, 201)
        if call.type.resource == Resource("", "v1", "bindings"):
            name = dig(obj, "metadata", "name", default="")
            pods = self.type_of(Resource("", "v1", "pods"))
            return await self._bind(
                Call(call.user, pods, call.namespace, name, "binding", call.options, call.warnings), obj
            )
        if call.type.namespaced and not call.namespace:
            raise bad_request("an empty namespace may not be set during creation")
        return await self._writer.create(call, obj)

    async def update(self, call: Call, obj: Object) -> Answer:
        """Replace an object, or what a subresource shows of it.

        Raises:
            ApiError: any refusal.
        """
        self._check_verb(call, "update")
        if not call.subresource or call.subresource == "status":
            return await self._writer.update(call, obj)

        async def change(old: Object) -> Object:
            return subresources.merged(call, old, obj)

        revision = dig(obj, "metadata", "resourceVersion", default="")
        answer = await self._writer.change(call, change, revision)
        return self._viewed(call, answer)

    async def patch(self, call: Call, patch_type: str, patch: Any) -> Answer:
        """Patch an object, or what a subresource shows of it; ``patch_type`` is one of `PATCH_TYPES`.

        Raises:
            ApiError: any refusal.
        """
        self._check_verb(call, "patch")
        if patch_type == "strategic" and call.type.custom:
            raise unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: "
                "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            )
        change = _patcher(call.type, patch_type, patch)
        if not call.subresource or call.subresource == "status":

            async def patched(old: Object) -> Object:
                return change(old)

            return await self._writer.patch(call, patched)

        async def viewed(old: Object) -> Object:
            shown = subresources.view(call, old)
            before = shown["metadata"]["resourceVersion"]
            written = change(shown)
            metadata = written.setdefault("metadata", {})
            if metadata.get("resourceVersion") == before:
                metadata.pop("resourceVersion")
            return subresources.merged(call, old, written)

        return self._viewed(call, await self._writer.change(call, viewed))

    async def apply(self, call: Call, config: Object) -> Answer:
        """Server-side apply.

        Raises:
            ApiError: any refusal; 409 with the field conflicts.
        """
        self._check_verb(call, "patch")
        if call.subresource and call.subresource != "status":
            change = _patcher(call.type, "merge", config)

            async def viewed(old: Object) -> Object:
                return subresources.merged(call, old, change(subresources.view(call, old)))

            return self._viewed(call, await self._writer.change(call, viewed))
        return await self._writer.apply(call, config)

    # -- deleting

    async def delete(self, call: Call, options: DeleteOptions) -> Answer:
        """Delete an object.

        Raises:
            ApiError: any refusal.
        """
        if call.subresource or "delete" not in call.type.verbs:
            raise method_not_allowed()
        return await self._deleter.delete(call, options)

    async def delete_collection(self, call: Call, selecting: ListOptions, options: DeleteOptions) -> Answer:
        """Delete everything that matches; answers the list of what was deleted.

        Raises:
            ApiError: any refusal.
        """
        if "deletecollection" not in call.type.verbs:
            raise method_not_allowed()
        page = await self.list(call, selecting)
        places = []
        for value in page.values:
            metadata = decode(value)["metadata"]
            places.append((metadata.get("namespace", ""), metadata["name"]))
        items = await self._deleter.delete_all(call, places, options)
        return Answer(
            {
                "kind": call.type.list_kind or f"{call.type.kind}List",
                "apiVersion": call.type.resource.api_version,
                "metadata": {"resourceVersion": str(self.store.revision)},
                "items": items,
            }
        )

    # -- pieces

    @staticmethod
    def _check_verb(call: Call, verb: str) -> None:
        verbs: Sequence[str] = call.type.verbs
        if call.subresource:
            verbs = call.type.subresources[call.subresource].verbs
        if verb not in verbs:
            raise method_not_allowed()

    @staticmethod
    def _viewed(call: Call, answer: Answer) -> Answer:
        if call.subresource == "scale":
            return Answer(subresources.view(call, answer.object), None, answer.code)
        return answer

    async def _act(self, call: Call, obj: Object) -> Answer:
        self._check_verb(call, "create")
        match call.subresource:
            case "binding":
                return await self._bind(call, obj)
            case "eviction":
                return await self._evictor.evict(call, obj)
            case "token":
                return await self._token(call, obj)
        raise method_not_allowed()

    async def _bind(self, call: Call, binding: Object) -> Answer:
        now = timestamp(self.clock.now())

        async def change(old: Object) -> Object:
            return subresources.bound(call, old, binding, now)

        await self._writer.change(call, change)
        return Answer(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, None, 201
        )

    async def _token(self, call: Call, request: Object) -> Answer:
        account = self.cache.get(call.type.resource, call.namespace, call.name)
        if account is None:
            raise not_found(call.type.resource, call.name)
        if self.tokens is None:
            raise method_not_allowed()
        request.setdefault("apiVersion", "authentication.k8s.io/v1")
        request.setdefault("kind", "TokenRequest")
        admitted = AdmissionRequest(
            operation="CREATE",
            type=call.type,
            user=call.user,
            namespace=call.namespace,
            name=call.name,
            object=request,
            subresource=call.subresource,
            options=call.options.as_object(),
            dry_run=call.options.dry_run,
        )
        await self.admission.admit(admitted)
        await self.admission.validate(admitted)
        call.warnings += admitted.warnings
        return Answer(self.tokens.request(call.user, account, admitted.object or request), None, 201)


def _patcher(type: ResourceType, patch_type: str, patch: Any) -> Callable[[Object], Object]:
    """A function that gives the patched object and leaves the given one alone."""
    if patch_type == "json":
        if not isinstance(patch, list):
            raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
        return lambda old: json_patch.apply(old, patch)
    if not isinstance(patch, Mapping):
        raise bad_request("error decoding patch: expected a JSON object")
    if patch_type == "strategic":
        return lambda old: strategic.apply(old, patch, type.schema, schemas.resolve)
    return lambda old: merge_patch.apply(old, patch)
