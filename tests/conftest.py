"""Shared by every test: the platform's own fixtures, from an installed Sampan or from the source tree."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from sampan.testing import plugin

# how fast examples are made depends on what else the machine does; neither speed nor a deadline is what a test is about
settings.register_profile("sampan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sampan")


def pytest_configure(config: pytest.Config) -> None:
    # installed, the plugin came by its entry point under another name; registering the module twice would be an error
    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "sampan.testing.plugin")
