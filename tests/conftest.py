"""Shared by every test: the platform's own fixtures, from an installed Sampan or from the source tree."""

from __future__ import annotations

import pytest

from sampan.testing import plugin


def pytest_configure(config: pytest.Config) -> None:
    # installed, the plugin came by its entry point under another name; registering the module twice would be an error
    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "sampan.testing.plugin")
