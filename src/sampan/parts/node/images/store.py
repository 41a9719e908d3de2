"""The node's images: an OCI image layout on disk, content-addressed, with layers extracted once.

::

    <images>/oci-layout, index.json      the OCI layout's own files; a reference is an annotation of an index entry
    <images>/blobs/sha256/<digest>       manifests, configurations, layer archives
    <images>/layers/<digest>/            a layer extracted (marker ``<digest>.complete`` beside it)
    <images>/pythons/<key>/              a layer naming ``python`` where the system has a ``python3`` only
    <images>/environments/<key>/         dependency environments (`environment`)
    <images>/mappings.json               user mappings: a name stands for another image

Writers hold ``<images>/lock``; a reader sees the index before or after a change, never between. The layout is the standard
one, so ``skopeo`` and its like read and write it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sampan.kernel.files import write_atomic
from sampan.parts.node.errors import ImageError
from sampan.parts.node.images.environment import Environments, requirement_lines
from sampan.parts.node.images.image import HOST_BASE, PYTHON, REQUIREMENTS, Image, ImageConfig
from sampan.parts.node.images.reference import Reference
from sampan.parts.node.runtime import syscalls

if TYPE_CHECKING:
    import tarfile

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"
_WHITEOUT = ".wh."


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class ImageStore:
    """Images on disk. All methods block for disk time; call the slow ones (`prepare`, imports) off the loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environments = Environments(directory / "environments")
        self._blobs = directory / "blobs" / "sha256"

    def open(self) -> None:
        """Make the layout where there is none. Raises OSError."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        # other users of the machine have no business in there, whatever the modes inside
        (self.directory / "layers").mkdir(mode=0o700, exist_ok=True)
        marker = self.directory / "oci-layout"
        if not marker.exists():
            write_atomic(marker, b'{"imageLayoutVersion":"1.0.0"}')
        if not (self.directory / "index.json").exists():
            self._write_index([])

    # -- reading

    def entries(self) -> list[dict[str, Any]]:
        """The index: one descriptor a reference."""
        try:
            index = msgspec.json.decode((self.directory / "index.json").read_bytes())
        except FileNotFoundError:
            return []
        entries: list[dict[str, Any]] = index.get("manifests") or []
        return entries

    def references(self) -> dict[str, str]:
        """Reference → manifest digest."""
        found = {}
        for entry in self.entries():
            name = (entry.get("annotations") or {}).get(REF_NAME)
            if name:
                found[name] = entry["digest"]
        return found

    def find(self, reference: Reference) -> str | None:
        """The manifest digest behind a reference, or None."""
        if reference.digest:
            return reference.digest if self.blob(reference.digest).exists() else None
        return self.references().get(str(reference))

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        return self._blobs / digest.removeprefix("sha256:")

    def read(self, digest: str) -> dict[str, Any]:
        """A JSON blob.

        Raises:
            ImageError: it is missing or damaged.
        """
        try:
            data = self.blob(digest).read_bytes()
        except OSError as error:
            raise ImageError(f"blob {digest} is missing from the image store: {error.strerror}") from error
        if sha256(data) != digest:
            raise ImageError(f"blob {digest} in the image store is damaged")
        decoded: dict[str, Any] = msgspec.json.decode(data)
        return decoded

    def config(self, digest: str) -> tuple[ImageConfig, dict[str, Any], dict[str, Any]]:
        """Run configuration, whole configuration and manifest of a manifest digest. Raises ImageError."""
        manifest = self.read(digest)
        whole = self.read(manifest["config"]["digest"])
        return msgspec.convert(whole.get("config") or {}, ImageConfig), whole, manifest

    def prepare(self, digest: str, name: str) -> Image:
        """An image ready to run: layers extracted, environment made.

        Raises:
            ImageError: something is missing or damaged, or the environment cannot be made.
        """
        config, _whole, manifest = self.config(digest)
        layers = []
        for layer in manifest["layers"]:
            layers.append(str(self._extract(layer["digest"])))
        host = config.labels.get(HOST_BASE) == "host"
        python = ""
        extra: tuple[str, ...] = ()
        if PYTHON in config.labels:
            lines = requirement_lines(config.labels.get(REQUIREMENTS, ""))
            key = self.environments.ensure(lines)
            python = self.environments.interpreter(key)
            extra = python_directories(python)
            if not Path(python).with_name("python").exists():
                layers.insert(0, str(self._named_python(python)))
        return Image(
            name=name,
            id=manifest["config"]["digest"],
            digest=digest,
            config=config,
            layers=tuple(reversed(layers)),
            host=host,
            python=python,
            extra=extra,
            size=sum(layer["size"] for layer in manifest["layers"]),
            tags=tuple(name for name, other in self.references().items() if other == digest),
        )

    def _named_python(self, interpreter: str) -> Path:
        """A layer with the commands that a system's Python may lack: Debian's is ``python3`` only."""
        place = self.directory / "pythons" / hashlib.sha256(interpreter.encode()).hexdigest()[:16]
        commands = place / "usr/local/bin"
        commands.mkdir(parents=True, exist_ok=True)
        for name in ("python", "python3"):
            with contextlib.suppress(FileExistsError):
                (commands / name).symlink_to(interpreter)
        return place

    # -- writing

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing."""
        self.open()
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def add_blob(self, data: bytes) -> str:
        """Store a blob; returns its digest. Raises OSError."""
        digest = sha256(data)
        if not self.blob(digest).exists():
            write_atomic(self.blob(digest), data)
        return digest

    def add(self, name: str, config: ImageConfig, layers: list[bytes], diff_ids: list[str], created: str) -> str:
        """Store an image of gzipped tar layers under a reference; returns its manifest digest. Raises OSError."""
        whole = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "created": created,
            "config": msgspec.to_builtins(config),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        with self.lock():
            encoded = msgspec.json.encode(whole)
            descriptors = [{"mediaType": LAYER, "digest": self.add_blob(data), "size": len(data)} for data in layers]
            manifest = msgspec.json.encode(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": {"mediaType": CONFIG, "digest": self.add_blob(encoded), "size": len(encoded)},
                    "layers": descriptors,
                }
            )
            digest = self.add_blob(manifest)
            self._tag(name, digest, len(manifest))
        return digest

    def tag(self, name: str, digest: str) -> None:
        """Let a reference name a stored manifest. Raises ImageError."""
        self.read(digest)
        with self.lock():
            self._tag(name, digest, self.blob(digest).stat().st_size)

    def _tag(self, name: str, digest: str, size: int) -> None:
        kept = [entry for entry in self.entries() if (entry.get("annotations") or {}).get(REF_NAME) != name]
        kept.append({"mediaType": MANIFEST, "digest": digest, "size": size, "annotations": {REF_NAME: name}})
        self._write_index(kept)

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        write_atomic(self.directory / "index.json", msgspec.json.encode(document))

    def remove(self, reference: Reference) -> bool:
        """Drop a reference (or all references of a digest) and what nothing needs any more; False: there was none."""
        with self.lock():
            entries = self.entries()
            if reference.digest:
                kept = [entry for entry in entries if entry["digest"] != reference.digest]
            else:
                kept = [e for e in entries if (e.get("annotations") or {}).get(REF_NAME) != str(reference)]
            if len(kept) == len(entries):
                return False
            self._write_index(kept)
            self._sweep()
        return True

    def _sweep(self) -> None:
        """Remove blobs, extracted layers and environments that no reference reaches."""
        needed: set[str] = set()
        layers: set[str] = set()
        for digest in {entry["digest"] for entry in self.entries()}:
            needed.add(digest)
            with contextlib.suppress(ImageError):
                manifest = self.read(digest)
                layers.update(layer["digest"] for layer in manifest["layers"])
                needed.add(manifest["config"]["digest"])
        needed |= layers
        for blob in self._blobs.iterdir():
            if f"sha256:{blob.name}" not in needed:
                blob.unlink()
        for layer in (self.directory / "layers").iterdir():
            if f"sha256:{layer.name.removesuffix('.complete')}" not in needed:
                shutil.rmtree(layer) if layer.is_dir() else layer.unlink()

    def reclaim(self, used: Collection[str]) -> int:
        """Remove the extracted layers that only images beside ``used`` (manifest digests) have; returns the bytes freed.

        They are extracted again when a pod names their image.
        """
        freed = 0
        with self.lock():
            layers = {layer["digest"] for digest in used for layer in self.read(digest)["layers"]}
            for place in (self.directory / "layers").iterdir():
                if place.suffix == ".complete" or f"sha256:{place.name}" in layers:
                    continue
                place.with_name(f"{place.name}.complete").unlink(missing_ok=True)
                freed += sum(file.lstat().st_blocks * 512 for file in place.rglob("*"))
                shutil.rmtree(place, ignore_errors=True)
        return freed

    # -- mappings

    def mappings(self) -> dict[str, str]:
        """User mappings: familiar name or full reference → the reference to use instead."""
        try:
            found: dict[str, str] = msgspec.json.decode((self.directory / "mappings.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def map(self, name: str, target: str | None) -> None:
        """Let a name stand for another image; None removes the mapping. Raises OSError."""
        with self.lock():
            mappings = self.mappings()
            if target is None:
                mappings.pop(name, None)
            else:
                mappings[name] = target
            write_atomic(self.directory / "mappings.json", msgspec.json.format(msgspec.json.encode(mappings)))

    # -- layers

    def _extract(self, digest: str) -> Path:
        """A layer's directory, extracted on first use. Raises ImageError."""
        name = digest.removeprefix("sha256:")
        place = self.directory / "layers" / name
        done = place.with_name(f"{name}.complete")
        if done.exists():
            return place
        import lzma  # only who brings images needs these
        import tarfile
        import zlib

        with self.lock():
            if done.exists():
                return place
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            try:
                with tarfile.open(self.blob(digest)) as archive:
                    extract(archive, place)
            except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ImageError(f"layer {digest} cannot be extracted: {error}") from error
            # the mark says that all of it is there, also after a power cut
            syscalls.sync_file_system(str(place))
            done.touch()
        return place


def extract(archive: tarfile.TarFile, place: Path) -> None:
    """Unpack a layer inside its directory, turning OCI whiteouts into overlayfs'.

    Raises:
        ImageError: a whiteout leads out of the layer, or names nothing.
        OSError, TarError, EOFError, zlib.error, LZMAError: the archive is damaged, leads out of the layer, or finds no room.
    """
    import tarfile

    root = os.geteuid() == 0
    inside = place.resolve()

    def screened() -> Iterator[tarfile.TarInfo]:
        # judged one by one, just before each is made: links made before count
        for member in members:
            member.name = member.name.lstrip("/")
            for path in (member.name, *([member.linkname] if member.islnk() else [])):
                if path.startswith("/") or not (place / path).resolve().is_relative_to(inside):
                    raise tarfile.ExtractError(f"{path} leads out of the layer")
            if not member.issym():
                # a program must not gain its owner's rights; who may write stays as the image says: /tmp is everybody's
                member.mode &= 0o1777
            yield member

    hidden: list[tuple[Path, bool]] = []
    members = []
    for member in archive.getmembers():
        base = Path(member.name).name
        if base.startswith(_WHITEOUT):
            parent = place / Path(member.name).parent
            opaque = base == ".wh..wh..opq"
            if base.removeprefix(_WHITEOUT) in ("", ".", ".."):
                raise ImageError(f"the whiteout {member.name!r} hides nothing")
            hidden.append((parent if opaque else parent / base.removeprefix(_WHITEOUT), opaque))
        elif (member.isdev() and not root) or member.isfifo():
            continue
        else:
            members.append(member)
    # the standard library's filters came with 3.11.4; where there are some, ours is the only one
    archive.extraction_filter = lambda member, _: member
    archive.extractall(place, members=screened(), numeric_owner=True)  # noqa: S202 - screened
    for path, opaque in hidden:
        # before anything is made: through a link, even a folder on the way would lie outside
        if not path.resolve().is_relative_to(place.resolve()):
            raise ImageError(f"a whiteout leads out of its layer: {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if opaque:
            path.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                os.setxattr(path, "trusted.overlay.opaque" if root else "user.overlay.opaque", b"y")
        elif root:
            os.mknod(path, 0o020000, os.makedev(0, 0))


def python_directories(interpreter: str) -> tuple[str, ...]:
    """The host directories an interpreter lives in: its environment and its installation."""
    found = []
    place = Path(interpreter).parent.parent
    if (place / "pyvenv.cfg").exists():
        found.append(str(place))
    base = Path(sys.base_prefix)
    if str(base) not in ("/usr", "/"):
        found.append(str(base))
    return tuple(found)
