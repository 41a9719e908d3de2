"""The HTTP front of the API server: from a request to a verb and back.

One handler serves everything, without a router: the path is split once (``routing``). The order is upstream's: who is it
(401), may they (403), is it served (404, 405), what does the body say (4xx), the verb, the answer in the representation that
was asked for. Whatever fails on the way becomes a Status in one place (`answers.error_of`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, cast

from aiohttp import web

from sampan.kernel.clock import Clock
from sampan.kernel.http import read_body
from sampan.kube.access.interface import ANONYMOUS, Authenticator, User
from sampan.kube.objects import Object
from sampan.kube.server import decoding, representation, routing
from sampan.kube.server.answers import error_of, peer_of, reply_error, reply_object, reply_text, warning_headers
from sampan.kube.server.call import Answer, Call
from sampan.kube.server.endpoints import Endpoints
from sampan.kube.server.metrics import Metrics
from sampan.kube.server.negotiation import Format, negotiate
from sampan.kube.server.options import (
    ListOptions,
    Query,
    check_list_options,
    delete_options,
    flag,
    list_options,
    text,
    write_options,
)
from sampan.kube.server.representation import IncludeObject
from sampan.kube.server.routing import Target
from sampan.kube.server.streams import serve_watch
from sampan.kube.server.verbs import Api
from sampan.kube.server.watches import Watch
from sampan.kube.status import ApiError, bad_request, method_not_allowed, unsupported_media_type
from sampan.kube.types.resource import ResourceType

CONNECT_SUBRESOURCES = frozenset({"log", "exec", "attach", "portforward", "proxy"})
_PATCHES = {
    decoding.JSON_PATCH: "json",
    decoding.MERGE_PATCH: "merge",
    decoding.STRATEGIC_PATCH: "strategic",
    decoding.APPLY_PATCH: "apply",
}
_METHODS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "HEAD": "get", "DELETE": "delete"}
_METRIC_VERBS = {"create": "POST", "update": "PUT", "deletecollection": "DELETECOLLECTION"}


class Connector(Protocol):
    """Serves the streaming subresources."""

    async def serve(
        self, request: web.BaseRequest, user: User, type: ResourceType, target: Target, query: Query
    ) -> web.StreamResponse: ...


class Aggregator(Protocol):
    """Passes requests on to the servers of aggregated APIs."""

    def serves(self, group: str, version: str) -> bool: ...

    async def serve(self, request: web.BaseRequest, user: User, group: str, version: str) -> web.StreamResponse: ...


class Front:
    """The handler of the API server's listener."""

    def __init__(
        self,
        api: Api,
        authenticator: Authenticator,
        endpoints: Endpoints,
        metrics: Metrics,
        clock: Clock,
        *,
        connector: Connector | None = None,
        aggregator: Aggregator | None = None,
    ) -> None:
        self._api = api
        self._authenticator = authenticator
        self._endpoints = endpoints
        self._metrics = metrics
        self._clock = clock
        self._machine = Clock()
        self._connector = connector
        self._aggregator = aggregator
        self._verbs: Mapping[str, Callable[[web.BaseRequest, Call, Query], Awaitable[web.StreamResponse]]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        began = time.perf_counter()
        path, _, query_text = request.raw_path.partition("?")
        labels = ["", "", "", "", ""]
        try:
            response = await self._handle(request, path, query_text, labels)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            response = await reply_error(request, error_of(error))
        seconds = None if labels[0] in ("WATCH", "CONNECT") else time.perf_counter() - began
        verb, group, version, resource, subresource = labels
        self._metrics.count((verb or request.method, group, version, resource, subresource), response.status, seconds)
        return response

    async def _handle(
        self, request: web.BaseRequest, path: str, query_text: str, labels: list[str]
    ) -> web.StreamResponse:
        user = await self._who(request)
        target = routing.parse(path)
        query = routing.query(query_text)
        if target is None:
            return await self._other(request, user, path, query)
        resource = target.resource
        verb = self._verb(request.method, target, query)
        name = target.name
        if not name and verb in ("list", "watch", "deletecollection") and "fieldSelector" in query:
            name = _selected_name(query)
        namespace = target.namespace
        if resource.plural == "namespaces" and not resource.group:
            namespace = target.name
        self._api.authorize(user, verb, resource, namespace, name, target.subresource)
        if self._aggregator is not None and self._aggregator.serves(resource.group, resource.version):
            return await self._aggregator.serve(request, user, resource.group, resource.version)
        type = self._api.types.find(resource)
        if type is None or (target.subresource and target.subresource not in type.subresources):
            return await reply_text(request, "404 page not found\n", 404)
        if type.namespaced != bool(target.namespace) and not (type.namespaced and verb in ("list", "watch")):
            if type.namespaced and not target.name and verb == "create":
                pass  # reviews of LocalSubjectAccessReview's kind say so themselves
            else:
                return await reply_text(request, "404 page not found\n", 404)
        labels[:] = (_METRIC_VERBS.get(verb, verb.upper()), *resource, target.subresource)
        if target.subresource in CONNECT_SUBRESOURCES:
            if self._connector is None:
                raise method_not_allowed()
            labels[0] = "CONNECT"
            return await self._connector.serve(request, user, type, target, query)
        call = Call(user, type, target.namespace, target.name, target.subresource, source=peer_of(request))
        handler = self._verbs.get(verb)
        if handler is None:
            raise method_not_allowed()
        return await handler(request, call, query)

    async def _who(self, request: web.BaseRequest) -> User:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        user = await self._authenticator.authenticate(request.headers, certificate or None)
        return user or ANONYMOUS

    @staticmethod
    def _verb(method: str, target: Target, query: Query) -> str:
        verb = _METHODS.get(method)
        if verb is None:
            raise method_not_allowed()
        if target.subresource in CONNECT_SUBRESOURCES:
            return verb
        if verb == "get" and (target.watch or (not target.name and flag(query, "watch"))):
            return "watch"
        if not target.name:
            return {"get": "list", "delete": "deletecollection"}.get(verb, verb)
        return verb

    async def _other(self, request: web.BaseRequest, user: User, path: str, query: Query) -> web.StreamResponse:
        self._api.authorize(user, request.method.lower(), None, path=path)
        parts = path.strip("/").split("/")
        if (
            self._aggregator is not None
            and len(parts) >= 3
            and parts[0] == "apis"
            and self._aggregator.serves(parts[1], parts[2])
        ):
            return await self._aggregator.serve(request, user, parts[1], parts[2])
        return await self._endpoints.serve(request, path, query)

    # -- reading

    async def _get(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        revision = text(query, "resourceVersion")
        if call.subresource == "scale":
            encoded = representation.json(await self._api.get_object(call, revision))
            return await reply_object(request, _lists(query), encoded)
        entry = await self._api.get(call, revision)
        body = representation.one(call.type, entry.value, format, _include(query), self._clock.now())
        return await reply_object(request, _lists(query), body, yaml=format.yaml)

    async def _list(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        page = await self._api.list(call, list_options(query, watch=False))
        body = representation.listing(
            call.type, page.values, page.metadata(), format, _include(query), self._clock.now()
        )
        return await reply_object(request, _lists(query), body, yaml=format.yaml)

    async def _watch(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        options = list_options(query, watch=True)
        if call.name:
            given = f"metadata.name={call.name}"
            options.field_selector = f"{options.field_selector},{given}" if options.field_selector else given
        opened: Watch | ApiError
        try:
            opened = await self._api.watch(call, options)
        except ApiError as error:
            if not error.expired:
                raise
            opened = error
        return await serve_watch(
            request, opened, format=format, include=_include(query), seconds=options.timeout, clock=self._clock
        )

    # -- writing

    async def _body(self, request: web.BaseRequest, call: Call) -> Object:
        body = await read_body(request, self._machine)
        content_type = request.headers.get("Content-Type", "")
        obj = decoding.decode_object(body, content_type)
        if _strict(call):
            _report_duplicates(call, decoding.duplicates(body, content_type))
        return obj

    async def _create(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        if call.name and not call.subresource:
            raise method_not_allowed()
        call.options = write_options(query, request.headers.get("User-Agent", ""), "CreateOptions")
        return await self._answer(
            request, call, query, format, await self._api.create(call, await self._body(request, call))
        )

    async def _update(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        if not call.name:
            raise method_not_allowed()
        call.options = write_options(query, request.headers.get("User-Agent", ""), "UpdateOptions")
        return await self._answer(
            request, call, query, format, await self._api.update(call, await self._body(request, call))
        )

    async def _patch(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        if not call.name:
            raise method_not_allowed()
        call.options = write_options(query, request.headers.get("User-Agent", ""), "PatchOptions")
        content_type = request.headers.get("Content-Type", "")
        kind = _PATCHES.get(decoding.media_type(content_type))
        if kind is None:
            accepted = ", ".join(_PATCHES)
            raise unsupported_media_type(
                f"the body of the request was in an unknown format - accepted media types include: {accepted}"
            )
        if call.options.force is not None and kind != "apply":
            raise bad_request(
                'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch'
            )
        body = await read_body(request, self._machine)
        if kind == "apply":
            config = decoding.decode_yaml(body)
            if not isinstance(config, dict):
                raise bad_request("error decoding YAML: expected an object")
            if _strict(call) and (repeated := decoding.yaml_duplicates(body)):
                if call.options.field_validation == "Strict":
                    listed = "\n  ".join(repeated)
                    raise bad_request(
                        f"error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {listed}"
                    )
                call.warnings.extend(repeated)
            answer = await self._api.apply(call, config)
        else:
            answer = await self._api.patch(call, kind, decoding.decode_json(body))
        return await self._answer(request, call, query, format, answer)

    async def _delete(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        format = negotiate(request.headers.get("Accept", ""))
        options = delete_options(query, await self._delete_body(request))
        return await self._answer(request, call, query, format, await self._api.delete(call, options))

    async def _delete_collection(self, request: web.BaseRequest, call: Call, query: Query) -> web.StreamResponse:
        selecting = ListOptions(
            label_selector=text(query, "labelSelector"),
            field_selector=text(query, "fieldSelector"),
            revision=text(query, "resourceVersion"),
            limit=0,
        )
        check_list_options(selecting, watch=False)
        options = delete_options(query, await self._delete_body(request))
        answer = await self._api.delete_collection(call, selecting, options)
        return await self._answer(request, call, query, Format(), answer)

    async def _delete_body(self, request: web.BaseRequest) -> Object | None:
        body = await read_body(request, self._machine)
        return decoding.decode_object(body, request.headers.get("Content-Type", "")) if body.strip() else None

    async def _answer(
        self, request: web.BaseRequest, call: Call, query: Query, format: Format, answer: Answer
    ) -> web.StreamResponse:
        if self._api.store.founding:
            await self._api.store.flushed()
        encoded = answer.encoded or representation.json(answer.object)
        if answer.type is not None:
            encoded = representation.present(answer.type, encoded, format, _include(query), self._clock.now())
        elif format.yaml:
            encoded = representation.yaml(encoded)
        headers = warning_headers(call.warnings) if call.warnings else ()
        return await reply_object(request, _lists(query), encoded, code=answer.code, yaml=format.yaml, headers=headers)


def _lists(query: Query) -> Mapping[str, list[str]]:
    return cast(Mapping[str, list[str]], query)


def _include(query: Query) -> IncludeObject:
    value = text(query, "includeObject")
    if value in ("None", "Object"):
        return cast(IncludeObject, value)
    return "Metadata"


def _selected_name(query: Query) -> str:
    """The name that a field selector demands, for authorization; a selector that is malformed is refused later."""
    for term in text(query, "fieldSelector").split(","):
        field, _, value = term.partition("=")
        if field == "metadata.name":
            return value.removeprefix("=")
    return ""


def _strict(call: Call) -> bool:
    """Whether the client wants to hear of fields that are there twice."""
    return call.options.validation_given and call.options.field_validation != "Ignore"


def _report_duplicates(call: Call, texts: list[str]) -> None:
    if not texts:
        return
    if call.options.field_validation == "Strict":
        by_line = texts[0].startswith("line ")
        listed = "yaml: unmarshal errors:\n  " + "\n  ".join(texts) if by_line else ", ".join(texts)
        raise bad_request(
            f'{call.type.kind} in version "{call.type.resource.version}" cannot be handled as a {call.type.kind}: '
            f"strict decoding error: {listed}"
        )
    call.warnings.extend(texts)
