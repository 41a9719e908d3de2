"""SinkBinding: tells the pods of a workload where its events go, by environment variables.

Objects that match are changed on their way into the store (`BindingAdmission`), so that even a Job, whose template cannot change
later, has its sink; the controller changes those that were there before the binding, and takes the variables out when the
binding goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sampan.kube.access.interface import AdmissionRequest
from sampan.kube.client.resources import NAMESPACES
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Informers, Source
from sampan.kube.objects import Key, Kind, Object, Resource, copy, dig
from sampan.kube.status import ApiError
from sampan.kube.types import selectors
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import overrides, resolve_sink, source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.injection import inject, template_of, values
from sampan.parts.eventing.resources import EXCLUDE_LABEL, SINK_BINDINGS

FINALIZER = "sinkbindings.sources.knative.dev"
BUILT_IN = {
    ("apps", "Deployment"): Resource("apps", "v1", "deployments"),
    ("apps", "StatefulSet"): Resource("apps", "v1", "statefulsets"),
    ("apps", "DaemonSet"): Resource("apps", "v1", "daemonsets"),
    ("apps", "ReplicaSet"): Resource("apps", "v1", "replicasets"),
    ("batch", "Job"): Resource("batch", "v1", "jobs"),
    ("batch", "CronJob"): Resource("batch", "v1", "cronjobs"),
}
BY_SUBJECT = "eventing/subject"


def _subjects(binding: Object) -> list[str]:
    kind = Kind.parse(
        dig(binding, "spec", "subject", "apiVersion", default=""), dig(binding, "spec", "subject", "kind", default="")
    )
    return [f"{kind.group}/{kind.kind}"]


def matches(binding: Object, obj: Object) -> bool:
    """Whether an object is a binding's subject."""
    subject, metadata = binding["spec"]["subject"], obj["metadata"]
    if (subject.get("namespace") or binding["metadata"]["namespace"]) != metadata.get("namespace"):
        return False
    labels = metadata.get("labels") or {}
    if labels.get(EXCLUDE_LABEL) == "true":
        return False
    if subject.get("name"):
        return bool(subject["name"] == metadata.get("name"))
    return selectors.matches(subject.get("selector"), labels)


class BindingAdmission:
    """Injects on the way into the store."""

    def __init__(self, informers: Informers) -> None:
        self._bindings = informers.informer(SINK_BINDINGS)
        self._bindings.add_index(BY_SUBJECT, _subjects)
        self._namespaces = informers.informer(NAMESPACES)

    async def admit(self, request: AdmissionRequest) -> None:
        obj = request.object
        if obj is None or request.subresource or request.operation not in ("CREATE", "UPDATE"):
            return
        kind = f"{request.type.resource.group}/{request.type.kind}"
        for binding in self._bindings.indexed(BY_SUBJECT, kind):
            sink = dig(binding, "status", "sinkUri")
            if not sink or binding["metadata"].get("deletionTimestamp"):
                continue
            if request.operation == "UPDATE" and request.type.kind == "Job":
                continue  # its template cannot change
            whole = {**obj, "metadata": {**obj["metadata"], "namespace": request.namespace}}
            namespace = self._namespaces.get(Key("", request.namespace)) or {}
            if dig(namespace, "metadata", "labels", EXCLUDE_LABEL) == "true" or not matches(binding, whole):
                continue
            template = template_of(obj)
            if template is not None:
                inject(template, values(sink, overrides(binding)))

    async def validate(self, request: AdmissionRequest) -> None:
        """Nothing is refused."""


class SinkBindingController(Controller):
    """Resolves sinks and changes the subjects that are there."""

    name = "sinkbinding-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)
        self._shared = shared

    def sources(self) -> list[Source]:
        return [For(SINK_BINDINGS)]

    async def reconcile(self, key: Key) -> float | None:
        binding = self.informer(SINK_BINDINGS).get(key)
        if binding is None:
            return None
        finalizers: list[str] = binding["metadata"].get("finalizers") or []
        if binding["metadata"].get("deletionTimestamp"):
            if FINALIZER in finalizers:
                await self._bind(binding, {})
                await self._finalizers(binding, [one for one in finalizers if one != FINALIZER])
            return None
        if FINALIZER not in finalizers:
            await self._finalizers(binding, [*finalizers, FINALIZER])
            return None
        conditions = ConditionSet(binding, ("SinkProvided", "OIDCIdentityCreated"), self.clock.now())
        conditions.true("OIDCIdentityCreated", "authentication-oidc feature disabled")
        url = await resolve_sink(self, self._shared, binding, conditions)
        # first the status, from which admission takes the sink; then those that came before
        await write_status(self, SINK_BINDINGS, binding, conditions, source_fields(url))
        if url:
            await self._bind(binding, values(url, overrides(binding)))
        return None

    async def _finalizers(self, binding: Object, finalizers: list[str]) -> None:
        changed: Object = copy(binding)
        changed["metadata"]["finalizers"] = finalizers
        await self.client.update(SINK_BINDINGS, changed)

    async def _bind(self, binding: Object, wanted: dict[str, str]) -> None:
        for resource, subject in await self._present(binding):
            changed: Object = copy(subject)
            template = template_of(changed)
            if template is not None and inject(template, wanted):
                await self.client.update(resource, changed)

    async def _present(self, binding: Object) -> Iterable[tuple[Resource, Object]]:
        subject: dict[str, Any] = binding["spec"]["subject"]
        kind = Kind.parse(subject["apiVersion"], subject["kind"])
        if (kind.group, kind.kind) == ("batch", "Job"):
            return ()
        resource = BUILT_IN.get((kind.group, kind.kind)) or self._shared.addressing.resource_of(subject)
        namespace = subject.get("namespace") or binding["metadata"]["namespace"]
        if name := subject.get("name"):
            try:
                found = [await self.client.get(resource, name, namespace)]
            except ApiError as error:
                if not error.not_found:
                    raise
                return ()
        else:
            found = (await self.client.list(resource, namespace)).items
        return [(resource, one) for one in found if matches(binding, one)]
