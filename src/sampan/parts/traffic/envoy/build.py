"""The model as a snapshot: everything Envoy is told, from plain values to wire form."""

from __future__ import annotations

from pathlib import Path

from sampan.parts.traffic.envoy import clusters, gate, listeners
from sampan.parts.traffic.model import Backend, Model
from sampan.parts.traffic.xds import schema
from sampan.parts.traffic.xds.snapshot import Resource, Snapshot


class Builder:
    """Builds snapshots and keeps the encoding of backends that did not change."""

    def __init__(self, gate_socket: Path, *, access_log: bool = True) -> None:
        self._access_log = access_log
        self._gate = Resource.of(gate.CLUSTER, schema.resource(schema.CLUSTER, gate.cluster(gate_socket)))
        self._backends: dict[str, tuple[Backend, Resource, Resource]] = {}

    def build(self, model: Model) -> Snapshot:
        """The snapshot of a model."""
        self._backends = {name: self._encode(name, backend) for name, backend in model.backends.items()}
        built = listeners.build(model.listeners, access_log=self._access_log)
        return Snapshot.build(
            {
                schema.CLUSTER: [self._gate, *(cluster for _, cluster, _ in self._backends.values())],
                schema.ENDPOINTS: [assignment for _, _, assignment in self._backends.values()],
                schema.SECRET: list(built.secrets.values()),
                schema.LISTENER: built.listeners,
                schema.ROUTES: built.routes,
            }
        )

    def _encode(self, name: str, backend: Backend) -> tuple[Backend, Resource, Resource]:
        known = self._backends.get(name)
        if known is not None and known[0] == backend:
            return known
        cluster = Resource.of(name, schema.resource(schema.CLUSTER, clusters.cluster(backend)))
        assignment = Resource.of(name, schema.resource(schema.ENDPOINTS, clusters.load_assignment(backend)))
        return backend, cluster, assignment
