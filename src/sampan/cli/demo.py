"""``sampan demo``: a platform of its own, an application on it, and proof that it answers.

It uses a temporary data directory and free ports, so it disturbs nothing and nothing is left of it. The application is
``examples/danmaku`` of the source tree: bullet comments that go through gateway, topic, broker and a function that scales from
zero. It is reached the way a browser would reach it. Without the source tree, without the parts it needs, or where pods cannot
reach Services, an object is stored and read back with the kubeconfig's certificate instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from sampan import __version__
from sampan.cli import options
from sampan.kernel.errors import SampanError

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "danmaku"
IMAGES = {"danmaku-web": "web", "danmaku-moderate": "moderate"}
NEEDED = frozenset({"workloads", "node", "network", "traffic", "serving", "messaging", "eventing"})
SHARED_PORTS = "pods share the machine's ports"
"""What a node says whose pods' connections are not translated: they reach no Service by its name and port."""
PATIENCE = 60.0
"""Seconds the application has to answer."""


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

    Without --check the platform stays until Ctrl-C, so that you can look at it. Several demos can run beside each other.
    """
    import uvloop

    with _folder() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        flags = (f"kubernetes.service_range={_services()}", *flags, f"platform.ports={ports or 'auto'}")
        runner.run(_demo(Path(folder), check, options.names(only), options.names(without), config, flags))


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder that is gone afterwards, whenever in between it is that somebody ends the demo."""
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # between the folder's making and the note that it is to be removed nobody may interrupt
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with tempfile.TemporaryDirectory(prefix="sampan-demo-") as made:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
        yield made


def _services() -> str:
    """A range for Services that no other demo has, whatever tier is asked for."""
    from sampan.kernel import claims
    from sampan.kube.part import SPARE_SERVICES

    # the claim is held until this process ends
    return next((one for one in SPARE_SERVICES if claims.claim(one) is not None), SPARE_SERVICES[0])


async def _demo(
    folder: Path, check: bool, only: list[str], without: list[str], config: Path | None, flags: tuple[str, ...]
) -> None:
    from sampan.kernel.collection import Collector
    from sampan.kernel.platform import Platform
    from sampan.parts import PARTS

    application = (EXAMPLE / "danmaku.yaml").is_file()
    if application:
        await asyncio.to_thread(_build_images, folder)
    began = perf_counter()
    platform = Platform(
        PARTS, folder, version=__version__, only=only, without=without, settings_file=config, flags=flags, logs="file"
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, platform.ask_to_stop)
    gc.disable()  # until it is ready: nearly everything that is made until then stays
    async with platform:
        Collector().begin()
        status = await platform.status()
        if status.state != "ready":
            raise DemoError(f"the platform is {status.state}")
        click.echo(f"{len(status.parts)} parts are ready after {perf_counter() - began:.1f} s, on ports of their own")
        if why := await _lacking(platform) if application else "the examples are not in an installed package":
            click.echo(f"the bullet comments (examples/danmaku) are left out: {why}")
            if platform.directory.kubeconfig.exists():
                click.echo(await asyncio.to_thread(_show, folder, platform.directory.kubeconfig))
        else:
            click.echo(await _application(platform, began))
        if not check:
            click.echo("\n".join(_to_try(folder, application and not why)))
            await platform.wait()
            click.echo("the demo ends, and nothing is left of it")


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


# -- the application


def _build_images(folder: Path) -> None:
    from sampan.kernel.clock import Clock
    from sampan.kernel.folder import DataDirectory
    from sampan.parts.node.images.build import build
    from sampan.parts.node.images.store import ImageStore

    store = ImageStore(DataDirectory(folder).part("node") / "images")
    store.open()
    created = Clock().now().isoformat().replace("+00:00", "Z")
    for name, directory in IMAGES.items():
        build(store, EXAMPLE / directory, name, created=created)


async def _lacking(platform: Any) -> str:
    """Why the application cannot run here; empty: it can, also for a user without rights."""
    from sampan.kube.client import Client
    from sampan.kube.client.resources import NODES

    absent = NEEDED - {part.name for part in (await platform.status()).parts}
    if absent:
        return f"it needs the part{'s' if len(absent) > 1 else ''} {', '.join(sorted(absent))}"
    nodes = (await platform.get(Client).list(NODES)).items
    if not nodes:
        return "there is no node"
    said = [one.get("message", "") for node in nodes for one in node["status"].get("conditions") or ()]
    shared = next((one for one in said if SHARED_PORTS in one), "")
    return f"its pods do not find the cluster's names here ({shared}; `sampan doctor` tells more)" if shared else ""


def _to_try(folder: Path, application: bool) -> list[str]:
    """What a person can do with the running demo."""
    program = Path(sys.argv[0]).resolve()
    command = f"{f'{sys.executable} -m sampan' if program.suffix == '.py' else program} --data-dir {folder}"
    lines = [
        "",
        "from another terminal:",
        f"  everything at a glance    {command} status",
        f"  kubectl                   export KUBECONFIG={folder / 'kubeconfig'}; kubectl get all -A",
    ]
    if application:
        lines.append(f"  the way of a comment      {command} trace --last")
    return [*lines, "", "press Ctrl-C to end the demo"]


async def _application(platform: Any, began: float) -> str:
    """Apply the example, wait until a comment comes back, and say what to try.

    Raises:
        DemoError: it does not come back.
    """
    await _apply(platform)
    host, port = platform.listeners.address("gateway")
    url = f"http://{host}:{port}"
    try:
        async with platform.clock.timeout(PATIENCE):
            milliseconds = await _comment(platform.clock, url)
    except TimeoutError:
        why = "".join(f"\n  {line}" for line in await _waiting_for(platform))
        raise DemoError(f"no comment came back from {url} within {PATIENCE:g} s{why}") from None
    return (
        f"the application answers after {perf_counter() - began:.1f} s; a comment took {milliseconds:.0f} ms through "
        "gateway, topic, broker and function\n\n"
        f"  open {click.style(f'{url}/', bold=True, underline=True)} in two windows and type\n"
        f"  let a crowd in with: {sys.executable} {EXAMPLE / 'crowd.py'} {url} --kubeconfig {platform.directory.kubeconfig}"
    )


async def _apply(platform: Any) -> None:
    from sampan.kube.client import Client

    for resource, obj in _objects(platform):
        await platform.get(Client).apply(resource, obj, field_manager="sampan-demo", force=True)


def _objects(platform: Any) -> Iterator[tuple[Any, Any]]:
    """The application's objects, each with its resource."""
    import yaml

    from sampan.kube.objects import Kind
    from sampan.kube.types.resource import TypeRegistry

    for obj in yaml.safe_load_all((EXAMPLE / "danmaku.yaml").read_text()):
        kind = platform.get(TypeRegistry).find_kind(Kind.of(obj))
        if kind is None:
            raise DemoError(f"the platform does not know the kind {obj['kind']} of {obj['apiVersion']}")
        if kind.namespaced:
            obj["metadata"].setdefault("namespace", "default")
        yield kind.resource, obj


async def _waiting_for(platform: Any) -> list[str]:
    """What of the application is not ready, and why."""
    from sampan.kube.client import Client

    lines = []
    for resource, obj in _objects(platform):
        name = obj["metadata"]["name"]
        found = await platform.get(Client).get(resource, name, obj["metadata"].get("namespace"))
        for one in (found.get("status") or {}).get("conditions") or ():
            if one["type"] in ("Ready", "Available") and one["status"] != "True":
                lines.append(f"{obj['kind']} {name}: {one.get('reason', '')} {one.get('message', '')}".rstrip())
    return lines or [
        "everything says it is ready; what happened is in the log: sampan demo --set platform.log_level=debug"
    ]


async def _comment(clock: Any, url: str) -> float:
    """Say something as a browser would, until it is seen on the live page; milliseconds the last one took."""
    import json

    import aiohttp

    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/live") as page:
                    if page.status != 200:
                        raise aiohttp.ClientPayloadError(f"the page answers {page.status}")
                    began = perf_counter()
                    comment = {"user": "demo", "text": f"ahoy {began}", "colour": "#ffd27a"}
                    async with session.post(f"{url}/comments", data=json.dumps(comment)) as answer:
                        if answer.status != 202:
                            raise aiohttp.ClientPayloadError(f"a comment is answered {answer.status}")
                    async for line in page.content:
                        if comment["text"].encode() in line:
                            return (perf_counter() - began) * 1000
            except aiohttp.ClientError:
                await clock.sleep(0.05)
