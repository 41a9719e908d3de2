"""ContainerSource: a Deployment of the user's container and a SinkBinding that tells it where its events go."""

from __future__ import annotations

from sampan.kube.client.resources import DEPLOYMENTS
from sampan.kube.control.conditions import ConditionSet, condition
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Owns, Source
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, copy, dig
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.sources import source_fields
from sampan.parts.eventing.control.status import write_status
from sampan.parts.eventing.resources import CONTAINER_SOURCES, SINK_BINDINGS, SOURCES

LABEL = "sources.knative.dev/containerSource"


class ContainerSourceController(Controller):
    """Makes both, and is ready when they are."""

    name = "containersource-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)

    def sources(self) -> list[Source]:
        return [
            For(CONTAINER_SOURCES),
            Owns(DEPLOYMENTS, "ContainerSource"),
            Owns(SINK_BINDINGS, "ContainerSource"),
        ]

    async def reconcile(self, key: Key) -> float | None:
        source = self.informer(CONTAINER_SOURCES).get(key)
        if source is None or source["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(source, ("SinkBindingReady", "ReceiveAdapterReady"), self.clock.now())
        deployment, labels = f"{key.name}-deployment", {LABEL: key.name}
        spec, url = source["spec"], ""
        wanted_binding = {
            "apiVersion": f"{SOURCES}/v1",
            "kind": "SinkBinding",
            "metadata": {"name": f"{key.name}-sinkbinding", "namespace": key.namespace},
            "spec": {
                "subject": {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": deployment,
                    "namespace": key.namespace,
                },
                **{name: copy(spec[name]) for name in ("sink", "ceOverrides") if name in spec},
            },
        }
        try:
            binding = await ensure(self, SINK_BINDINGS, source, wanted_binding)
            conditions.mirror("SinkBindingReady", binding.get("status"))
            url = dig(binding, "status", "sinkUri", default="")
        except NotOwnedError as error:
            conditions.false("SinkBindingReady", "NotOwned", str(error))
        if url:  # without its sink the container would start in vain
            template = copy(spec["template"])
            metadata = template.setdefault("metadata", {})
            metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
            wanted = {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": deployment, "namespace": key.namespace, "labels": labels},
                "spec": {"selector": {"matchLabels": labels}, "template": template},
            }
            try:
                made = await ensure(self, DEPLOYMENTS, source, wanted)
                available = condition(made, "Available")
                if available is not None and available["status"] == "True":
                    conditions.true("ReceiveAdapterReady")
                else:
                    conditions.unknown(
                        "ReceiveAdapterReady", "DeploymentUnavailable", f"{deployment} is not available yet"
                    )
            except NotOwnedError as error:
                conditions.false("ReceiveAdapterReady", "NotOwned", str(error))
        await write_status(self, CONTAINER_SOURCES, source, conditions, source_fields(url))
        return None
