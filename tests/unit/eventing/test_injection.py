"""SinkBinding: what it puts into pod templates, and that doing it twice changes nothing."""

from __future__ import annotations

from typing import Any

from sampan.parts.eventing.injection import inject, template_of, values


def template() -> dict[str, Any]:
    return {
        "spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}
    }


def test_every_container_gets_the_sink_and_a_second_time_changes_nothing() -> None:
    made = template()
    wanted = values("http://sink/", {"region": "eu"})
    assert inject(made, wanted)
    expected = [
        {"name": "K_SINK", "value": "http://sink/"},
        {"name": "K_CE_OVERRIDES", "value": '{"extensions":{"region":"eu"}}'},
    ]
    assert made["spec"]["initContainers"][0]["env"] == expected
    assert made["spec"]["containers"][0]["env"] == [{"name": "A", "value": "1"}, *expected]
    assert not inject(made, wanted)


def test_an_empty_value_that_the_server_dropped_is_no_difference() -> None:
    made = template()
    assert inject(made, values("http://sink/", {}))
    for container in (*made["spec"]["initContainers"], *made["spec"]["containers"]):
        for variable in container["env"]:
            if not variable["value"]:
                del variable["value"]
    assert not inject(made, values("http://sink/", {}))


def test_an_ended_binding_takes_its_variables_out_again() -> None:
    made = template()
    inject(made, values("http://sink/", {}))
    assert inject(made, {})
    assert made == template()


def test_the_template_of_a_cron_job_is_found() -> None:
    inner = template()
    assert template_of({"spec": {"jobTemplate": {"spec": {"template": inner}}}}) is inner
    assert template_of({"spec": {}}) is None
