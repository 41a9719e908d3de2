"""``sampan demo``: a platform of its own, an application on it, and proof that it answers.

It uses a temporary data directory and free ports, so it disturbs nothing and nothing is left of it. The application is
reached the way a user's client would reach it: over the network, with the kubeconfig's certificate.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Any

import click

from sampan import __version__
from sampan.cli import options
from sampan.kernel.errors import SampanError


class DemoError(SampanError):
    """The demo's application did not answer as it should."""


@click.command("demo")
@options.choices
@click.option("--check", is_flag=True, help="Show it once and end: exit code 0 only if everything answered.")
def command(
    check: bool,
    ports: str | None,
    only: str | None,
    without: str | None,
    config: Path | None,
    flags: tuple[str, ...],
) -> None:
    """Start a platform in a temporary directory, put an application on it, and show that it answers.

    Without --check the platform stays until Ctrl-C, so that you can look at it with kubectl.
    """
    import uvloop

    with (
        tempfile.TemporaryDirectory(prefix="sampan-demo-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        flags = (*flags, f"platform.ports={ports or 'auto'}")
        runner.run(_demo(Path(folder), check, options.names(only), options.names(without), config, flags))


async def _demo(
    folder: Path, check: bool, only: list[str], without: list[str], config: Path | None, flags: tuple[str, ...]
) -> None:
    from sampan.cli.up import platform_lines
    from sampan.kernel.platform import Platform
    from sampan.parts import PARTS

    platform = Platform(
        PARTS, folder, version=__version__, only=only, without=without, settings_file=config, flags=flags, logs="file"
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, platform.ask_to_stop)
    async with platform:
        for line in platform_lines(folder, platform.listeners.addresses()):
            click.echo(line)
        status = await platform.status()
        if status.state != "ready":
            raise DemoError(f"the platform is {status.state}")
        click.echo(f"{len(status.parts)} parts are ready")
        if platform.directory.kubeconfig.exists():
            click.echo(await asyncio.to_thread(_show, folder, platform.directory.kubeconfig))
        if not check:
            click.echo("press Ctrl-C to end the demo")
            await platform.wait()


def _show(folder: Path, kubeconfig: Path) -> str:
    """Put an object on the platform and read it back, as any client on the network would.

    Raises:
        DemoError: the Kubernetes API did not answer as it should.
    """
    import base64
    import http.client
    import json
    import ssl

    import yaml

    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    pair = folder / "demo.pem"
    pair.touch(0o600)
    pair.write_bytes(b"".join(base64.b64decode(user[f"client-{what}-data"]) for what in ("key", "certificate")))
    trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    trust.load_cert_chain(pair)
    server = http.client.HTTPSConnection(cluster["server"].removeprefix("https://"), context=trust, timeout=10)

    def call(method: str, path: str, body: object = None) -> Any:
        server.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = server.getresponse()
        content = json.loads(answer.read())
        if answer.status >= 300:
            raise DemoError(f"{method} {path} was answered {answer.status}: {content.get('message')}")
        return content

    name = {"metadata": {"name": "demo"}}
    call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", **name})
    obj = {"apiVersion": "v1", "kind": "ConfigMap", **name, "data": {"boat": "sampan"}}
    call("POST", "/api/v1/namespaces/demo/configmaps", obj)
    found = call("GET", "/api/v1/namespaces/demo/configmaps/demo")
    server.close()
    if found["data"] != obj["data"]:
        raise DemoError(f"the object came back as {found['data']}")
    return f"configmap demo/demo was stored at revision {found['metadata']['resourceVersion']} and read back"
