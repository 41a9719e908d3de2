"""``sampan func``: from a decorated Python function to a Service in one command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from sampan.cli import options
from sampan.cli.status import read as read_status
from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.folder import DataDirectory

PATIENCE = 5.0
"""Seconds a function has to finish what it does when it is started again."""
LOOK_EVERY = 0.3
"""Seconds between two looks at the function's files."""

_HTTP = '''\
"""An HTTP function."""

from sampan.functions import Request, http


@http
def hello(request: Request) -> str:
    return f"Hello {request.query.get('name', 'World')}!\\n"
'''
_EVENT = '''\
"""A function that takes CloudEvents."""

from sampan.functions import Event, event


@event
def handle(event: Event) -> dict[str, object]:
    print(f"{event.type} from {event.source}: {event.data}", flush=True)
    return {"received": event.id}
'''


@click.group("func")
def command() -> None:
    """Make, try and deploy functions."""


@command.command("new")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--event", "for_events", is_flag=True, help="A function that takes CloudEvents instead of HTTP requests.")
def new_command(directory: Path, for_events: bool) -> None:
    """Write a function to start from into DIRECTORY."""
    target = directory / "app.py"
    if target.exists():
        raise SampanError(f"{target} exists already")
    directory.mkdir(parents=True, exist_ok=True)
    target.write_text(_EVENT if for_events else _HTTP)
    click.echo(f"wrote {target}; try it with `sampan func run {shlex.quote(str(directory))}`")


@command.command("run")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--module", default="app", help="The module with the functions.")
@click.option("--port", default=8080, help="Port to serve on.")
def run_command(directory: Path, module: str, port: int) -> None:
    """Serve the functions in DIRECTORY, again after every change, until interrupted."""
    _check_module(directory.resolve(), module)
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SampanError(
            f"port {port} cannot be listened on ({os.strerror(error.errno or 0)}); --port chooses another"
        ) from None
    click.echo(f"http://localhost:{port}/ (stop with Ctrl-C)")
    try:
        asyncio.run(_serve(directory.resolve(), module, port))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("stopped")


async def _serve(directory: Path, module: str, port: int) -> None:
    clock = Clock()
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": str(port), "PYTHONPATH": _source_path()}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "sampan.functions", module], cwd=directory, env=environment)

    process, seen, told = start(), _state(directory), False
    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    try:
        while True:
            await clock.sleep(LOOK_EVERY)
            now = await asyncio.to_thread(_state, directory)
            if now == seen:
                if process.poll() is not None and not told:
                    told = True
                    click.echo("it ended; waiting for a change")
                continue
            seen, told = now, False
            click.echo("changed, starting again")
            await asyncio.to_thread(_end, process)
            process = start()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; insist after `PATIENCE`. Blocks."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _state(directory: Path) -> dict[str, int]:
    """Modification times of the sources."""
    found = {}
    for path in directory.rglob("*"):
        if path.suffix in (".py", ".json", ".yaml", ".yml", ".toml", ".html") and "__pycache__" not in path.parts:
            try:
                found[str(path)] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # it went while we looked
    return found


def _source_path() -> str:
    """Where the package ``sampan`` lies."""
    import sampan

    (package,) = sampan.__path__
    return str(Path(package).parent)


@command.command("deploy")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@options.data_dir
@click.option("--name", default="", help="The Service's name (default: the directory's).")
@click.option("-n", "--namespace", default="default", show_default=True, help="Its namespace.")
@click.option("--module", default="app", help="The module with the functions.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment; may be repeated.")
@click.option("--concurrency", type=int, default=0, help="Requests a pod may have at once (0: any number).")
@click.option("--min-scale", type=int, default=0, help="Pods to keep when idle.")
@click.option("--timeout", type=float, default=60.0, help="Seconds to wait until it is ready.")
def deploy_command(
    directory: Path,
    data_dir: Path,
    name: str,
    namespace: str,
    module: str,
    env: tuple[str, ...],
    concurrency: int,
    min_scale: int,
    timeout: float,
) -> None:
    """Build DIRECTORY into an image and make it a Service; prints its URL."""
    chosen = name or re.sub(r"[^a-z0-9-]+", "-", directory.resolve().name.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", chosen):
        raise SampanError(f"{chosen!r} cannot name a Service; give --name")
    for one in env:
        if not one.partition("=")[0] or "=" not in one:
            raise SampanError(f"--env {shlex.quote(one)}: write NAME=VALUE")
    pairs = [one.partition("=") for one in env]
    _check_module(directory.resolve(), module)
    kubeconfig = DataDirectory(data_dir).kubeconfig
    if not kubeconfig.exists():
        raise SampanError(f"there is no platform in {data_dir} yet; `sampan up` starts one")
    image = _build(directory.resolve(), data_dir, chosen, module)
    container: dict[str, Any] = {
        "image": image,
        "env": [{"name": key, "value": value} for key, _, value in pairs],
    }
    annotations = {"autoscaling.knative.dev/min-scale": str(min_scale)} if min_scale else {}
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": chosen, "namespace": namespace, "labels": {"function.knative.dev": "true"}},
        "spec": {
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {"containers": [container], "containerConcurrency": concurrency},
            }
        },
    }
    click.echo(_to_open(data_dir, f"{namespace}/{chosen}", asyncio.run(_apply(kubeconfig, service, timeout))))


def _check_module(directory: Path, module: str) -> None:
    place = directory / module.replace(".", "/")
    if not place.with_suffix(".py").exists() and not (place / "__init__.py").exists():
        raise SampanError(f"{directory} has no module {module}; `sampan func new` writes one")


def _to_open(data_dir: Path, service: str, url: str) -> str:
    """A Service's URL with the port it is served on, where the platform can be asked."""
    for part in read_status(data_dir)["parts"]:
        found = part["facts"].get("urls", {}).get(service) if part["name"] == "serving" else None
        if found:
            return str(found)
    return url


def _build(directory: Path, data_dir: Path, name: str, module: str) -> str:
    """The image of the function and of the few files that serve it, named by its content; its name."""
    import sampan.functions
    from sampan.parts.node.images.build import build
    from sampan.parts.node.images.store import ImageStore

    store = ImageStore(DataDirectory(data_dir).part("node") / "images")
    store.open()
    with tempfile.TemporaryDirectory(prefix="sampan-func-") as folder:
        stage = Path(folder) / "app"
        shutil.copytree(directory, stage, ignore=shutil.ignore_patterns(".git", "__pycache__", ".venv", "venv"))
        (package,) = sampan.functions.__path__
        (stage / "sampan").mkdir(exist_ok=True)
        (stage / "sampan" / "__init__.py").write_text("")
        shutil.copytree(package, stage / "sampan" / "functions", ignore=shutil.ignore_patterns("__pycache__"))
        created = Clock().now().isoformat().replace("+00:00", "Z")
        start = f"python -m sampan.functions {module}"
        digest = build(store, stage, f"dev.local/{name}:latest", command=start, created=created)
    return f"dev.local/{name}:latest@{digest}"


async def _apply(kubeconfig: Path, service: dict[str, Any], timeout: float) -> str:
    """Apply the Service and wait until it is ready; its URL."""
    from sampan.kube.client.http import HttpClient
    from sampan.kube.objects import Resource

    resource = Resource("serving.knative.dev", "v1", "services")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    clock = Clock()
    async with HttpClient.from_kubeconfig(kubeconfig) as client:
        await client.apply(resource, service, field_manager="sampan-func", force=True)
        last = ""
        try:
            async with clock.timeout(timeout):
                while True:
                    found = await client.get(resource, name, namespace)
                    status = found.get("status") or {}
                    ready: dict[str, Any] = next(
                        (one for one in status.get("conditions") or () if one["type"] == "Ready"), {}
                    )
                    current = status.get("observedGeneration") == found["metadata"]["generation"]
                    last = f"{ready.get('reason', '')} {ready.get('message', '')}".strip()
                    if current and ready.get("status") == "True":
                        return str(status["url"])
                    if current and ready.get("status") == "False":
                        raise SampanError(f"{name} does not become ready: {last}")
                    await clock.sleep(0.1)
        except TimeoutError:
            raise SampanError(f"{name} is not ready after {timeout:g} s: {last or json.dumps(status)}") from None
