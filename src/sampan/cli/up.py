"""``sampan up``: bring the platform up, in the foreground or, with ``--detach``, behind it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sampan import __version__
from sampan.cli import options
from sampan.kernel.errors import DataDirectoryError, SampanError
from sampan.kernel.files import private_folder
from sampan.kernel.folder import DataDirectory

OPEN_FILES = 65_536
"""Files and connections that a platform's process may hold open, where the system's hard limit allows it."""


@click.command("up")
@options.data_dir
@options.choices
@click.option("--detach", "-d", is_flag=True, help="Return when the platform is ready; it goes on by itself.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe log record.")
def command(
    data_dir: Path,
    ports: str | None,
    only: str | None,
    without: str | None,
    config: Path | None,
    flags: tuple[str, ...],
    detach: bool,
    log_level: str | None,
) -> None:
    """Bring the platform up.

    In the foreground it runs until Ctrl-C (or SIGTERM, or `sampan down`), then drains and stops. Every setting can be given in
    sampan.yaml of the data directory, as SAMPAN_<PART>_<FIELD> in the environment, or with --set; `sampan settings` lists them.
    """
    if (data_dir / "joined" / "node.json").exists():
        raise DataDirectoryError(f"{data_dir} is a node that joined another platform; `sampan node join` starts it")
    report_fd = None
    if detach:
        report_fd = detached_process(data_dir)
        if report_fd is None:
            return
    more = [f"platform.ports={ports}"] if ports else []
    more += [f"platform.log_level={log_level}"] if log_level else []
    report = Report(report_fd)
    from sampan.parts import PARTS

    try:
        run(PARTS, data_dir, only, without, config, (*flags, *more), report)
    except SampanError as error:
        if report.failed(str(error)):
            raise click.exceptions.Exit(1) from error
        raise


def run(
    parts: Mapping[str, str],
    data_dir: Path,
    only: str | None,
    without: str | None,
    config: Path | None,
    flags: tuple[str, ...],
    report: Report,
) -> None:
    """Run a platform of these parts until it is asked to stop. Raises SampanError where it cannot come up."""
    allow_files()
    gc.disable()  # until it is ready: nearly everything that is made until then stays
    from sampan.kernel.collection import Collector
    from sampan.kernel.issuing import IssuingProcess

    collector = Collector()

    # A first start makes all certificates: in a child, beside the rest of the start, so that this process never loads
    # what that takes. Now, because forking is for processes with a single thread.
    issuing = None if (data_dir / "pki" / "ca.crt").exists() else IssuingProcess.fork()
    import uvloop

    from sampan.kernel.platform import Platform

    async def body() -> None:
        platform = Platform(
            parts,
            data_dir,
            version=__version__,
            only=options.names(only),
            without=options.names(without),
            settings_file=config,
            environment=os.environ,
            flags=flags,
            logs="file" if report.to_parent else "both",
            issuing=issuing,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, platform.ask_to_stop)
        try:
            await platform.start()
            if issuing is not None:
                issuing.close()
            collector.begin()
            if platform.ready:
                report.ready(platform_lines(data_dir, platform.listeners.addresses()))
            await platform.wait()
        finally:
            collector.end()
            await platform.stop()
            if issuing is not None:
                issuing.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(body())


def allow_files(wanted: int = OPEN_FILES) -> None:
    """Let this process, and the ones it starts, hold more files and connections open than a shell's usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def platform_lines(data_dir: Path, addresses: dict[str, tuple[str, int]]) -> list[str]:
    """What a person wants to know of a platform that has just become ready."""
    lines = [f"ready; data in {data_dir}"]
    lines += [f"  {name:<24} {host}:{port}" for name, (host, port) in sorted(addresses.items())]
    if "kubernetes" in addresses:
        lines.append(f"use it with: export KUBECONFIG={data_dir / 'kubeconfig'}")
    return lines


class Report:
    """Tells whoever waits (a person, or the process that detached us) that the platform is ready or failed."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self.to_parent = descriptor is not None

    def ready(self, lines: list[str]) -> None:
        if not self._send({"ready": lines}):
            for line in lines:
                click.echo(line)

    def failed(self, error: str) -> bool:
        """Whether somebody was told."""
        return self._send({"error": error})

    def _send(self, message: dict[str, Any]) -> bool:
        if self._descriptor is None:
            return False
        with os.fdopen(self._descriptor, "w") as stream:
            stream.write(json.dumps(message) + "\n")
        self._descriptor = None
        return True


def detached_process(data_dir: Path) -> int | None:
    """Go on in a process of its own, without a terminal.

    Returns twice: in that process with the descriptor to report to, and in this one with None, once the platform is ready.
    A fork rather than a new interpreter: nothing has been started yet, and it saves a tenth of a second.

    Raises:
        SampanError: the platform did not come up; in this process only.
    """
    output_file = DataDirectory(data_dir).logs / "core.out"
    try:
        private_folder(data_dir)
        private_folder(output_file.parent)
        output = os.open(output_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataDirectoryError(f"the data directory {data_dir} cannot be used: {error.strerror}") from None
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        os.close(reading)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, standard in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, standard)
        os.close(nothing)
        os.close(output)
        return writing
    os.close(writing)
    os.close(output)
    with os.fdopen(reading) as stream:
        text = stream.readline()
    if not text:
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            raise SampanError("the platform was asked to stop (by `sampan down`, or a signal) before it was ready")
        raise SampanError(f"the platform ended during its start (code {code}); see {output_file} and `sampan logs`")
    message = json.loads(text)
    if "error" in message:
        os.waitpid(process, 0)  # so that the folder is free when we say that it failed
        raise SampanError(message["error"])
    for line in message["ready"]:
        click.echo(line)
    click.echo(
        "stop it with: sampan down" + ("" if data_dir == options.default_data_dir() else f" --data-dir {data_dir}")
    )
    return None
