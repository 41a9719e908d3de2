"""``sampan node``: tokens to join with, joining this machine (or another process of it) as a node, and leaving."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sampan.cli import options
from sampan.cli.options import Duration
from sampan.kernel.errors import DataDirectoryError, SampanError
from sampan.kernel.folder import DataDirectory

if TYPE_CHECKING:
    from sampan.kube.client.http import HttpClient
    from sampan.kube.joining.credentials import Folder, Membership
    from sampan.kube.objects import Object

T = TypeVar("T")

PATIENCE = 365 * 86400
"""Seconds a joined node waits for its API server at a start: for as long as it takes."""


@click.group("node")
def command() -> None:
    """Join further nodes to a platform, and make the tokens they join with.

    On the platform: `sampan node token create` prints the command to run on the other machine. There, pods run under the same
    API: `kubectl logs`, `exec` and the rest reach them, and Services cross machines.
    """


# -- tokens


@command.group("token")
def token() -> None:
    """Create, list and delete bootstrap tokens."""


@token.command("create")
@options.data_dir
@click.argument("text", metavar="[TOKEN]", required=False)
@click.option("--ttl", type=Duration(), default="24h", show_default=True, help="How long it is good; 0 for ever.")
@click.option("--usages", default="authentication,signing", show_default=True, help="Comma-separated.")
@click.option(
    "--groups",
    default="system:bootstrappers:kubeadm:default-node-token",
    show_default=True,
    help="Groups that who uses it is in, comma-separated.",
)
@click.option("--description", default="", help="What it is for.")
@click.option("--token-only", is_flag=True, help="Print the token alone, not the whole command.")
def create(
    data_dir: Path, text: str | None, ttl: float, usages: str, groups: str, description: str, token_only: bool
) -> None:
    """Make a token (or the given one), and print the command that joins a node with it."""
    from sampan.kernel.clock import Clock
    from sampan.kernel.steering import restore
    from sampan.kube.joining.tokens import NAMESPACE, Token, secret_object
    from sampan.kube.resources import SECRETS

    made = Token.parse(text) if text else Token.new()
    # expiry is counted on the platform's clock
    now = Clock(restore(DataDirectory(data_dir).clock)).time()
    secret = secret_object(
        made,
        expiration=_stamp(now + ttl) if ttl else "",
        usages=options.names(usages),
        groups=options.names(groups),
        description=description,
    )

    async def work(client: HttpClient) -> tuple[str, str]:
        await client.create(SECRETS, secret, NAMESPACE)
        return await _cluster(client, made.id)

    server, hash = _with_api(data_dir, work)
    if token_only:
        click.echo(str(made))
        return
    click.echo(f"sampan node join {server} --token {made} --ca-hash {hash}")
    if server.startswith("127."):
        click.echo(
            "# the API server listens on loopback, so only this machine can join (with a --data-dir of its own); for others:\n"
            "# sampan up --set kubernetes.host=ADDRESS --set node.host=ADDRESS",
            err=True,
        )


@token.command("list")
@options.data_dir
@options.as_json
def list_(data_dir: Path, as_json: bool) -> None:
    """List the tokens."""
    import msgspec

    from sampan.kube.joining.tokens import NAMESPACE, USAGES, secret_data, token_of
    from sampan.kube.resources import SECRETS

    async def work(client: HttpClient) -> list[Object]:
        return (await client.list(SECRETS, NAMESPACE)).items

    rows = []
    for secret in _with_api(data_dir, work):
        found = token_of(secret)
        if found is None:
            continue
        data = secret_data(secret)
        rows.append(
            {
                "token": str(found),
                "expires": data.get("expiration", ""),
                "usages": [usage for usage in USAGES if data.get(f"usage-bootstrap-{usage}") == "true"],
                "description": data.get("description", ""),
                "groups": [group for group in data.get("auth-extra-groups", "").split(",") if group],
            }
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    click.echo(f"{'TOKEN':<25}{'EXPIRES':<22}{'USAGES':<24}{'DESCRIPTION':<20}EXTRA GROUPS")
    for row in rows:
        usages, groups = ",".join(row["usages"]), ",".join(row["groups"])
        expires = row["expires"] or "<forever>"
        click.echo(f"{row['token']:<25}{expires:<22}{usages:<24}{row['description'] or '<none>':<20}{groups}")


@token.command("delete")
@options.data_dir
@click.argument("tokens", nargs=-1, required=True)
def delete(data_dir: Path, tokens: tuple[str, ...]) -> None:
    """Delete tokens, by their id or as a whole."""
    from sampan.kube.joining.tokens import NAMESPACE, PREFIX
    from sampan.kube.resources import SECRETS

    async def work(client: HttpClient) -> None:
        for text in tokens:
            identity = text.partition(".")[0]
            await client.delete(SECRETS, f"{PREFIX}{identity}", NAMESPACE)
            click.echo(f'bootstrap token "{identity}" deleted')

    _with_api(data_dir, work)


# -- joining and leaving


@command.command("join")
@options.data_dir
@click.argument("server", required=False)
@click.option("--token", "text", help="A bootstrap token of the platform.", envvar="SAMPAN_TOKEN")
@click.option(
    "--ca-hash",
    "hashes",
    multiple=True,
    metavar="sha256:HEX",
    help="Hash of the authority's public key; without it, the token's signature alone is believed.",
)
@click.option("--name", help="The node's name (default: the host's).")
@click.option("--address", default="", help="The node's own address (default: the one towards the platform).")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the Node; may be repeated.")
@click.option("--taint", "taints", multiple=True, metavar="KEY=VALUE:EFFECT", help="A taint it registers with.")
@click.option("--ports", type=click.Choice(["default", "auto"]), help="auto: a free port for the kubelet API.")
@click.option("--set", "flags", multiple=True, metavar="PART.FIELD=VALUE", help="One setting; may be repeated.")
@click.option("--detach", "-d", is_flag=True, help="Return when the node is ready; it goes on by itself.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe log record.")
def join(
    data_dir: Path,
    server: str | None,
    text: str | None,
    hashes: tuple[str, ...],
    name: str | None,
    address: str,
    labels: tuple[str, ...],
    taints: tuple[str, ...],
    ports: str | None,
    flags: tuple[str, ...],
    detach: bool,
    log_level: str | None,
) -> None:
    """Make this machine a node of the platform at SERVER (host:port), and run it.

    Once joined, `sampan node join` without SERVER starts the node again, without a token. A second node on the platform's own
    machine needs a --data-dir of its own and another --name. `sampan status` and `sampan down` work on it as on a platform.
    """
    from sampan.cli import up

    folder = _folder(data_dir)
    if server is not None:
        member = _join(data_dir, folder, server, text, hashes, name, address, labels, taints)
    elif folder.membership is None:
        raise SampanError(f"{data_dir} is not a joined node yet: give the platform's host:port and a token")
    else:
        member = folder.membership
    report_fd = None
    if detach:
        report_fd = up.detached_process(data_dir)
        if report_fd is None:
            return
    auto = ports or ("auto" if member.same_machine else "default")
    more = [
        f"platform.ports={auto}",
        f"platform.ready_seconds={PATIENCE}",
        f"node.name={member.node}",
        f"node.host={member.address}",
    ]
    more += [f"platform.log_level={log_level}"] if log_level else []
    report = up.Report(report_fd)
    from sampan.parts import JOINED_PARTS

    try:
        up.run(JOINED_PARTS, data_dir, None, None, None, (*more, *flags), report)
    except SampanError as error:
        if report.failed(str(error)):
            raise click.exceptions.Exit(1) from error
        raise


@command.command("leave")
@options.data_dir
@click.option("--force", is_flag=True, help="Do not wait for the pods, nor ask the platform.")
@click.option(
    "--timeout", type=Duration(), default="2m", show_default=True, help="How long to wait for the pods to go."
)
def leave(data_dir: Path, force: bool, timeout: float) -> None:
    """Leave the platform: cordon, evict the pods, stop the node, take its object away and forget its identity.

    Disruption budgets are kept; pods of DaemonSets stay until the end. A node whose process is down has its pods ended and taken
    out at once.
    """
    from sampan.cli import down

    folder = _folder(data_dir)
    member = folder.membership
    if member is None:
        raise SampanError(f"{data_dir} is not a joined node")
    running = DataDirectory(data_dir).holder() is not None
    if not force and running:
        asyncio.run(_with_node(folder, member, lambda client: _empty(client, member.node, timeout)))
    assert down.command.callback is not None
    down.command.callback(data_dir=data_dir, wait=30.0)
    if not force:
        asyncio.run(_with_node(folder, member, lambda client: _farewell(client, member.node, running)))
    folder.forget()
    told = "" if not force else f"; take it out with `kubectl delete node {member.node}`"
    click.echo(f"{member.node} has left{told}")


def _folder(data_dir: Path) -> Folder:
    from sampan.kube.joining.credentials import Folder
    from sampan.kube.joining.part import FOLDER

    return Folder(data_dir / FOLDER)


def _join(
    data_dir: Path,
    folder: Folder,
    server: str,
    text: str | None,
    hashes: tuple[str, ...],
    name: str | None,
    address: str,
    labels: tuple[str, ...],
    taints: tuple[str, ...],
) -> Membership:
    from sampan.kernel.clock import Clock
    from sampan.kube.joining.membership import join, parse_taint
    from sampan.kube.joining.tokens import Token

    if not text:
        raise SampanError("joining needs a token: --token, from `sampan node token create` on the platform")
    directory = DataDirectory(data_dir)
    if (data_dir / "kubeconfig").exists():
        raise DataDirectoryError(f"{data_dir} holds a platform; give the node a --data-dir of its own")
    bad = [label for label in labels if "=" not in label]
    if bad:
        raise SampanError(f"{bad[0]} is not a label; write key=value")
    directory.open()  # nobody else works on it meanwhile
    try:
        return asyncio.run(
            join(
                folder,
                server,
                Token.parse(text),
                clock=Clock(),
                name=name or socket.gethostname().lower(),
                address=address,
                hashes=hashes,
                labels=dict(label.split("=", 1) for label in labels),
                taints=[parse_taint(taint) for taint in taints],
                tell=click.echo,
            )
        )
    finally:
        directory.close()


async def _with_node(folder: Folder, member: Membership, work: Callable[[HttpClient], Awaitable[T]]) -> T:
    """Do something as the node."""
    import ssl

    from sampan.kube.client.http import HttpClient

    context = ssl.create_default_context(cafile=str(folder.authority))
    context.load_cert_chain(folder.path / "client.pem")
    async with HttpClient(member.server, context, field_manager="sampan-leave") as client:
        return await work(client)


async def _empty(client: HttpClient, node: str, seconds: float) -> None:
    """Cordon the node and evict what may be evicted, until only what belongs to the node is left."""
    from sampan.kernel.clock import Clock
    from sampan.kube.joining.draining import drain

    try:
        await drain(client, node, Clock(), seconds=seconds, tell=click.echo)
    except TimeoutError:
        raise SampanError(
            f"not every pod of {node} went within {seconds:g} s (a disruption budget?); try again, or --force"
        ) from None


async def _farewell(client: HttpClient, node: str, emptied: bool) -> None:
    from sampan.kube.control.node_departure import LEFT
    from sampan.kube.joining.draining import clear
    from sampan.kube.resources import NODES

    if not emptied:
        await clear(client, node, tell=click.echo)
    await client.patch(NODES, node, {"metadata": {"annotations": {LEFT: "true"}}})


# -- the platform's API


def _with_api(data_dir: Path, work: Callable[[HttpClient], Awaitable[T]]) -> T:
    """Do something as the platform's administrator."""
    from sampan.kube.client.http import HttpClient

    kubeconfig = Path(os.environ["KUBECONFIG"]) if os.environ.get("KUBECONFIG") else None
    own = DataDirectory(data_dir).kubeconfig
    chosen = own if own.exists() or kubeconfig is None else kubeconfig
    if not chosen.exists():
        raise SampanError(f"there is no kubeconfig in {data_dir} yet; `sampan up` writes it")
    client = HttpClient.from_kubeconfig(chosen)

    async def body() -> T:
        async with client:
            return await work(client)

    return asyncio.run(body())


async def _cluster(client: HttpClient, token_id: str) -> tuple[str, str]:
    """The API server's ``host:port`` as it describes itself, and its authority's hash, once the new token has signed."""
    from sampan.kernel.clock import Clock
    from sampan.kube.joining import discovery
    from sampan.kube.resources import CONFIG_MAPS

    clock = Clock()
    info: dict[str, str] = {}
    for _ in range(50):
        info = (await client.get(CONFIG_MAPS, discovery.NAME, discovery.NAMESPACE)).get("data") or {}
        if f"{discovery.SIGNATURE}{token_id}" in info:
            break
        await clock.sleep(0.1)  # the signer is about to follow
    cluster = discovery.read(info[discovery.KUBECONFIG])
    return cluster.server.partition("//")[2], discovery.authority_hash(cluster.authority)


def _stamp(seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
