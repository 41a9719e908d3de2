"""JobSink: a Job for each event. The event lies in a file of the Job's pod; a second delivery starts no second Job.

``POST /<namespace>/<name>`` at the sink's host; ``GET`` on the Location that answers it tells how the Job is.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

import msgspec
from aiohttp import web

from sampan.kube.client import Client
from sampan.kube.client.resources import JOBS, SECRETS
from sampan.kube.control.conditions import ConditionSet
from sampan.kube.control.controller import Controller
from sampan.kube.control.interface import For, Source
from sampan.kube.objects import Key, Object, copy, dig, owner_reference
from sampan.kube.status import ApiError
from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.control.channels import POLICIES
from sampan.parts.eventing.control.dataplane import Shared
from sampan.parts.eventing.control.status import address, write_status
from sampan.parts.eventing.resources import JOB_HOST, JOB_SINKS, SINKS

MOUNT = "/etc/jobsink-event"
LABEL = f"{SINKS}/job-sink-name"


class JobSinkController(Controller):
    """Gives a sink its address."""

    name = "jobsink-controller"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.context)

    def sources(self) -> list[Source]:
        return [For(JOB_SINKS)]

    async def reconcile(self, key: Key) -> float | None:
        sink = self.informer(JOB_SINKS).get(key)
        if sink is None or sink["metadata"].get("deletionTimestamp"):
            return None
        conditions = ConditionSet(sink, ("Addressable", "EventPoliciesReady"), self.clock.now())
        conditions.true("Addressable")
        conditions.true("EventPoliciesReady", *POLICIES)
        fields = {
            **address(f"http://{JOB_HOST}/{key.namespace}/{key.name}"),
            "job": {"selector": f"{LABEL}={key.name}"},
        }
        await write_status(self, JOB_SINKS, sink, conditions, fields)
        return None

    async def take(self, request: web.BaseRequest, body: bytes) -> web.Response:
        """Answer what is addressed to the sinks' host."""
        # a source may have slashes of its own, so the path is divided before it is decoded
        parts = [unquote(part) for part in request.raw_path.partition("?")[0].split("/") if part]
        if request.method == "GET" and len(parts) == 8:
            return await self._look(Key(parts[1], parts[3]), parts[5], parts[7])
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST, GET"})
        if len(parts) != 2:
            return web.Response(status=400, text="an event goes to /<namespace>/<sink>\n")
        event = cloudevents.decode(request.headers, body)
        key = Key(parts[0], parts[1])
        sink = self.informer(JOB_SINKS).get(key)
        if sink is None:
            return web.Response(status=404, text=f"there is no JobSink {key}\n")
        source, id = event.text("source") or "", event.text("id") or ""
        await self._start(sink, job_name(key.name, source, id), msgspec.json.encode(cloudevents.to_json(event)))
        where = f"/namespaces/{key.namespace}/name/{key.name}/sources/{quote(source, safe='')}/ids/{quote(id, safe='')}"
        return web.Response(status=202, headers={"Location": where})

    async def _start(self, sink: Object, name: str, event: bytes) -> None:
        job = _job(sink, name)
        namespace = sink["metadata"]["namespace"]
        try:
            made = await self.client.create(JOBS, job, namespace)
        except ApiError as error:
            if not error.already_exists:
                raise
            made = await self.client.get(JOBS, name, namespace)
        # the pod waits for its Secret, which goes with the Job
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {LABEL: sink["metadata"]["name"]}, "ownerReferences": [_owner(made)]},
            "type": "Opaque",
            "stringData": {"event": event.decode()},
        }
        await _create(self.client, secret, namespace)

    async def _look(self, key: Key, source: str, id: str) -> web.Response:
        try:
            job = await self.client.get(JOBS, job_name(key.name, source, id), key.namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            return web.Response(status=404)
        for one in dig(job, "status", "conditions", default=[]):
            if one["status"] == "True" and one["type"] in ("Complete", "Failed"):
                return web.Response(status=200 if one["type"] == "Complete" else 400)
        return web.Response(status=202)


async def _create(client: Client, secret: Object, namespace: str) -> None:
    try:
        await client.create(SECRETS, secret, namespace)
    except ApiError as error:
        if not error.already_exists:
            raise


def job_name(sink: str, source: str, id: str) -> str:
    """The Job of an event: the same for the same source and id."""
    digest = hashlib.md5(f"{source}{id}".encode(), usedforsecurity=False).hexdigest()
    return f"{sink[: 63 - len(digest)]}{digest}"


def _owner(obj: Object) -> Object:
    return owner_reference({"apiVersion": "batch/v1", "kind": "Job", **obj})


def _job(sink: Object, name: str) -> Object:
    template = copy(sink["spec"]["job"])
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), LABEL: sink["metadata"]["name"], f"{SINKS}/job-sink-id": name[-32:]}
    job: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner_reference(sink)],
        },
        "spec": template["spec"],
    }
    pod = job["spec"]["template"]["spec"]
    pod.setdefault("restartPolicy", "Never")
    pod.setdefault("volumes", []).append({"name": "jobsink-event", "secret": {"secretName": name}})
    for container in pod["containers"]:
        container.setdefault("env", []).append({"name": "K_EVENT_PATH", "value": f"{MOUNT}/event"})
        mount = {"name": "jobsink-event", "mountPath": MOUNT, "readOnly": True}
        container.setdefault("volumeMounts", []).append(mount)
    return job
