"""Conversion of custom resources by a webhook.

Reads and watches are answered from memory and cannot wait for a webhook, so conversion is done ahead of need: a write converts
the object to the storage version and from there to every other served version before it is stored; a read of something that
was stored earlier first has it converted. What the webhook answered is kept by the content that was asked about (without its
revision, which conversion does not look at), up to a limit, oldest use first out.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sampan.kube.control.definitions import Conversions
from sampan.kube.objects import Object
from sampan.kube.status import ApiError, internal
from sampan.kube.types.resource import Conversion

if TYPE_CHECKING:
    from sampan.kube.types.custom.served import Converter

REMEMBERED = 10_000
"""Converted objects kept for each definition."""
BATCH = 500
"""Objects in one request at most."""
TIMEOUT_SECONDS = 30.0


class Caller(Protocol):
    """What posts a review to a webhook."""

    async def post(self, client: Mapping[str, Any], body: Mapping[str, Any], seconds: float) -> Object:
        """The decoded answer; fails with a `SampanError`."""
        ...


class WebhookConversions(Conversions):
    """Conversions of all definitions that name a webhook."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def of(self, definition: Object) -> tuple[Conversion, Converter] | None:
        spec = definition["spec"]
        conversion = spec.get("conversion") or {}
        if conversion.get("strategy") != "Webhook":
            return None
        made = WebhookConversion(self._caller, definition)
        return made, made.convert


class WebhookConversion:
    """The conversion of one definition; implements ``types.resource.Conversion``."""

    def __init__(self, caller: Caller, definition: Object) -> None:
        spec = definition["spec"]
        self._caller = caller
        self._client: Mapping[str, Any] = spec["conversion"]["webhook"]["clientConfig"]
        reviews = spec["conversion"]["webhook"].get("conversionReviewVersions") or ["v1"]
        self._review = next((one for one in reviews if one in ("v1", "v1beta1")), "v1")
        self._kind = f"{spec['group']}, Kind={spec['names']['kind']}"
        self._versions = [f"{spec['group']}/{one['name']}" for one in spec["versions"] if one.get("served")]
        self._known: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()

    async def prepare(self, objects: Sequence[Object], api_version: str) -> None:
        """Have these objects converted to an API version; those that are in it, or are known, cost nothing.

        Raises:
            ApiError: 500, the webhook cannot be reached or refuses.
        """
        wanted: dict[bytes, Object] = {}
        for obj in objects:
            if obj["apiVersion"] == api_version:
                continue
            key = _digest(obj)
            if (api_version, key) in self._known:
                self._known.move_to_end((api_version, key))
            else:
                wanted[key] = obj
        waiting = list(wanted.items())
        for start in range(0, len(waiting), BATCH):
            batch = waiting[start : start + BATCH]
            converted = await self._ask([obj for _, obj in batch], api_version)
            for (key, _), result in zip(batch, converted, strict=True):
                self._known[api_version, key] = msgspec.json.encode(result)
        while len(self._known) > max(REMEMBERED, len(waiting)):
            self._known.popitem(last=False)

    async def spread(self, stored: Object) -> None:
        """Have an object of the storage version converted to every served version.

        Raises:
            ApiError: as `prepare`.
        """
        for version in self._versions:
            await self.prepare([stored], version)

    def convert(self, obj: Object, api_version: str) -> Object:
        """An object in another API version, as `prepare` found it.

        Raises:
            ApiError: 500, it was not prepared.
        """
        if obj["apiVersion"] == api_version:
            return obj
        found = self._known.get((api_version, _digest(obj)))
        if found is None:
            raise self._failed(obj["apiVersion"], "the webhook was not asked in time")
        result: Object = msgspec.json.decode(found)
        if revision := obj["metadata"].get("resourceVersion"):
            result["metadata"]["resourceVersion"] = revision
        return result

    async def _ask(self, objects: Sequence[Object], api_version: str) -> list[Object]:
        source = objects[0]["apiVersion"]
        uid = str(uuid.uuid4())
        body = {
            "kind": "ConversionReview",
            "apiVersion": f"apiextensions.k8s.io/{self._review}",
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": list(objects)},
        }
        try:
            answer = await self._caller.post(self._client, body, TIMEOUT_SECONDS)
        except ApiError:
            raise
        except Exception as error:
            raise self._failed(source, str(error)) from error
        response = answer.get("response")
        if not isinstance(response, dict) or response.get("uid") != uid:
            raise self._failed(source, f'expected response.uid="{uid}", got something else')
        result = response.get("result") or {}
        if result.get("status") != "Success":
            raise self._failed(source, result.get("message") or f"response.result.status was {result.get('status')!r}")
        converted = response.get("convertedObjects")
        if not isinstance(converted, list) or len(converted) != len(objects):
            count = len(converted) if isinstance(converted, list) else 0
            raise self._failed(source, f"expected {len(objects)} converted objects, got {count}")
        return [self._checked(before, after, api_version) for before, after in zip(objects, converted, strict=True)]

    def _checked(self, before: Object, after: Any, api_version: str) -> Object:
        """What the webhook made of an object, with all metadata but labels and annotations as it was."""
        if not isinstance(after, dict) or after.get("apiVersion") != api_version:
            shown = after.get("apiVersion") if isinstance(after, dict) else None
            raise self._failed(
                before["apiVersion"], f"converted object has invalid apiVersion {shown!r}, expected {api_version!r}"
            )
        if after.get("kind") != before["kind"]:
            raise self._failed(before["apiVersion"], f"converted object has invalid kind {after.get('kind')!r}")
        given = after.get("metadata") or {}
        for field in ("name", "namespace", "uid"):
            if (given.get(field) or "") != (before["metadata"].get(field) or ""):
                raise self._failed(before["apiVersion"], f"metadata.{field} may not change in a conversion")
        metadata = {key: value for key, value in before["metadata"].items() if key not in ("labels", "annotations")}
        for field in ("labels", "annotations"):
            if given.get(field):
                metadata[field] = given[field]
        return {**after, "metadata": metadata}

    def _failed(self, source: str, why: str) -> ApiError:
        version = source.rpartition("/")[2]
        group, _, kind = self._kind.partition(", ")
        return internal(f"conversion webhook for {group}/{version}, {kind} failed: {why}")


def _digest(obj: Mapping[str, Any]) -> bytes:
    """What an object says, without its revision."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return hashlib.blake2b(
        msgspec.json.encode({**obj, "metadata": metadata}, order="deterministic"), digest_size=16
    ).digest()
