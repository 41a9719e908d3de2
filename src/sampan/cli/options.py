"""Options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


class Duration(click.ParamType[float]):
    """``3d``, ``1h30m``, ``-2h``, ``90`` (seconds)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip()
        sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        if re.fullmatch(r"\d+(\.\d+)?", body):
            return sign * float(body)
        pieces = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhdw])", body)
        if not pieces or "".join(number + unit for number, unit in pieces) != body:
            self.fail(f"{value} is not a duration; write it like 3d, 1h30m, 90s or 250ms", param, ctx)
        return sign * sum(float(number) * UNITS[unit] for number, unit in pieces)


def default_data_dir() -> Path:
    """``~/.sampan`` unless SAMPAN_DATA_DIR says otherwise."""
    return Path(os.environ.get("SAMPAN_DATA_DIR") or Path.home() / ".sampan")


def _before(name: str) -> str | None:
    """The option of this name that was given before the command."""
    context = click.get_current_context(silent=True)
    given: str | None = None if context is None else context.find_root().params.get(name)
    return given


def _data_dir() -> Path:
    given = _before("data_dir")
    return Path(given) if given else default_data_dir()


def data_dir(command: F) -> F:
    """``--data-dir``."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=_data_dir,
        show_default="SAMPAN_DATA_DIR or ~/.sampan",
        help="The platform's data directory.",
        callback=lambda _context, _parameter, path: _in_unicode(path.expanduser().absolute()),
    )(command)


def _in_unicode(path: Path) -> Path:
    """The path, if it can be written into files and messages.

    Raises:
        click.BadParameter: its name has bytes that are no characters here.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise click.BadParameter(
            f"the name {shown} is not in UTF-8; choose another, or if the locale is what is wrong, set LC_ALL=C.UTF-8"
        ) from None
    return path


def as_json(command: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def choices(command: F) -> F:
    """What to run and how: the options that `up` and `demo` share."""
    for option in reversed(
        (
            click.option(
                "--ports",
                type=click.Choice(["default", "auto"]),
                default=lambda: _before("ports"),
                help="default: the upstream's own port numbers; auto: free ones.",
            ),
            click.option("--only", metavar="PARTS", help="Run only these parts (comma-separated) and what they need."),
            click.option("--without", metavar="PARTS", help="Leave these parts out, and what needs them."),
            click.option(
                "--config", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Settings file (YAML)."
            ),
            click.option(
                "--set", "flags", multiple=True, metavar="PART.FIELD=VALUE", help="One setting; may be repeated."
            ),
        )
    ):
        command = option(command)
    return command


def names(text: str | None) -> list[str]:
    """A comma-separated list of names."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
