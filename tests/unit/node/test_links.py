"""The names of pods' links, and the machine's forwarding as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.parts.node.runtime import links


@given(st.ip_addresses(v=4).map(str))
def test_a_links_name_tells_the_pods_address_and_fits(address: str) -> None:
    name = links.name_of(address)
    assert len(name) <= 15
    assert links.address_of(name) == address


@pytest.mark.parametrize("name", ["eth0", "lo", "spn", "spnxyz", "spn0af4", "spn0af401020"])
def test_other_devices_are_no_links(name: str) -> None:
    assert links.address_of(name) == ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its forwarding setting, off."""
    setting = tmp_path / "ip_forward"
    setting.write_text("0\n")
    monkeypatch.setattr(links, "_FORWARDING", setting)
    monkeypatch.setattr(links, "_DEVICES", tmp_path / "net")
    monkeypatch.setattr(links, "present", list)
    (tmp_path / "net" / "eth0").mkdir(parents=True)
    return setting


def test_a_machine_that_did_not_forward_does_not_afterwards(machine: Path, tmp_path: Path) -> None:
    links.forward(tmp_path / "run")
    assert machine.read_text() == "1"
    links.restore_forwarding(tmp_path / "run")
    assert machine.read_text() == "0"
    machine.write_text("1")
    links.restore_forwarding(tmp_path / "run")
    assert machine.read_text() == "1"


def test_one_that_forwarded_goes_on(machine: Path, tmp_path: Path) -> None:
    machine.write_text("1\n")
    links.forward(tmp_path / "run")
    links.restore_forwarding(tmp_path / "run")
    assert machine.read_text() == "1\n"


def test_it_goes_on_while_there_are_pods_and_for_others_bridges(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links.forward(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(links, "present", lambda: ["10.244.0.2"])
        links.restore_forwarding(tmp_path / "run")
    assert machine.read_text() == "1"
    (tmp_path / "net" / "docker0" / "bridge").mkdir(parents=True)
    links.restore_forwarding(tmp_path / "run")
    assert machine.read_text() == "1"
