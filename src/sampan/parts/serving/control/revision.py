"""Revision: a Deployment to run it, a PodAutoscaler to size it, and what became of its pods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sampan.kube.client.resources import CONFIG_MAPS, DEPLOYMENTS, PODS
from sampan.kube.control.conditions import ConditionSet, condition
from sampan.kube.control.controller import ControlContext, Controller
from sampan.kube.control.interface import For, Owns, Source, Watches
from sampan.kube.control.owned import NotOwnedError, ensure
from sampan.kube.objects import Key, Object, copy, dig
from sampan.parts.node import ImageDigests
from sampan.parts.serving import keys, names
from sampan.parts.serving.autoscaling import settings as autoscaling
from sampan.parts.serving.autoscaling.settings import duration
from sampan.parts.serving.configmaps import Config, everything
from sampan.parts.serving.lookups import pods_of_revision
from sampan.parts.serving.resources import IMAGES, POD_AUTOSCALERS, REVISIONS

USER_PORT = "user-port"
DEFAULT_PORT = 8080
STATUS_LATER = 0.2
"""Seconds until what pods say of themselves is looked at."""
DRAIN_SECONDS = 1
"""Between a pod's removal from the endpoints and its SIGTERM."""

REVISION_ONLY = ("containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds")
"""What a revision's spec says beside its pods'."""


class RevisionController(Controller):
    """Revisions of serving.knative.dev."""

    name = "revision-controller"
    workers = 4

    def __init__(
        self, context: ControlContext, config: Config, images: Callable[[], ImageDigests | None] = lambda: None
    ) -> None:
        """``images()`` gives what tells what images' names stand for, None where nothing does."""
        super().__init__(context)
        self._config = config
        self._images = images

    def sources(self) -> list[Source]:
        return [
            For(REVISIONS),
            Watches(CONFIG_MAPS, everything(lambda: self.informer(REVISIONS))),
            Owns(DEPLOYMENTS, "Revision"),
            Owns(POD_AUTOSCALERS, "Revision"),
            Watches(PODS, self._of_pod),
        ]

    def _of_pod(self, pod: Object) -> list[Key]:
        """At once while the revision comes up; later only its counts change, and that must not delay a request that waits."""
        name = dig(pod, "metadata", "labels", keys.REVISION)
        if not name:
            return []
        key = Key(pod["metadata"]["namespace"], name)
        if (condition(self.informer(REVISIONS).get(key)) or {}).get("status") != "True":
            return [key]
        self.queue.add_after(key, STATUS_LATER)
        return []

    async def reconcile(self, key: Key) -> float | None:
        revision = self.informer(REVISIONS).get(key)
        if revision is None or revision["metadata"].get("deletionTimestamp"):
            return None
        dependents = ("ResourcesAvailable", "ContainerHealthy")
        conditions = ConditionSet(revision, dependents, self.clock.now(), informational=("Active",))
        status: Object = copy(revision.get("status") or {})
        try:
            pinned = await self._pinned(revision)
            wanted = self._deployment(revision, pinned)
            deployment = await ensure(self, DEPLOYMENTS, revision, wanted, keep=("replicas",))
            for container in revision["spec"].get("containers") or ():
                await ensure(self, IMAGES, revision, self._image(revision, container), create_only=True)
            autoscaler = await ensure(self, POD_AUTOSCALERS, revision, self._autoscaler(revision), exact=())
        except NotOwnedError as error:
            conditions.false("ResourcesAvailable", "NotOwned", str(error))
        else:
            self._follow(revision, conditions, deployment, autoscaler)
            scale = autoscaler.get("status") or {}
            status["desiredReplicas"] = max(0, scale.get("desiredScale") or 0)
            status["actualReplicas"] = scale.get("actualScale") or 0
        status["containerStatuses"] = self._digests(revision, status.get("containerStatuses"))
        if revision["spec"].get("initContainers"):
            status["initContainerStatuses"] = self._digests(revision, status.get("initContainerStatuses"), init=True)
        status["conditions"] = conditions.conditions()
        status["observedGeneration"] = revision["metadata"].get("generation")
        if status != (revision.get("status") or {}):
            await self.client.update(REVISIONS, {**revision, "status": status}, subresource="status")
        return None

    # -- what it is made of

    async def _pinned(self, revision: Object) -> dict[str, str]:
        """The image of each container as its Deployment names it: what a tag stood for when the revision was made, forever."""
        named = [*(revision["spec"].get("initContainers") or ()), *(revision["spec"].get("containers") or ())]
        name = names.deployment(revision["metadata"]["name"])
        made = self.informer(DEPLOYMENTS).get(Key(revision["metadata"]["namespace"], name))
        if made is not None:
            pod = made["spec"]["template"]["spec"]
            return {
                one["name"]: one["image"] for kind in ("initContainers", "containers") for one in pod.get(kind) or ()
            }
        images = self._images()
        if images is None:
            return {}
        found = {one["name"]: await images.digest(one["image"]) for one in named if self._names_a_tag(one["image"])}
        # what no store has may still come, or is built in: the node tells
        return {name: image for name, image in found.items() if image}

    def _deployment(self, revision: Object, pinned: Mapping[str, str]) -> Object:
        metadata = revision["metadata"]
        labels = self._labels(revision)
        annotations = _own_annotations(revision)
        spec: Object = {name: copy(value) for name, value in revision["spec"].items() if name not in REVISION_ONLY}
        serving = serving_container(revision)
        for container in spec["containers"]:
            prepare(revision, container, serves=container["name"] == serving["name"])
        for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
            container["image"] = pinned.get(container["name"], container["image"])
        spec["terminationGracePeriodSeconds"] = int(revision["spec"].get("timeoutSeconds") or 300)
        annotations["kubectl.kubernetes.io/default-container"] = serving["name"]
        deadline = (metadata.get("annotations") or {}).get(keys.PROGRESS_DEADLINE)
        progress = duration(deadline) if deadline else self._config.progress_deadline()
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": names.deployment(metadata["name"]),
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": _own_annotations(revision),
            },
            "spec": {
                "replicas": self._initial_scale(revision),
                "selector": {"matchLabels": {keys.REVISION_UID: metadata["uid"]}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
                "progressDeadlineSeconds": int(progress),
                "revisionHistoryLimit": 0,
                "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
            },
        }

    def _labels(self, revision: Object) -> dict[str, str]:
        metadata = revision["metadata"]
        inherited = {
            name: value for name, value in (metadata.get("labels") or {}).items() if name != keys.ROUTING_STATE
        }
        return {
            **inherited,
            keys.REVISION: metadata["name"],
            keys.REVISION_UID: metadata["uid"],
            "app": metadata["name"],
        }

    def _initial_scale(self, revision: Object) -> int:
        annotations = revision["metadata"].get("annotations") or {}
        concurrency = int(revision["spec"].get("containerConcurrency") or 0)
        settings = autoscaling.read(annotations, concurrency, self._config.autoscaler())
        return max(settings.initial_scale, settings.min_scale)

    def _image(self, revision: Object, container: Object) -> Object:
        metadata = revision["metadata"]
        return {
            "apiVersion": "caching.internal.knative.dev/v1alpha1",
            "kind": "Image",
            "metadata": {
                "name": names.image_cache(metadata["name"], container["name"]),
                "namespace": metadata["namespace"],
                "labels": self._labels(revision),
            },
            "spec": {"image": container["image"]},
        }

    def _autoscaler(self, revision: Object) -> Object:
        metadata = revision["metadata"]
        state = (metadata.get("labels") or {}).get(keys.ROUTING_STATE)
        reachability = {"active": "Reachable", "reserve": "Unreachable"}.get(state or "", "Unknown")
        if _is_broken(revision):
            reachability = "Unreachable"  # its bounds no longer hold pods that will not come up
        return {
            "apiVersion": "autoscaling.internal.knative.dev/v1alpha1",
            "kind": "PodAutoscaler",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": self._labels(revision),
                "annotations": _own_annotations(revision),
            },
            "spec": {
                "scaleTargetRef": {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": names.deployment(metadata["name"]),
                },
                "containerConcurrency": int(revision["spec"].get("containerConcurrency") or 0),
                "protocolType": protocol_of(revision),
                "reachability": reachability,
            },
        }

    # -- how it fares

    def _follow(self, revision: Object, conditions: ConditionSet, deployment: Object, autoscaler: Object) -> None:
        active = condition(autoscaler, "Active")
        if active is None:
            conditions.unknown("Active", "Deploying")
        else:
            conditions.mirror("Active", autoscaler["status"], "Active")
        if (condition(autoscaler, "ScaleTargetInitialized") or {}).get("status") == "True":
            conditions.true("ResourcesAvailable")
            conditions.true("ContainerHealthy")
            return
        if not conditions.get("ResourcesAvailable")[1]:
            conditions.unknown("ResourcesAvailable", "Deploying")
            conditions.unknown("ContainerHealthy", "Deploying")
        trouble = self._trouble(revision) if not dig(deployment, "status", "availableReplicas", default=0) else None
        if trouble is not None:
            kind, reason, message = trouble
            conditions.false(kind, reason, message)
            return
        progressing = condition(deployment, "Progressing")
        if progressing is not None and progressing["status"] == "False":
            conditions.false("ResourcesAvailable", progressing["reason"], progressing.get("message") or "")
        elif active is not None and active["status"] == "False" and active.get("reason") == "TimedOut":
            conditions.false("ResourcesAvailable", "ProgressDeadlineExceeded", "Initial scale was never achieved")

    def _trouble(self, revision: Object) -> tuple[str, str, str] | None:
        """(condition, reason, message) of what keeps the pods from running."""
        serving = serving_container(revision)["name"]
        for pod in self._pods(revision):
            scheduled = condition(pod, "PodScheduled")
            if scheduled is not None and scheduled["status"] == "False":
                return "ResourcesAvailable", scheduled["reason"], scheduled.get("message") or ""
            for status in dig(pod, "status", "containerStatuses", default=[]):
                terminated = dig(status, "state", "terminated") or dig(status, "lastState", "terminated")
                if terminated is not None and terminated.get("exitCode") and status["name"] == serving:
                    message = f"Container failed with: {terminated.get('message') or terminated.get('reason') or ''}"
                    return "ContainerHealthy", f"ExitCode{terminated['exitCode']}", message
                waiting = dig(status, "state", "waiting", default={})
                if waiting.get("reason") in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
                    image = next(
                        (one["image"] for one in pod["spec"]["containers"] if one["name"] == status["name"]), ""
                    )
                    if not self._names_a_tag(image):
                        return "ResourcesAvailable", waiting["reason"], waiting.get("message") or ""
                    text = f'Unable to fetch image "{image}": {waiting.get("message") or waiting["reason"]}'
                    return "ContainerHealthy", "ContainerMissing", text
                if waiting.get("reason") in ("CrashLoopBackOff", "CreateContainerConfigError", "RunContainerError"):
                    return "ResourcesAvailable", waiting["reason"], waiting.get("message") or ""
        return None

    def _pods(self, revision: Object) -> list[Object]:
        metadata = revision["metadata"]
        return pods_of_revision(self.informer(PODS), metadata["namespace"], metadata["uid"])

    def _names_a_tag(self, image: str) -> bool:
        """Whether upstream would have looked up what the image's tag stands for, and failed at that already."""
        return "@" not in image and image.partition("/")[0] not in self._config.unresolved_registries()

    def _digests(self, revision: Object, known: list[Object] | None, *, init: bool = False) -> list[Object]:
        """Image digests by container, as far as a pod has told them."""
        found = {one["name"]: one for one in known or ()}
        for pod in self._pods(revision):
            for status in dig(pod, "status", "initContainerStatuses" if init else "containerStatuses", default=[]):
                if status.get("imageID"):
                    digest = status["imageID"]
                    if "@" not in digest:  # a node's own images are known by their digest alone
                        digest = f"{_repository(status.get('image') or '')}@{digest}"
                    found[status["name"]] = {"name": status["name"], "imageDigest": digest}
        order = [
            container["name"] for container in revision["spec"].get("initContainers" if init else "containers") or ()
        ]
        return [found.get(name, {"name": name}) for name in order]


def _repository(image: str) -> str:
    """An image's name without tag and digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def _is_broken(revision: Object) -> bool:
    """Its pods cannot be had, and none is there."""
    failed = [(condition(revision, kind) or {}).get("status") for kind in ("ResourcesAvailable", "ContainerHealthy")]
    return "False" in failed and not dig(revision, "status", "actualReplicas", default=0)


def prepare(revision: Object, container: Object, *, serves: bool) -> None:
    """Make a container of a revision's spec, in place, into one of its pods'."""
    environment = container.setdefault("env", [])
    labels = revision["metadata"].get("labels") or {}
    port = user_port(revision)
    known = {
        "K_REVISION": revision["metadata"]["name"],
        "K_CONFIGURATION": labels.get(keys.CONFIGURATION, ""),
        "K_SERVICE": labels.get(keys.SERVICE, ""),
    }
    if serves:
        known = {"PORT": str(port), **known}
        protocol = "h2c" if protocol_of(revision) == "h2c" else "http1"
        container["ports"] = [{"name": USER_PORT, "containerPort": port, "protocol": "TCP"}]
        _probe(container, port, protocol)
        container.setdefault("lifecycle", {})["preStop"] = {"sleep": {"seconds": DRAIN_SECONDS}}
    environment += [{"name": name, "value": value} for name, value in known.items()]
    container["terminationMessagePolicy"] = container.get("terminationMessagePolicy") or "FallbackToLogsOnError"


def _probe(container: Object, port: int, protocol: str) -> None:
    """The readiness probe on the user's port; the default one is asked every second."""
    probe = container.setdefault("readinessProbe", {"tcpSocket": {"port": 0}})
    for asked in (probe, container.get("livenessProbe") or {}, container.get("startupProbe") or {}):
        for kind in ("tcpSocket", "httpGet", "grpc"):
            if kind in asked and not asked[kind].get("port"):
                asked[kind]["port"] = port
    if dig(probe, "httpGet", "scheme"):
        # upstream's queue proxy asks by a URL, where the case does not matter; a Deployment takes capitals alone
        probe["httpGet"]["scheme"] = probe["httpGet"]["scheme"].upper()
    if not probe.get("periodSeconds"):
        probe["periodSeconds"] = 1
        probe["failureThreshold"] = 3
        probe["timeoutSeconds"] = 1


def sample_pod(spec: Object, namespace: str) -> Object:
    """A pod as a revision with this spec would have it."""
    revision: Object = {"metadata": {"name": "dry-run-validation"}, "spec": copy(spec)}
    serving = serving_container(revision)["name"]
    made = {name: value for name, value in revision["spec"].items() if name not in REVISION_ONLY}
    for container in made["containers"]:
        prepare(revision, container, serves=container["name"] == serving)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "dry-run-validation", "namespace": namespace},
        "spec": made,
    }


def serving_container(revision: Object) -> Any:
    """The container that declares a port, or the only one."""
    containers = revision["spec"]["containers"]
    return next((one for one in containers if one.get("ports")), containers[0])


def user_port(revision: Object) -> int:
    """The port the user's server listens on."""
    return int(dig(serving_container(revision), "ports", 0, "containerPort", default=DEFAULT_PORT) or DEFAULT_PORT)


def protocol_of(revision: Object) -> str:
    """``h2c`` or ``http1``, by the port's name."""
    return "h2c" if dig(serving_container(revision), "ports", 0, "name") == "h2c" else "http1"


def _own_annotations(revision: Object) -> dict[str, str]:
    dropped = (keys.ROUTES, keys.ROUTING_STATE_MODIFIED, "kubectl.kubernetes.io/last-applied-configuration")
    return {
        name: value for name, value in (revision["metadata"].get("annotations") or {}).items() if name not in dropped
    }
