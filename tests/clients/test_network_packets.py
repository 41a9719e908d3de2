"""The nf_tables data path against the kernel: flows, sources, forged packets, changes; in network namespaces of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sampan.parts.node.runtime import links, tiers
from tests.clients.packet_world import FIRST, INSIDE, SECOND, THIRD

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")]


@pytest.fixture(autouse=True)
def _possible() -> None:
    if refused := tiers.in_child(lambda: links.probe("10.244.9.0/24")):
        pytest.skip(f"no network namespaces with nf_tables here: {refused}")


def _seen(scenario: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.packet_world", scenario],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_datagrams_go_to_who_is_an_endpoint_now() -> None:
    client = THIRD
    assert _seen("flows") == [*[f"{FIRST} {client} ?"] * 2, *[f"{SECOND} {client} ?"] * 2, "ConnectionRefusedError"]


def test_networks_outside_see_the_machine() -> None:
    assert _seen("outside") == [INSIDE, "answer"]


def test_pods_speak_from_their_address_and_not_to_the_machines_localhost() -> None:
    assert _seen("forged") == {"pod": ["own"], "localhost": ["service", "unguarded"]}


def test_a_load_balancer_keeps_its_source_ranges_inside_the_cluster() -> None:
    assert _seen("guarded") == [SECOND, "", "", "anybody"]


def test_two_platforms_that_look_at_the_same_moment_both_find_namespaces() -> None:
    look = "from sampan.parts.node.runtime import links; links.probe('10.244.9.0/24')"
    looks = [subprocess.Popen([sys.executable, "-c", look], stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [one.communicate(timeout=60)[1] for one in looks] == [""] * 6


def test_a_packet_between_two_transactions_does_not_lose_its_connection() -> None:
    assert _seen("slipped") == ["[]", FIRST]


def test_the_kernel_takes_every_change() -> None:
    assert _seen("changes") == 120


def test_a_table_is_replaced_and_taken_away() -> None:
    assert _seen("twice") == [True, False, False]
