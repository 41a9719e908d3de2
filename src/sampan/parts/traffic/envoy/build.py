"""The model as a snapshot: everything Envoy is told, from plain values to wire form."""

from __future__ import annotations

import logging
from pathlib import Path

from sampan.parts.traffic.envoy import clusters, gate
from sampan.parts.traffic.envoy.listeners import Ports
from sampan.parts.traffic.model import Backend, Model
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.snapshot import Resource, Snapshot

log = logging.getLogger(__name__)


class Builder:
    """Builds snapshots and keeps the encoding of what did not change."""

    def __init__(self, gate_socket: Path, *, access_log: Path | None = None) -> None:
        self._gate = Resource.of(gate.CLUSTER, schema.resource(schema.CLUSTER, gate.cluster(gate_socket)))
        self._backends: dict[str, tuple[Backend, Resource, Resource]] = {}
        self._clusters: dict[str, Resource] = {}
        self._endpoints: dict[str, Resource] = {}
        self.ports = Ports(access_log)

    def build(self, model: Model) -> Snapshot:
        """The snapshot of a model. Of what did not change as a whole, it holds the very mapping of the last one."""
        self._encode(model.backends)
        built = self.ports.build(model.listeners)
        return Snapshot(
            {
                schema.CLUSTER: self._clusters,
                schema.ENDPOINTS: self._endpoints,
                schema.SECRET: {one.name: one for one in built.secrets},
                schema.LISTENER: {one.name: one for one in built.listeners},
                schema.ROUTES: {one.name: one for one in built.routes},
            }
        )

    def _encode(self, backends: dict[str, Backend]) -> None:
        known, self._backends = self._backends, {}
        for name, backend in backends.items():
            before = known.get(name)
            if before is not None and (before[0] is backend or before[0] == backend):
                self._backends[name] = before
                continue
            try:
                cluster = Resource.of(name, schema.resource(schema.CLUSTER, clusters.cluster(backend)))
                assignment = Resource.of(name, schema.resource(schema.ENDPOINTS, clusters.load_assignment(backend)))
            except Exception:
                # what leads there answers as if it did not exist
                log.exception("the backend %s cannot be encoded", name)
                continue
            self._backends[name] = backend, cluster, assignment
        made = {gate.CLUSTER: self._gate, **{name: one for name, (_, one, _) in self._backends.items()}}
        if made != self._clusters:
            self._clusters = made
        assignments = {name: one for name, (_, _, one) in self._backends.items()}
        if assignments != self._endpoints:
            self._endpoints = assignments
