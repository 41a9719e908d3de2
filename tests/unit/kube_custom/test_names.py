"""Which names a definition gets beside the others of its group."""

from __future__ import annotations

from typing import Any

from sampan.kube.control.definitions import names_and_conditions
from sampan.kube.objects import copy
from tests.unit.kube_custom.widgets import definition


def other(**names: Any) -> dict[str, Any]:
    obj = copy(definition())
    obj["metadata"]["name"] = "others.example.com"
    obj["status"]["acceptedNames"] = {"plural": "others", "kind": "Other", "listKind": "OtherList", **names}
    return obj


def test_free_names_are_accepted() -> None:
    accepted, conditions = names_and_conditions(definition(), [other()])
    assert accepted == definition()["spec"]["names"]
    assert [one[:3] for one in conditions] == [
        ("NamesAccepted", "True", "NoConflicts"),
        ("Established", "False", "Installing"),
    ]


def test_a_taken_name_is_not_accepted_and_says_which() -> None:
    accepted, conditions = names_and_conditions(definition(), [other(shortNames=["wd"])])
    assert "shortNames" not in accepted
    assert accepted["plural"] == "widgets"
    assert conditions == [
        ("NamesAccepted", "False", "ShortNamesConflict", '"wd" is already in use'),
        ("Established", "False", "NotAccepted", "not all names are accepted"),
    ]


def test_names_of_other_groups_do_not_count() -> None:
    elsewhere = other(kind="Widget")
    elsewhere["spec"]["group"] = "other.com"
    assert names_and_conditions(definition(), [elsewhere])[1][0][1] == "True"


def test_an_established_definition_keeps_its_names_when_new_ones_are_taken() -> None:
    obj = copy(definition())
    obj["status"]["acceptedNames"] = copy(obj["spec"]["names"])
    obj["status"]["conditions"] = [{"type": "Established", "status": "True"}]
    obj["spec"]["names"]["singular"] = "other"
    accepted, conditions = names_and_conditions(obj, [other(singular="other")])
    assert accepted["singular"] == "widget"
    assert conditions == [("NamesAccepted", "False", "SingularConflict", '"other" is already in use')]
