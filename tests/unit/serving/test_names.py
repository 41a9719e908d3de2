"""Names of what Serving makes: those that upstream's tools compute and look up."""

from __future__ import annotations

import pytest

from sampan.parts.serving import names

LONG = "autoscale-up-down-up-aggregation-linear-xjiovcrs-00001"


@pytest.mark.parametrize(
    ("parent", "suffix", "name"),
    [
        ("hello-00001", "-deployment", "hello-00001-deployment"),
        ("a" * 52, "-deployment", "a" * 52 + "-deployment"),
        (LONG, "-deployment", "autoscale-up-down-up95664f4cf826eff1a3f7a52c06c029f2-deployment"),
        (LONG, "-private", LONG + "-private"),
        ("b" * 10, "-" + "c" * 60, "b" * 10 + "93a934d1ab4146c35274c98192836ea8-" + "c" * 20),
    ],
)
def test_a_childs_name_is_shortened_as_upstream_does(parent: str, suffix: str, name: str) -> None:
    assert names.child(parent, suffix) == name
