"""A pod's volumes on this node: made before its containers, kept current while it runs, removed after it.

`Volumes.prepare` gives each volume a directory (or file) of the node that containers mount; memory-backed ones are tmpfs of the
sandbox. Where something is missing the pod waits, with the kubelet's FailedMount message. Claims are followed to hostPath and
local volumes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sampan.kube.objects import Key, Object, dig
from sampan.kube.types import quantity
from sampan.parts.node.agent.environment import Find
from sampan.parts.node.agent.payload import PodFacts, payload, write
from sampan.parts.node.errors import VolumeError
from sampan.parts.node.runtime import beneath
from sampan.parts.node.runtime.interface import Memory, Mount
from sampan.parts.node.runtime.layout import Layout

PAYLOADS = ("configMap", "secret", "downwardAPI", "projected")


@dataclass
class PodVolumes:
    """The volumes of one pod."""

    places: dict[str, str] = field(default_factory=dict)
    """Volume name → directory or file on the node."""
    images: dict[str, Object] = field(default_factory=dict)
    """Image volumes, whose place the caller fills in."""
    payloads: set[str] = field(default_factory=set)
    """Volumes whose files the agent writes: no container may, whatever its mount says."""


def memory_volumes(pod: Object, layout: Layout) -> list[Memory]:
    """The pod's memory-backed volumes."""
    made = []
    for volume in pod["spec"].get("volumes") or ():
        options = volume.get("emptyDir") or {}
        if options.get("medium") == "Memory":
            size = int(quantity.parse(options["sizeLimit"])) if options.get("sizeLimit") else 0
            made.append(Memory(str(layout.memory(pod["metadata"]["uid"], volume["name"])), size))
    return made


class Volumes:
    """Makes and removes volumes. The methods block for disk time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def prepare(self, facts: PodFacts, find_claim: Find) -> PodVolumes:
        """Make the pod's volumes (again: it is idempotent).

        Raises:
            VolumeError: one cannot be made now.
        """
        pod = facts.pod
        uid = pod["metadata"]["uid"]
        made = PodVolumes()
        gid = dig(pod, "spec", "securityContext", "fsGroup")
        for volume in pod["spec"].get("volumes") or ():
            name = volume["name"]
            try:
                self._one(uid, volume, facts, find_claim, made, gid)
            except OSError as error:
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{name}" : {error.strerror or error}'
                ) from error
            except VolumeError as error:
                raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error
        return made

    def _one(
        self, uid: str, volume: Object, facts: PodFacts, find_claim: Find, made: PodVolumes, gid: int | None
    ) -> None:
        name = volume["name"]
        place = self._layout.volume(uid, name)
        if any(kind in volume for kind in PAYLOADS):
            write(place, payload(volume, facts), gid)
            made.payloads.add(name)
        elif "hostPath" in volume:
            place = host_path(volume["hostPath"])
        elif "persistentVolumeClaim" in volume:
            place = self._claim(volume["persistentVolumeClaim"]["claimName"], facts, find_claim)
        elif "ephemeral" in volume:
            place = self._claim(f"{facts.pod['metadata']['name']}-{name}", facts, find_claim)
        elif "image" in volume:
            made.images[name] = volume["image"]
            return
        elif "emptyDir" in volume or len(volume) == 1:
            options = volume.get("emptyDir") or {}
            if options.get("medium") == "Memory":
                place = self._layout.memory(uid, name)
            else:
                place.mkdir(parents=True, exist_ok=True)
                place.chmod(0o2777 if gid is not None else 0o777)
                if gid is not None and os.geteuid() == 0:
                    os.chown(place, -1, gid)
        else:
            kind = next(key for key in volume if key != "name")
            raise VolumeError(f"volume type {kind} is not supported on this node")
        made.places[name] = str(place)

    def refresh(self, facts: PodFacts) -> bool:
        """Bring the payload volumes up to date; True when something changed. What is missing now is left as it was."""
        changed = False
        uid = facts.pod["metadata"]["uid"]
        gid = dig(facts.pod, "spec", "securityContext", "fsGroup")
        for volume in facts.pod["spec"].get("volumes") or ():
            if any(kind in volume for kind in PAYLOADS):
                try:
                    changed |= write(self._layout.volume(uid, volume["name"]), payload(volume, facts), gid)
                except VolumeError:
                    continue
        return changed

    def _claim(self, name: str, facts: PodFacts, find: Find) -> Path:
        namespace = facts.pod["metadata"]["namespace"]
        claim = find("persistentvolumeclaims", namespace, name)
        if claim is None:
            raise VolumeError(f'persistentvolumeclaim "{name}" not found')
        bound = dig(claim, "spec", "volumeName")
        volume = find("persistentvolumes", "", bound) if bound else None
        if volume is None:
            raise VolumeError(f'claim "{Key(namespace, name)}" is not bound yet')
        source = volume["spec"].get("hostPath") or volume["spec"].get("local")
        if not source:
            raise VolumeError(f'persistent volume "{bound}" is neither hostPath nor local')
        place = Path(source["path"])
        if not place.exists():
            place.mkdir(parents=True)
            place.chmod(0o777)
        return place

    def remove(self, uid: str) -> None:
        """Remove what the volumes of a pod left on the node; logs stay until the pod's object is gone."""
        shutil.rmtree(self._layout.pod(uid) / "volumes", ignore_errors=True)
        shutil.rmtree(self._layout.pod(uid) / "memory", ignore_errors=True)

    def forget(self, uid: str) -> None:
        """Remove everything of a pod."""
        shutil.rmtree(self._layout.pod(uid), ignore_errors=True)


def host_path(source: Object) -> Path:
    """A hostPath volume, checked or made as its type says. Raises VolumeError, OSError."""
    place, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        place.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate" and not place.exists():
        place.touch()
    checks = {
        "Directory": place.is_dir,
        "DirectoryOrCreate": place.is_dir,
        "File": place.is_file,
        "FileOrCreate": place.is_file,
        "Socket": place.is_socket,
        "CharDevice": place.is_char_device,
        "BlockDevice": place.is_block_device,
    }
    if kind in checks and not checks[kind]():
        words = {"Directory": "a directory", "File": "a file", "Socket": "a socket file"}.get(
            kind.removesuffix("OrCreate"), f"a {kind}"
        )
        raise VolumeError(f"hostPath type check failed: {place} is not {words}")
    if not kind and not place.exists():
        place.mkdir(parents=True)
    return place


def mounts(container: Object, volumes: PodVolumes, env: Mapping[str, str]) -> list[Mount]:
    """A container's mounts.

    Raises:
        VolumeError: it names a volume the pod lacks, or a subPath that leads out of its volume.
        OSError: a subPath cannot be made.
    """
    from sampan.parts.node.agent.environment import expand

    made = []
    for mount in container.get("volumeMounts") or ():
        place = volumes.places.get(mount["name"])
        if place is None:
            raise VolumeError(f'no volume "{mount["name"]}"')
        sub = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
        if sub:
            try:
                os.close(beneath.make(place, sub))
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise VolumeError(f"subPath {sub!r} leads out of its volume") from None
        read_only = bool(mount.get("readOnly")) or mount["name"] in volumes.payloads
        made.append(Mount(place, mount["mountPath"].rstrip("/") or "/", read_only, sub))
    return made
