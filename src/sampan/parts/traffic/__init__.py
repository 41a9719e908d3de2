"""Traffic: Envoy and its control plane; the gateway for Gateway API and Ingress.

What other parts may use: `LoadSignal` (provided in the part's process), to follow the load of Services behind the gateway.
"""

from sampan.parts.traffic.load import ClusterLoad, Load, LoadSignal

__all__ = ["ClusterLoad", "Load", "LoadSignal"]
