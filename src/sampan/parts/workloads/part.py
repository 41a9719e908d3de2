"""The workloads part: every built-in workload controller and the default scheduler.

Read this first: it starts the controllers, each in a file of its own under ``control/``, on the process's shared informers.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sampan.kernel.part import Part, PartSettings
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.events import EventRecorder
from sampan.parts.workloads.control import scheduler
from sampan.parts.workloads.control.autoscaler import AutoscalerController
from sampan.parts.workloads.control.cronjob import CronJobController
from sampan.parts.workloads.control.daemonset import DaemonSetController
from sampan.parts.workloads.control.deployment import DeploymentController
from sampan.parts.workloads.control.disruption import DisruptionController
from sampan.parts.workloads.control.endpoints import EndpointsController
from sampan.parts.workloads.control.finished_ttl import FinishedTTLController
from sampan.parts.workloads.control.job import JobController
from sampan.parts.workloads.control.mirroring import MirroringController
from sampan.parts.workloads.control.node_lifecycle import NodeLifecycleController, TaintEvictionController
from sampan.parts.workloads.control.pod_gc import PodGarbageController
from sampan.parts.workloads.control.replicas import ReplicaSetController, ReplicationControllerController
from sampan.parts.workloads.control.statefulset import StatefulSetController
from sampan.parts.workloads.control.volumes import ClaimController, VolumeController

CONTROLLERS: tuple[type[Controller], ...] = (
    DeploymentController,
    ReplicaSetController,
    ReplicationControllerController,
    StatefulSetController,
    DaemonSetController,
    JobController,
    CronJobController,
    FinishedTTLController,
    EndpointsController,
    MirroringController,
    DisruptionController,
    AutoscalerController,
    NodeLifecycleController,
    TaintEvictionController,
    PodGarbageController,
)


class WorkloadsSettings(PartSettings):
    """Settings of the workloads part."""

    scheduler: Annotated[
        bool, msgspec.Meta(description="Run the default scheduler; off where another one is used.")
    ] = True


class WorkloadsPart(Part[WorkloadsSettings]):
    """Controllers and scheduler."""

    name = "workloads"
    needs = ("kubernetes",)
    settings_type = WorkloadsSettings

    async def start(self) -> None:
        shared = self.context.get(ControlContext)
        context = ControlContext(shared.client, shared.informers, shared.clock, self.context.tasks, shared.metrics)
        volumes = self.context.data_dir / "volumes"
        controllers: list[Controller] = [kind(context) for kind in CONTROLLERS]
        controllers += [ClaimController(context, volumes), VolumeController(context, volumes)]
        for controller in controllers:
            await controller.start()
        if self.context.settings.scheduler:
            recorder = EventRecorder(context.client, context.clock, context.tasks, scheduler.NAME)
            await scheduler.Scheduler(context, recorder).start()
