"""`sampan func` and the mistakes one makes with it; no platform runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import sampan.cli


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "TARGET"], "--env TARGET: write NAME=VALUE"),
        (["--env", "=x"], "--env =x: write NAME=VALUE"),
        (["--name", "Bad_Name"], "'Bad_Name' cannot name a Service; give --name"),
        (["--module", "other"], "has no module other"),
        ([], "there is no platform in"),
    ],
)
def test_deploy_says_what_to_change(tmp_path: Path, arguments: list[str], told: str) -> None:
    function = tmp_path / "greeter"
    assert CliRunner().invoke(sampan.cli.sampan, ["func", "new", str(function)]).exit_code == 0
    line = ["--data-dir", str(tmp_path / "data"), "func", "deploy", str(function), *arguments]
    result = CliRunner().invoke(sampan.cli.sampan, line)
    assert result.exit_code != 0
    assert told in (result.output or str(result.exception))


def test_the_line_to_try_can_be_pasted(tmp_path: Path) -> None:
    result = CliRunner().invoke(sampan.cli.sampan, ["func", "new", str(tmp_path / "two words")])
    assert f"`sampan func run '{tmp_path}/two words'`" in result.output
