"""The capabilities of the platform, one package a part.

`PARTS` is the list of all of them: name → ``module:Class``. A part's module is imported only when the part is chosen.
"""

from __future__ import annotations

PARTS: dict[str, str] = {
    "kubernetes": "sampan.kube.part:KubePart",
    "serving": "sampan.parts.serving.part:ServingPart",
    "network": "sampan.parts.network.part:NetworkPart",
    "node": "sampan.parts.node.part:NodePart",
    "traffic": "sampan.parts.traffic.part:TrafficPart",
    "messaging": "sampan.parts.messaging.part:MessagingPart",
    "eventing": "sampan.parts.eventing.part:EventingPart",
    "workloads": "sampan.parts.workloads.part:WorkloadsPart",
}
"""Every part that ``sampan up`` brings up unless told otherwise, by name."""

JOINED_PARTS: dict[str, str] = {
    "kubernetes": "sampan.kube.joining.part:JoinedKubePart",
    "network": "sampan.parts.network.joined:JoinedNetworkPart",
    "node": "sampan.parts.node.part:NodePart",
}
"""The parts of a process that is a node of a platform elsewhere (``sampan node join``)."""
