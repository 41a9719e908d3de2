"""One client interface, two transports (in process, HTTP)."""

from sampan.kube.client.interface import Client, ObjectList, WatchEvent

__all__ = ["Client", "ObjectList", "WatchEvent"]
