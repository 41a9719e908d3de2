"""Which names a definition gets beside the others of its group."""

from __future__ import annotations

from typing import Any

from sampan.kube.control.definitions import ServedDefinitions, names_and_conditions
from sampan.kube.objects import Resource, copy
from sampan.kube.types.resource import ResourceType, Strategy, TypeRegistry
from tests.unit.kube_custom.widgets import definition


def other(**names: Any) -> dict[str, Any]:
    obj: dict[str, Any] = copy(definition())
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


def test_what_the_server_brings_itself_cannot_be_taken() -> None:
    own = ResourceType(Resource("example.com", "v1", "gadgets"), "Widget", "gadget", True, Strategy())
    taken = ServedDefinitions(TypeRegistry([own])).taken("example.com")
    assert names_and_conditions(definition(), taken)[1][0] == (
        "NamesAccepted",
        "False",
        "KindConflict",
        '"Widget" is already in use',
    )


def test_types_follow_the_definition_and_only_what_changed_is_made_anew() -> None:
    types = TypeRegistry()
    served = ServedDefinitions(types)
    first = copy(definition())
    served.load([first])
    assert types.all() == []  # not established yet
    served.serve(first)
    [kind] = types.all()
    again = copy(first)
    again["status"]["conditions"] = [{"type": "Established", "status": "True"}]
    served.serve(again)
    assert types.all() == [kind]
    renamed = copy(again)
    renamed["spec"]["versions"][0]["name"] = "v2"
    served.serve(renamed)
    assert [one.resource.version for one in types.all()] == ["v2"]
    going = copy(renamed)
    going["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z"
    served.serve(going)
    assert "create" not in types.all()[0].verbs
    served.forget("widgets.example.com")
    assert types.all() == []
