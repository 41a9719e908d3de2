"""Controller machinery: informers, work queue, controllers, leader election."""

from sampan.kube.control.controller import ControlContext, Controller, start_workers
from sampan.kube.control.events import EventRecorder
from sampan.kube.control.informer import SharedInformer, SharedInformers
from sampan.kube.control.interface import For, Informer, Informers, Owns, Queue, Recorder, Source, Startable, Watches
from sampan.kube.control.queue import WorkQueue

__all__ = [
    "ControlContext",
    "Controller",
    "EventRecorder",
    "For",
    "Informer",
    "Informers",
    "Owns",
    "Queue",
    "Recorder",
    "SharedInformer",
    "SharedInformers",
    "Source",
    "Startable",
    "Watches",
    "WorkQueue",
    "start_workers",
]
