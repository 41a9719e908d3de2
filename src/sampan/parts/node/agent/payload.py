"""What the files of configMap, secret, downwardAPI and projected volumes hold. Pure, but for the token a projection asks for.

A payload maps paths within the volume to contents and modes. `write` puts one on disk in the kubelet's layout: files are links
to ``..data/<path>``, and ``..data`` is a link to a directory named by time, replaced in one rename; so a reader that follows
``..data`` sees the old set of files or the new one.

A container that may write there (without mounts of its own it can) must not steer what is written or removed: a ``..data`` that
is not ours is replaced and never followed, and whatever else lies there is taken away without looking where it leads.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sampan.kube.objects import Object
from sampan.parts.node.agent.environment import Find, field, resource
from sampan.parts.node.errors import VolumeError


class File(NamedTuple):
    """One file of a payload."""

    content: bytes
    mode: int


Payload = dict[str, File]


class PodFacts(NamedTuple):
    """What payloads may ask about."""

    pod: Object
    host: str
    address: str
    allocatable: Mapping[str, str]
    find: Find
    tokens: Mapping[str, str]
    """Service account tokens by audience ("" the API server's), fetched before."""


def payload(volume: Object, facts: PodFacts) -> Payload:
    """The files of a volume.

    Raises:
        VolumeError: something it needs is missing; the message is the kubelet's.
    """
    if source := volume.get("configMap"):
        return _keys("configmaps", source, source["name"], source.get("defaultMode", 0o644), facts, "configmap")
    if source := volume.get("secret"):
        return _keys("secrets", source, source["secretName"], source.get("defaultMode", 0o644), facts, "secret")
    if source := volume.get("downwardAPI"):
        return _downward(source.get("items") or (), source.get("defaultMode", 0o644), facts)
    files: Payload = {}
    projected = volume.get("projected") or {}
    mode = projected.get("defaultMode", 0o644)
    for source in projected.get("sources") or ():
        if part := source.get("configMap"):
            files |= _keys("configmaps", part, part["name"], mode, facts, "configmap")
        elif part := source.get("secret"):
            files |= _keys("secrets", part, part["name"], mode, facts, "secret")
        elif part := source.get("downwardAPI"):
            files |= _downward(part.get("items") or (), mode, facts)
        elif part := source.get("serviceAccountToken"):
            token = facts.tokens.get(part.get("audience") or "", "")
            files[part["path"]] = File(token.encode(), 0o600 if mode == 0o644 else mode)
    return files


def audiences(volumes: list[Object]) -> dict[str, int]:
    """The token audiences that volumes ask for, with the seconds they are to last."""
    found: dict[str, int] = {}
    for volume in volumes:
        for source in (volume.get("projected") or {}).get("sources") or ():
            if part := source.get("serviceAccountToken"):
                found[part.get("audience") or ""] = int(part.get("expirationSeconds") or 3600)
    return found


def _keys(kind: str, source: Object, name: str, mode: int, facts: PodFacts, word: str) -> Payload:
    namespace = facts.pod["metadata"]["namespace"]
    found = facts.find(kind, namespace, name)
    if found is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'{word} "{name}" not found')
    contents: dict[str, bytes] = {}
    if kind == "configmaps":
        contents = {key: str(value).encode() for key, value in (found.get("data") or {}).items()}
        contents |= {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    else:
        contents = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    items = source.get("items")
    if not items:
        return {key: File(content, mode) for key, content in contents.items()}
    files: Payload = {}
    for item in items:
        if item["key"] not in contents:
            if source.get("optional"):
                continue
            raise VolumeError(
                f"references non-existent {'config' if kind == 'configmaps' else 'secret'} key: {item['key']}"
            )
        files[item["path"]] = File(contents[item["key"]], item.get("mode", mode))
    return files


def _downward(items: object, mode: int, facts: PodFacts) -> Payload:
    files: Payload = {}
    assert isinstance(items, (list, tuple))
    for item in items:
        if reference := item.get("fieldRef"):
            text = field(facts.pod, reference["fieldPath"], facts.host, facts.address)
        else:
            reference = item["resourceFieldRef"]
            every = [*facts.pod["spec"].get("containers", ()), *(facts.pod["spec"].get("initContainers") or ())]
            container = next((one for one in every if one["name"] == reference.get("containerName")), every[0])
            text = resource(container, reference, facts.allocatable)
        files[item["path"]] = File(text.encode(), item.get("mode", mode))
    return files


def write(directory: Path, files: Payload, gid: int | None = None) -> bool:
    """Make ``directory`` hold exactly these files; False when it did already. Blocks.

    Raises:
        OSError: the disk refuses.
        VolumeError: a path leads out of the volume.
    """
    for path in files:
        if path.startswith("/") or ".." in Path(path).parts:
            raise VolumeError(f"invalid path {path!r} in volume")
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "..data"
    old = _current(link)
    if old is not None and _holds(link, files):
        return False
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=directory))
    try:
        fresh.chmod(0o755)
        for path, file in files.items():
            place = fresh / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.content)
            place.chmod(file.mode | (0o040 if gid is not None else 0))
            if gid is not None and os.geteuid() == 0:
                os.chown(place, -1, gid)
        temporary = directory / "..data_tmp"
        _remove(temporary)
        temporary.symlink_to(fresh.name)
        if not link.is_symlink():
            _remove(link)
        temporary.replace(link)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    wanted = {Path(path).parts[0] for path in files}
    for name in wanted:
        entry = directory / name
        if not entry.is_symlink():
            _remove(entry)
            entry.symlink_to(f"..data/{name}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            _remove(entry)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _current(link: Path) -> Path | None:
    """The directory beside ``link`` that it names; None: it is missing, or not one of ours."""
    if not link.is_symlink():
        return None
    name = os.readlink(link)  # noqa: PTH115 - a relative link's text
    place = link.with_name(name) if name.startswith("..") and name != ".." and "/" not in name else None
    return place if place is not None and place.is_dir() and not place.is_symlink() else None


def _remove(entry: Path) -> None:
    """Take away whatever is there, a link as a link."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _holds(link: Path, files: Payload) -> bool:
    present = {str(path.relative_to(link)): path for path in link.rglob("*") if path.is_file()}
    return present.keys() == files.keys() and all(
        present[name].read_bytes() == file.content for name, file in files.items()
    )
