"""The ``sampan`` command.

One module a command, imported when the command runs, so that each starts as fast as what it needs allows. A command fails
with one sentence on standard error: what is wrong, why, and what to do. Exit codes:

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | it did not work; the sentence says why |
| 2 | the command was not understood |
| 3 | no platform is running on the data directory |
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from sampan.kernel.errors import SampanError

FAILED = 1
NOT_RUNNING = 3

COMMANDS = {
    "up": "Bring the platform up.",
    "down": "Stop the platform.",
    "status": "Show parts, their state and every listening address.",
    "trace": "Show the way of requests and events through the platform.",
    "logs": "Show what the platform logged.",
    "kubeconfig": "Print a kubeconfig for the platform's Kubernetes API.",
    "image": "Build, list, export, import and map images.",
    "node": "Join further nodes to the platform.",
    "func": "Make, try and deploy functions.",
    "clock": "Show or steer the platform's clock.",
    "doctor": "Tell what this machine gives Sampan and what is wrong.",
    "mq": "Send, look at and operate messages.",
    "settings": "List every setting with its meaning.",
    "demo": "Start a platform of its own and show an application answering on it.",
    "version": "Print versions.",
}


class _Commands(click.Group):
    """Loads a command's module when it is called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``--data-dir`` is every command's, wherever in the line it stands."""
        return super().parse_args(ctx, hoisted(args))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"sampan.cli.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from sampan.kernel.settings import nearest

            ctx.fail(f"there is no command {args[0]}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def hoisted(arguments: list[str], option: str = "--data-dir") -> list[str]:
    """The arguments with every ``option VALUE`` before ``--`` moved to the front."""
    front: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for one in waiting:
        if one == "--":
            rest += [one, *waiting]
        elif one.startswith(f"{option}="):
            front.append(one)
        elif one == option and (value := next(waiting, None)) is not None:
            front += [one, value]
        else:
            rest.append(one)
    return front + rest


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sampan", message="%(version)s")
@click.option("--data-dir", type=click.Path(file_okay=False), help="The platform's data directory, for every command.")
@click.option("--ports", type=click.Choice(["default", "auto"]), help="auto: free ports instead of the upstream's own.")
def sampan(data_dir: str | None, ports: str | None) -> None:
    """The whole cloud-native stack on one machine.

    `sampan up` brings it up; `sampan status` shows what runs and where it listens. Several platforms live beside each other,
    each with its own --data-dir (or SAMPAN_DATA_DIR) and --ports auto; both may stand before or after the command.
    """


def _open_standard_files() -> None:
    """Have whoever closed our input or output (``>&-``) speak with nobody instead: the next file would take its place, and
    Python has no object for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # the lowest number that is free, which is the one that was closed
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", closefd=False))


def main() -> None:
    """Run the command line and exit."""
    from sampan.kernel.admin import NotRunningError

    _open_standard_files()
    try:
        code = sampan.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SampanError as error:
        click.echo(f"sampan: {error}", err=True)
        sys.exit(NOT_RUNNING if isinstance(error, NotRunningError) else FAILED)
    except BrokenPipeError:
        sys.exit(FAILED)  # whoever read our output had enough
