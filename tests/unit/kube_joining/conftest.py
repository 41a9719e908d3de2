"""The API in memory that controllers are tested on."""

from __future__ import annotations

from tests.unit.kube_control.conftest import world as world
