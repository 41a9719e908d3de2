"""How a pod gets its image: user mappings, then the local store, then the built-in catalogue.

Nothing is pulled from anywhere: a name that none of these knows is an error that says how to build, import or map it. Pull
policies keep their meaning towards the local store: ``Always`` looks the tag up anew, ``IfNotPresent`` as well (that is what
being present means here), ``Never`` differs in its error only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from sampan.parts.node.errors import ImageError, ImageNeverPullError
from sampan.parts.node.images.catalogue import Catalogue
from sampan.parts.node.images.image import Image
from sampan.parts.node.images.reference import Reference
from sampan.parts.node.images.store import ImageStore
from sampan.parts.node.runtime import pause


def _pause() -> bytes:
    try:
        return pause.program()
    except KeyError:
        return b"#!/bin/sh\nexec sleep infinity\n"


class Images:
    """All images of a node."""

    def __init__(self, directory: Path) -> None:
        self.store = ImageStore(directory)
        self.catalogue = Catalogue(directory / "builtin", _pause)
        self._prepared: dict[str, Image] = {}
        self._making: dict[str, asyncio.Future[Image]] = {}

    async def get(self, image: str, policy: str = "IfNotPresent") -> Image:
        """The image a container names, ready to run.

        Raises:
            ImageError: (ErrImagePull) not here; (ErrImageNeverPull, InvalidImageName) as upstream.
        """
        reference = self._mapped(Reference.parse(image))
        digest = self.store.find(reference)
        if digest is None:
            found = self.catalogue.image(reference)
            if found is not None:
                return found
            if policy == "Never":
                raise ImageNeverPullError(f'Container image "{image}" is not present with pull policy of Never')
            raise ImageError(unknown(image, reference))
        if digest in self._prepared:
            return self._prepared[digest]
        making = self._making.get(digest)
        if making is None:
            # many pods of one image start at once: prepare it once
            making = asyncio.get_running_loop().run_in_executor(None, self.store.prepare, digest, str(reference))
            self._making[digest] = making
            making.add_done_callback(lambda _: self._making.pop(digest, None))
        prepared = await asyncio.shield(making)
        self._prepared[digest] = prepared
        return prepared

    async def digest(self, image: str) -> str:
        """``repository@sha256:...`` of what a name stands for at the moment; empty where the store has no such image."""
        return await asyncio.to_thread(self._digest, image)

    def _digest(self, image: str) -> str:
        try:
            reference = Reference.parse(image)
            found = self.store.find(self._mapped(reference))
        except ImageError:
            return ""
        return f"{reference.repository}@{found}" if found else ""

    def present(self, image: str) -> bool:
        """The image is here (the kubelet's "already present on machine")."""
        reference = self._mapped(Reference.parse(image))
        return self.store.find(reference) is not None or self.catalogue.entry(reference) is not None

    def reclaim(self, used: Collection[str]) -> int:
        """Remove what no running container needs and the store can make again; returns the bytes freed. Blocks.

        ``used`` are the image ids of container statuses. Images themselves stay: nothing here could pull them again.
        """
        needed = {name.rpartition("@")[2] for name in used}
        freed = self.store.reclaim({digest for digest in self.store.references().values() if digest in needed})
        self._prepared = {digest: image for digest, image in self._prepared.items() if digest in needed}
        return freed

    def _mapped(self, reference: Reference) -> Reference:
        mappings = self.store.mappings()
        for _ in range(8):
            target = next(
                (
                    mappings[name]
                    for name in (
                        str(reference),
                        f"{reference.familiar}:{reference.tag}",
                        reference.repository,
                        reference.familiar,
                    )
                    if name in mappings
                ),
                None,
            )
            if target is None:
                return reference
            reference = Reference.parse(target)
        raise ImageError(f"image mappings go round in a circle at {reference}")

    def listed(self) -> list[dict[str, object]]:
        """``status.images`` of the node: the store's images."""
        names: dict[str, list[str]] = {}
        for name, digest in self.store.references().items():
            names.setdefault(digest, []).append(name)
        listed: list[dict[str, object]] = []
        for digest, tags in names.items():
            try:
                manifest = self.store.read(digest)
            except ImageError:
                continue
            repository = Reference.parse(tags[0]).repository
            listed.append(
                {
                    "names": [f"{repository}@{digest}", *sorted(tags)],
                    "sizeBytes": sum(layer["size"] for layer in manifest["layers"]),
                }
            )
        return listed


def unknown(image: str, reference: Reference) -> str:
    """What to tell about an image that is nowhere."""
    return (
        f'failed to pull and unpack image "{reference}": not in the local image store, and Sampan pulls nothing. '
        f"Build it (sampan image build DIRECTORY -t {image}), import it (sampan image import FILE.tar), "
        f"or let the name stand for another image (sampan image map {reference.familiar} OTHER)"
    )
