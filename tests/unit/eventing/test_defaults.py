"""What eventing's defaulting fills in."""

from __future__ import annotations

from typing import Any

from sampan.parts.eventing.admission import default
from sampan.parts.eventing.configmaps import Config


def test_containers_of_a_source_are_named_after_it() -> None:
    containers = [{"image": "a"}, {"image": "b", "name": "own"}]
    source: dict[str, Any] = {"metadata": {"name": "beat"}, "spec": {"template": {"spec": {"containers": containers}}}}
    default("containersources", source, None, "default", Config(lambda _: None))
    assert [one["name"] for one in containers] == ["beat-0", "own"]
