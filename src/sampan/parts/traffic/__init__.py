"""Traffic: Envoy and its control plane; the gateway for Gateway API, Ingress and Knative.

What other parts may use, where they share its process: `DataPlane` (load signal, gate, early endpoints).
"""

from sampan.parts.traffic.dataplane import DataPlane
from sampan.parts.traffic.load import ClusterLoad, Load, LoadSignal

__all__ = ["ClusterLoad", "DataPlane", "Load", "LoadSignal"]
