"""Images in and out: an OCI image layout as a directory or a tar archive, as ``skopeo`` and ``docker load`` know it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import msgspec

from sampan.parts.node.errors import ImageError
from sampan.parts.node.images.reference import Reference
from sampan.parts.node.images.store import INDEX, MANIFEST, REF_NAME, ImageStore, sha256

_MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")


def export(store: ImageStore, name: str, target: Path) -> None:
    """Write an image as an OCI layout: a tar archive if ``target`` ends in .tar, else a directory. Blocks.

    Raises:
        ImageError: there is no such image.
    """
    reference = Reference.parse(name)
    digest = store.find(reference)
    if digest is None:
        raise ImageError(f"there is no image {name} here; `sampan image list` shows what is")
    manifest = store.read(digest)
    blobs = [digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    entry = {
        "mediaType": MANIFEST,
        "digest": digest,
        "size": store.blob(digest).stat().st_size,
        "annotations": {REF_NAME: reference.tag or "latest", "io.containerd.image.name": str(reference)},
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": msgspec.json.encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}),
    }
    for blob in dict.fromkeys(blobs):
        files[f"blobs/sha256/{blob.removeprefix('sha256:')}"] = store.blob(blob).read_bytes()
    if target.suffix == ".tar":
        with tarfile.open(target, "w") as archive:
            for path, content in files.items():
                information = tarfile.TarInfo(path)
                information.size = len(content)
                archive.addfile(information, io.BytesIO(content))
        return
    for path, content in files.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(content)


def load(store: ImageStore, source: Path, name: str = "") -> list[str]:
    """Take the images of an OCI layout (directory or tar) into the store; returns their references. Blocks.

    ``name`` names the image where the layout holds one and does not say.

    Raises:
        ImageError: not a layout, a blob is missing or damaged, or no name is known.
    """
    read = _reader(source)
    try:
        index: dict[str, Any] = msgspec.json.decode(read("index.json"))
    except (KeyError, OSError, msgspec.DecodeError) as error:
        raise ImageError(f"{source} is not an OCI image layout: it has no readable index.json") from error
    try:
        return _load(store, source, read, index, name)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ImageError(f"{source} has an index or a manifest that is not OCI's: {error!r}") from error


def _load(store: ImageStore, source: Path, read: Any, index: dict[str, Any], name: str) -> list[str]:
    names = []
    entries = _manifests(index, read)
    for entry in entries:
        annotations = entry.get("annotations") or {}
        called = annotations.get("io.containerd.image.name") or annotations.get(REF_NAME) or ""
        if name and len(entries) == 1:
            called = name
        if not called:
            raise ImageError(f"{source} does not name its image: give --tag")
        reference = Reference.parse(called)
        manifest = msgspec.json.decode(_verified(read, entry["digest"]))
        for blob in (manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])):
            content = _verified(read, blob)
            with store.lock():
                store.add_blob(content)
        with store.lock():
            store.add_blob(_verified(read, entry["digest"]))
        store.tag(str(reference), entry["digest"])
        names.append(str(reference))
    return names


def _manifests(index: dict[str, Any], read: Any) -> list[dict[str, Any]]:
    """Manifest descriptors of an index, with nested indexes (several platforms) opened for this machine."""
    import platform

    mine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    found = []
    for entry in index.get("manifests") or []:
        if entry.get("mediaType") in _MANIFESTS or "mediaType" not in entry:
            found.append(entry)
            continue
        nested = msgspec.json.decode(_verified(read, entry["digest"]))
        for inner in nested.get("manifests") or []:
            if (inner.get("platform") or {}).get("architecture") == mine:
                found.append(
                    {**inner, "annotations": {**(inner.get("annotations") or {}), **(entry.get("annotations") or {})}}
                )
                break
    return found


def _reader(source: Path) -> Any:
    if source.is_dir():
        return lambda path: (source / path).read_bytes()
    try:
        archive = tarfile.open(source)  # noqa: SIM115 - kept open for the reader's life
    except (OSError, tarfile.TarError) as error:
        raise ImageError(f"{source} is neither a directory nor a tar archive: {error}") from error
    members = {member.name.removeprefix("./"): member for member in archive.getmembers()}

    def read(path: str) -> bytes:
        file = archive.extractfile(members[path])
        if file is None:
            raise KeyError(path)
        return file.read()

    return read


def _verified(read: Any, digest: str) -> bytes:
    try:
        content: bytes = read(f"blobs/{digest.replace(':', '/')}")
    except (KeyError, OSError) as error:
        raise ImageError(f"the layout lacks blob {digest}") from error
    if sha256(content) != digest:
        raise ImageError(f"blob {digest} is damaged")
    return content
