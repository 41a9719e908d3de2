"""The first step of joining, before anything runs: from a token to a folder that says what this machine is.

In kubeadm's order: whom do I talk to (``discovery``), may I have this name, give me a certificate (``credentials``), remember.
After it the node can start, again and again, without a token.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from sampan.kernel.addresses import is_own, towards
from sampan.kernel.clock import Clock
from sampan.kernel.files import write_private
from sampan.kube.client.http import HttpClient
from sampan.kube.joining import discovery
from sampan.kube.joining.credentials import Folder, Membership, obtain, of_client
from sampan.kube.joining.tokens import JoinError, Token
from sampan.kube.objects import dig
from sampan.kube.resources import NODES
from sampan.kube.status import ApiError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def base_url(server: str) -> str:
    """``host:port`` (or a URL) as a base URL; the port is 6443 where none is given.

    Raises:
        JoinError: it is neither.
    """
    text = server if "//" in server else f"https://{server}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or 6443
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "https":
        raise JoinError(f"{server} is not the address of an API server; give host:port")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def resolve(server: str) -> tuple[str, int]:
    """The IPv4 address and port behind a base URL. Blocks on name resolution.

    Raises:
        JoinError: the name has no IPv4 address.
    """
    parts = urlsplit(server)
    assert parts.hostname is not None
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise JoinError(f"{parts.hostname} has no IPv4 address here: {error.strerror}") from None
    address, port = found[0][4][:2]
    return str(address), int(port)


def own_address(server: tuple[str, int]) -> str:
    """This machine's address towards the API server. Raises JoinError."""
    try:
        return towards(*server)
    except OSError as error:
        raise JoinError(f"there is no route to {server[0]}: {error.strerror}") from None


async def join(
    folder: Folder,
    server: str,
    token: Token,
    *,
    clock: Clock,
    name: str,
    address: str = "",
    hashes: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> Membership:
    """Become a member: what the node is stands in ``folder`` afterwards.

    ``server`` is the API server's host and port; ``address`` the node's own (default: the one towards the server). ``tell``
    hears of each step.

    Raises:
        JoinError: it does not work; nothing is kept.
    """
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise JoinError(f'"{name}" is not a node name (lower-case letters, digits, - and .); choose one with --name')
    url = base_url(server)
    place = resolve(url)
    own = address or own_address(place)
    if not is_own(own):
        raise JoinError(f"{own} is not an address of this machine")
    tell(f"asking {url} who it is")
    cluster = await discovery.discover(url, token, hashes, clock)
    tell(f"its authority is {discovery.authority_hash(cluster.authority)}")
    folder.forget()
    folder.begin(cluster.authority)
    done = False
    trusting = ssl.create_default_context(cadata=cluster.authority)
    headers = {"Authorization": f"Bearer {token}"}
    client = HttpClient(url, trusting, headers=headers, field_manager="sampan-join", clock=clock)
    try:
        await _check_name(client, name)
        tell(f"asking for a certificate as system:node:{name}")
        write_private(folder.path / "client.pem", await obtain(client, of_client(name), clock))
        made = Membership(
            node=name,
            server=url,
            address=own,
            same_machine=is_own(place[0]),
            labels=dict(labels or {}),
            taints=[dict(taint) for taint in taints],
        )
        folder.keep(made)
        done = True
        return made
    except ApiError as error:
        why = f'the token "{token.id}" may not authenticate (has it expired?)' if error.code == 401 else error.message
        raise JoinError(f"{url} did not let this machine join: {why}") from None
    finally:
        await client.close()
        if not done:
            with contextlib.suppress(OSError):
                folder.forget()


async def _check_name(client: HttpClient, name: str) -> None:
    try:
        node: dict[str, Any] = await client.get(NODES, name)
    except ApiError as error:
        if error.not_found or error.code == 403:  # a token of another group may not look
            return
        raise
    conditions: list[Mapping[str, Any]] = dig(node, "status", "conditions", default=[])
    if any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions):
        raise JoinError(
            f'a node with the name "{name}" and status Ready is in the cluster already: choose another with --name, '
            f"or take that one out (kubectl delete node {name}) first"
        )


def parse_taint(text: str) -> dict[str, str]:
    """``key[=value]:effect`` as a taint.

    Raises:
        JoinError: it is not of that form.
    """
    key, colon, effect = text.rpartition(":")
    name, _, value = key.partition("=")
    if not colon or not name or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise JoinError(f'"{text}" is not a taint; write key=value:NoSchedule (or PreferNoSchedule, NoExecute)')
    return {"key": name, "effect": effect, **({"value": value} if value else {})}
