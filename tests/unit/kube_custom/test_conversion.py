"""The conversion webhook's side of the story: what is asked, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sampan.kube.control.conversion import WebhookConversions
from sampan.kube.objects import Object, copy
from sampan.kube.status import ApiError
from tests.unit.kube_custom.widgets import definition, widget

V2 = "example.com/v2"


class Webhook:
    """Answers like a webhook that only renames the version; ``spoil`` changes its response."""

    def __init__(self, spoil: Callable[[Object], None] | None = None) -> None:
        self.asked: list[int] = []
        self._spoil = spoil

    async def post(self, client: Mapping[str, Any], body: Mapping[str, Any], seconds: float) -> Object:
        request = body["request"]
        self.asked.append(len(request["objects"]))
        objects = [copy({**obj, "apiVersion": request["desiredAPIVersion"]}) for obj in request["objects"]]
        response = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}
        if self._spoil is not None:
            self._spoil(response)
        return {"response": response}


def conversion(webhook: Webhook) -> Any:
    obj = copy(definition())
    obj["spec"]["versions"].append({**obj["spec"]["versions"][0], "name": "v2", "storage": False})
    obj["spec"]["conversion"] = {"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://x"}}}
    made = WebhookConversions(webhook).of(obj)
    assert made is not None
    return made[0]


def test_no_webhook_no_conversion() -> None:
    assert WebhookConversions(Webhook()).of(definition()) is None


async def test_what_was_converted_is_not_asked_again_whatever_its_revision() -> None:
    webhook = Webhook()
    made = conversion(webhook)
    one, two = widget(size=1), widget(size=2)
    await made.prepare([one, two, {**one, "apiVersion": V2}], V2)
    stored = copy(one)
    stored["metadata"]["resourceVersion"] = "42"
    await made.prepare([stored], V2)
    assert webhook.asked == [2]
    result = made.convert(stored, V2)
    assert (result["apiVersion"], result["spec"], result["metadata"]["resourceVersion"]) == (V2, {"size": 1}, "42")
    assert made.convert(one, "example.com/v1") is one


async def test_a_stored_object_is_spread_to_every_served_version() -> None:
    webhook = Webhook()
    made = conversion(webhook)
    await made.spread(widget())
    assert made.convert(widget(), V2)["apiVersion"] == V2
    with pytest.raises(ApiError, match="not asked in time"):
        made.convert(widget(size=5), V2)


async def test_labels_and_annotations_may_change_and_nothing_else_of_metadata_does() -> None:
    def spoil(response: Object) -> None:
        response["convertedObjects"][0]["metadata"] |= {"labels": {"a": "b"}, "generation": 9}

    made = conversion(Webhook(spoil))
    await made.prepare([widget()], V2)
    metadata = made.convert(widget(), V2)["metadata"]
    assert metadata == {**widget()["metadata"], "labels": {"a": "b"}}


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda r: r.update(uid="other"), "expected response.uid="),
        (lambda r: r.update(result={"status": "Failure", "message": "no"}), "failed: no"),
        (lambda r: r["convertedObjects"].clear(), "expected 1 converted objects, got 0"),
        (lambda r: r["convertedObjects"][0].update(apiVersion="x/v1"), "invalid apiVersion"),
        (lambda r: r["convertedObjects"][0].update(kind="X"), "invalid kind"),
        (lambda r: r["convertedObjects"][0]["metadata"].update(name="x"), "metadata.name may not change"),
    ],
)
async def test_wrong_answers_are_refused(spoil: Callable[[Object], None], why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        await conversion(Webhook(spoil)).prepare([widget()], V2)
    assert caught.value.code == 500
    assert "conversion webhook for example.com/v1, Kind=Widget failed: " in caught.value.message
