"""The streaming subresources: log, exec, attach, portforward and proxy.

The API server checks the request against the pod, finds the node's kubelet in the Node object, and passes the bytes: log as a
stream of its own, everything that upgrades through a raw ``tunnel``. Paths on the kubelet are upstream's. ``proxy`` goes to the
pod, to a ready endpoint of the service, or to the kubelet itself.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from sampan.kernel.addresses import door
from sampan.kernel.clock import Clock
from sampan.kube.access.interface import AdmissionRequest, Operation, User
from sampan.kube.access.plugins.node_restriction import JOINED
from sampan.kube.objects import Object, dig
from sampan.kube.resources import ENDPOINT_SLICES, NODES, PODS, SERVICE_NAME, SERVICES
from sampan.kube.server.options import Query, flag, number, text
from sampan.kube.server.relay import exact, forwarded, relay
from sampan.kube.server.routing import Target
from sampan.kube.server.tunnel import Backend, dial_problem, error_text, tunnel, wants_upgrade
from sampan.kube.server.verbs import Api
from sampan.kube.status import FieldError, bad_request, internal, invalid, not_found, unavailable
from sampan.kube.types.duration import parse_time
from sampan.kube.types.resource import ResourceType

if TYPE_CHECKING:
    import aiohttp

KUBELET_PORT = 10250
LOG_TYPE = "text/plain"


class KubeletConnector:
    """Serves the streaming subresources; implements ``front.Connector``."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self.context: ssl.SSLContext | None = None
        """Trusts the platform's own kubelet and presents the API server's client certificate; None: plain HTTP."""
        self.joined_context: ssl.SSLContext | None = None
        """The same for the kubelets of nodes that joined, whose certificates another authority signs."""
        self._unknown: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections to kubelets and pods."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def serve(
        self, request: web.BaseRequest, user: User, type: ResourceType, target: Target, query: Query
    ) -> web.StreamResponse:
        """Answer a request to a streaming subresource.

        Raises:
            ApiError: the pod is not what the request needs, or the backend cannot be reached.
        """
        if target.subresource == "proxy":
            backend, path = self._proxied(type, target)
            await self._admit(user, type, target, {"kind": f"{type.kind}ProxyOptions", "path": path})
            query_text = request.raw_path.partition("?")[2]
            full = f"{path}?{query_text}" if query_text else path
            if wants_upgrade(request):
                return await tunnel(request, backend, full, self._clock)
            return await self._pass(request, backend, full, target)
        pod = self._api.cache.get(PODS, target.namespace, target.name)
        if pod is None:
            raise not_found(PODS, target.name)
        if target.subresource == "log":
            return await self._log(request, pod, query)
        options = _stream_options(target.subresource, query)
        container = "" if target.subresource == "portforward" else _container(pod, text(query, "container"))
        if container:
            options["container"] = container
        await self._admit(user, type, target, options)
        if not dig(pod, "spec", "nodeName"):
            raise bad_request(f"pod {target.name} does not have a host assigned")
        if dig(pod, "status", "phase") in ("Succeeded", "Failed") and target.subresource != "portforward":
            raise internal(
                f"cannot {target.subresource} into a container in a completed pod; current phase is {pod['status']['phase']}"
            )
        if not wants_upgrade(request):
            raise bad_request("Upgrade request required")
        backend = self._kubelet(pod["spec"]["nodeName"])
        return await tunnel(request, backend, _kubelet_path(target, container, query), self._clock)

    async def _admit(self, user: User, type: ResourceType, target: Target, options: Object) -> None:
        operation: Operation = "CONNECT"
        connect = AdmissionRequest(
            operation=operation,
            type=type,
            user=user,
            namespace=target.namespace,
            name=target.name,
            object={"apiVersion": "v1", **options},
            subresource=target.subresource,
        )
        try:
            await self._api.admission.admit(connect)
            await self._api.admission.validate(connect)
        finally:
            for finished in connect.finished:
                finished()

    # -- where

    def _kubelet(self, node_name: str) -> Backend:
        node = self._api.cache.get(NODES, "", node_name)
        if node is None:
            raise not_found(NODES, node_name)
        addresses: Sequence[Mapping[str, str]] = dig(node, "status", "addresses", default=())
        by_type = {address.get("type"): address.get("address") for address in reversed(addresses)}
        joined = JOINED in (node["metadata"].get("annotations") or {})
        # a node that joined names itself, and a name may lead anywhere: only its addresses are looked at before they are taken
        kinds = ("InternalIP", "ExternalIP") if joined else ("InternalIP", "Hostname", "ExternalIP")
        host = next((by_type[kind] for kind in kinds if by_type.get(kind)), None)
        if not host:
            raise internal(f"no preferred addresses found; known addresses: {list(by_type.values())}")
        port = int(dig(node, "status", "daemonEndpoints", "kubeletEndpoint", "Port", default=KUBELET_PORT))
        return Backend(host, port, self.joined_context if joined else self.context)

    def _proxied(self, type: ResourceType, target: Target) -> tuple[Backend, str]:
        scheme, name, port = _split_name(target.name)
        path = target.rest or "/"
        if type.resource == NODES:
            backend = self._kubelet(name)
            return (Backend(backend.host, _port(port), backend.context) if port else backend), path
        context = self._anybody() if scheme == "https" else None
        if type.resource == PODS:
            host, number_ = self._pod_address(target.namespace, name, port)
        else:
            host, number_ = self._endpoint(target.namespace, name, port)
        return Backend(host, door(host, number_), context), path

    def _anybody(self) -> ssl.SSLContext:
        """TLS to what users run: it presents nothing, for our certificate is worth everything to a kubelet, and a pod on the
        host's network has the kubelet's address; nor does it ask who answers, as upstream's proxy does not."""
        if self._unknown is None:
            self._unknown = ssl.create_default_context()
            self._unknown.check_hostname = False
            self._unknown.verify_mode = ssl.CERT_NONE
        return self._unknown

    def _pod_address(self, namespace: str, name: str, port: str) -> tuple[str, int]:
        pod = self._api.cache.get(PODS, namespace, name)
        if pod is None:
            raise not_found(PODS, name)
        address = dig(pod, "status", "podIP")
        if not address:
            raise bad_request("address not allowed")
        ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or ()]
        if port.isdecimal():
            return address, _port(port)
        for candidate in ports:
            if not port or candidate.get("name") == port:
                return address, int(candidate["containerPort"])
        if port:
            raise bad_request(f'no port named "{port}" in pod "{name}"')
        return address, 80

    def _endpoint(self, namespace: str, name: str, port: str) -> tuple[str, int]:
        service = self._api.cache.get(SERVICES, namespace, name)
        if service is None:
            raise not_found(SERVICES, name)
        ports: Sequence[Mapping[str, Any]] = dig(service, "spec", "ports", default=())
        chosen = next(
            (p for p in ports if not port or p.get("name") == port or str(p["port"]) == port),
            None,
        )
        if chosen is None:
            raise unavailable(f'no service port "{port}" found for service "{name}"')
        for piece in self._api.cache.objects(ENDPOINT_SLICES, namespace):
            if (piece["metadata"].get("labels") or {}).get(SERVICE_NAME) != name:
                continue
            number_ = next(
                (p["port"] for p in piece.get("ports") or () if (p.get("name") or "") == (chosen.get("name") or "")),
                None,
            )
            for endpoint in piece.get("endpoints") or ():
                if number_ is not None and (endpoint.get("conditions") or {}).get("ready") is not False:
                    return endpoint["addresses"][0], int(number_)
        raise unavailable(f'no endpoints available for service "{name}"')

    # -- plain HTTP

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _log(self, request: web.BaseRequest, pod: Object, query: Query) -> web.StreamResponse:
        metadata = pod["metadata"]
        container = _container(pod, text(query, "container"))
        _check_log(query, metadata["name"])
        node = dig(pod, "spec", "nodeName")
        if not node:
            return web.Response(body=b"", content_type=LOG_TYPE)
        _check_started(pod, container, previous=flag(query, "previous"))
        kept = ("follow", "previous", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime", "stream")
        parameters = {name: text(query, name) for name in kept if text(query, name)}
        for name in ("follow", "previous", "timestamps"):
            if name in query:
                parameters[name] = "true" if flag(query, name) else "false"
        path = f"/containerLogs/{metadata['namespace']}/{metadata['name']}/{container}"
        if parameters:
            path += "?" + urlencode(parameters)
        backend = self._kubelet(node)
        url = f"{'https' if backend.context is not None else 'http'}://{backend}{path}"
        import aiohttp

        try:
            async with self._http().get(exact(url), ssl=backend.context or False) as answer:
                if answer.status != 200:
                    raise error_text(answer.status, await answer.content.read(4096))
                return await relay(request, answer, {"Content-Type": LOG_TYPE})
        except aiohttp.ClientConnectorError as error:
            raise internal(f'Get "{url}": dial tcp {backend}: {dial_problem(error.os_error)}') from None

    async def _pass(self, request: web.BaseRequest, backend: Backend, path: str, target: Target) -> web.StreamResponse:
        url = f"{'https' if backend.context is not None else 'http'}://{backend}{path}"
        import aiohttp

        try:
            async with self._http().request(
                request.method,
                exact(url),
                headers=forwarded(request),
                data=request.content if request.can_read_body else None,
                ssl=backend.context or False,
                allow_redirects=False,
            ) as answer:
                location = answer.headers.get("Location", "")
                extra: dict[str, str] = {}
                if location:
                    parts = urlsplit(location)
                    if not parts.netloc or parts.netloc == str(backend):
                        base = request.raw_path.partition("/proxy")[0] + "/proxy"
                        extra["Location"] = base + parts.path + (f"?{parts.query}" if parts.query else "")
                return await relay(request, answer, extra)
        except aiohttp.ClientConnectorError as error:
            raise unavailable(
                f"error trying to reach service: dial tcp {backend}: {dial_problem(error.os_error)}"
            ) from None
        except aiohttp.ClientError as error:
            raise unavailable(f"error trying to reach service: {error}") from None


def _port(text: str) -> int:
    """A port's number. Raises ApiError 400."""
    if not text.isdecimal() or len(text) > 5 or not 0 < int(text) < 65536:
        raise bad_request(f"invalid port {text[:40]!r}: it is a number between 1 and 65535")
    return int(text)


def _split_name(name: str) -> tuple[str, str, str]:
    """(scheme, name, port) of ``[scheme:]name[:port]``."""
    parts = name.split(":")
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    if len(parts) == 2:
        return "", parts[0], parts[1]
    return "", name, ""


def _names(pod: Object, field: str) -> list[str]:
    return [container["name"] for container in dig(pod, "spec", field, default=())]


def _container(pod: Object, asked: str) -> str:
    """The container a request is about.

    Raises:
        ApiError: 400, there are several and none is named, or there is none of that name.
    """
    name = pod["metadata"]["name"]
    containers, inits = _names(pod, "containers"), _names(pod, "initContainers")
    if not asked:
        if len(containers) == 1:
            return containers[0]
        listed = f"a container name must be specified for pod {name}, choose one of: [{' '.join(containers)}]"
        if inits:
            listed += f" or one of the init containers: [{' '.join(inits)}]"
        raise bad_request(listed)
    if asked not in (*containers, *inits, *_names(pod, "ephemeralContainers")):
        raise bad_request(f"container {asked} is not valid for pod {name}")
    return asked


def _check_log(query: Query, name: str) -> None:
    for option, least in (("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)):
        value = number(query, option)
        if value is not None and value < least:
            message = f"Invalid value: {value}: must be greater than {'or equal to ' if not least else ''}0"
            raise invalid("", "PodLogOptions", name, [FieldError(option, "FieldValueInvalid", message)])
    if since := text(query, "sinceTime"):
        try:
            parse_time(since)
        except ValueError:
            raise bad_request(f'parsing time "{since}" as "2006-01-02T15:04:05Z07:00": it is not RFC 3339') from None
    if text(query, "sinceSeconds") and text(query, "sinceTime"):
        message = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
        raise invalid("", "PodLogOptions", name, [FieldError("", "FieldValueForbidden", message)])


def _check_started(pod: Object, container: str, *, previous: bool) -> None:
    name = pod["metadata"]["name"]
    statuses = [
        status
        for field in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
        for status in dig(pod, "status", field, default=())
        if status.get("name") == container
    ]
    status: Mapping[str, Any] = statuses[0] if statuses else {}
    ended = dig(status, "lastState", "terminated")
    if previous:
        if ended is None:
            raise bad_request(f'previous terminated container "{container}" in pod "{name}" not found')
        return
    state = status.get("state") or {}
    if "running" in state or "terminated" in state or ended is not None:
        return
    waiting = dig(state, "waiting", "reason", default="ContainerCreating")
    raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {waiting}')


_OPTION_KINDS = {"exec": "PodExecOptions", "attach": "PodAttachOptions", "portforward": "PodPortForwardOptions"}


def _stream_options(subresource: str, query: Query) -> Object:
    options: Object = {"kind": _OPTION_KINDS[subresource]}
    if subresource == "portforward":
        ports = [int(port) for value in query.get("ports", ()) for port in value.split(",") if port.isdecimal()]
        if ports:
            options["ports"] = ports
        return options
    given = {name: flag(query, name) for name in ("stdin", "stdout", "stderr", "tty")}
    if not given["stdin"] and not given["stdout"] and not given["stderr"]:
        raise bad_request("you must specify at least 1 of stdin, stdout, stderr")
    if given["tty"] and given["stderr"]:
        raise bad_request("tty and stderr cannot both be true")
    options |= {name: True for name, value in given.items() if value}
    if subresource == "exec":
        command = list(query.get("command", ()))
        if not command:
            raise bad_request("you must specify at least one command for the container")
        options["command"] = command
    return options


def _kubelet_path(target: Target, container: str, query: Query) -> str:
    if target.subresource == "portforward":
        path = f"/portForward/{target.namespace}/{target.name}"
        ports = [("port", port) for value in query.get("ports", ()) for port in value.split(",")]
        return f"{path}?{urlencode(ports)}" if ports else path
    path = f"/{target.subresource}/{target.namespace}/{target.name}/{container}"
    renamed = {"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"}
    pairs = [("command", word) for word in query.get("command", ())]
    pairs += [(name, "1") for asked, name in renamed.items() if flag(query, asked)]
    return f"{path}?{urlencode(pairs)}"
