"""``sampan mq``: look into and operate the broker, over its own port.

Commands talk to the broker of the platform on the data directory, or to ``--address``. ``send``, ``consume`` and
``dlq`` would work against any RocketMQ 5 proxy as far as they speak its protocol; the rest are operations of Sampan's broker.
Only ``repair`` works on the broker's files, while it is down.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sampan.cli import options
from sampan.kernel.errors import SampanError

if TYPE_CHECKING:
    from sampan.parts.messaging import MessagingClient


class Target:
    """The broker the commands talk to."""

    def __init__(self, data_dir: Path, address: str | None) -> None:
        self._data_dir = data_dir
        self._address = address

    def run(self, body: Callable[[MessagingClient], Awaitable[Any]]) -> Any:
        """Connect, run ``body``, and return what it returns.

        Raises:
            SampanError: nothing listens, or the broker refuses.
        """
        from sampan.parts.messaging import MessagingClient

        address, credentials = self._address or self._find(), self._credentials()

        async def connected() -> Any:
            import grpc

            client = MessagingClient(
                address,
                access_key=credentials.get("accessKey", ""),
                secret_key=credentials.get("secretKey", ""),
            )
            async with client:
                try:
                    return await body(client)
                except grpc.aio.AioRpcError as error:
                    raise SampanError(f"no broker answers at {address}: {error.details()}") from None

        return asyncio.run(connected())

    @property
    def folder(self) -> Path:
        """Where the broker of the platform keeps its files."""
        return self._data_dir / "parts" / "messaging"

    def _find(self) -> str:
        from sampan.kernel.admin import ask
        from sampan.kernel.folder import DataDirectory

        addresses = ask(DataDirectory(self._data_dir).run, "GET", "/status").get("addresses", {})
        found = addresses.get("messaging.grpc")
        if not found:
            raise SampanError("the platform runs without messaging; start it with `sampan up`, or give --address")
        return str(found)

    def _credentials(self) -> dict[str, str]:
        path = self.folder / "credentials.json"
        try:
            found: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return found

    def operate(self, operation: str, **arguments: Any) -> Any:
        """One operation of the broker."""
        return self.run(lambda client: client.operate(operation, **arguments))


@click.group("mq")
@options.data_dir
@click.option("--address", metavar="HOST:PORT", help="A broker elsewhere; default: the platform's own.")
@click.pass_context
def command(context: click.Context, data_dir: Path, address: str | None) -> None:
    """Send, look at and consume messages; lag, resets, dead letters, traces; repair."""
    context.obj = Target(data_dir, address)


@command.command("topics")
@options.as_json
@click.pass_obj
def topics(target: Target, as_json: bool) -> None:
    """List topics."""
    rows = target.operate("topics")
    _show(rows, as_json, ["topic", "type", "queues", "messages"])


@command.command("create-topic")
@click.argument("topic")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["MIXED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "PRIORITY", "LITE"], case_sensitive=False),
    default="MIXED",
    show_default=True,
)
@click.option("--queues", type=click.IntRange(min=1), help="Number of queues; default: the broker's.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.pass_obj
def create_topic(target: Target, topic: str, kind: str, queues: int | None, attributes: tuple[str, ...]) -> None:
    """Create a topic, or change it."""
    pairs = dict(_pair(text, "--attribute") for text in attributes)
    made = target.operate("create_topic", name=topic, type=kind.upper(), queues=queues or 0, attributes=pairs)
    click.echo(f"{made['topic']}: {made['type']}, {made['queues']} queues")


@command.command("delete-topic")
@click.argument("topic")
@click.pass_obj
def delete_topic(target: Target, topic: str) -> None:
    """Delete a topic and its messages."""
    target.operate("delete_topic", name=topic)


@command.command("groups")
@options.as_json
@click.pass_obj
def groups(target: Target, as_json: bool) -> None:
    """List consumer groups."""
    _show(target.operate("groups"), as_json, ["group", "members", "lag", "orderly", "max_retries"])


@command.command("create-group")
@click.argument("group")
@click.option("--orderly/--not-orderly", default=None, help="Deliver each message group in order.")
@click.option("--max-retries", type=int, default=16, show_default=True)
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.pass_obj
def create_group(
    target: Target, group: str, orderly: bool | None, max_retries: int, attributes: tuple[str, ...]
) -> None:
    """Create a consumer group, or change it."""
    pairs = dict(_pair(text, "--attribute") for text in attributes)
    target.operate("create_group", name=group, orderly=orderly, max_retries=max_retries, attributes=pairs)


@command.command("clients")
@options.as_json
@click.pass_obj
def clients(target: Target, as_json: bool) -> None:
    """List connected producers and consumers."""
    _show(target.operate("clients"), as_json, ["id", "role", "mode", "language", "group", "connected"])


@command.command("send")
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--tag", default="")
@click.option("--key", "keys", multiple=True, help="May be repeated.")
@click.option("--group", default="", help="Message group: messages of one group keep their order.")
@click.option(
    "--delay",
    type=options.Duration(),
    default=0.0,
    metavar="DURATION",
    help="Deliver later, by so much: 90s, 1h30m, 3d.",
)
@click.option("--property", "properties", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.pass_obj
def send(
    target: Target,
    topic: str,
    body: str | None,
    tag: str,
    keys: tuple[str, ...],
    group: str,
    delay: float,
    properties: tuple[str, ...],
) -> None:
    """Send a message; the body is read from standard input when it is not given."""
    pairs = dict(_pair(text) for text in properties)
    data = body.encode() if body is not None else sys.stdin.buffer.read()

    async def one(client: MessagingClient) -> Any:
        from sampan.kernel.clock import Clock

        due = Clock().time() + delay if delay > 0 else None
        if due is not None:
            # the broker's clock may be steered, so it, not this process, says when "in ten seconds" is
            return await client.operate(
                "send",
                topic=topic,
                body=data.decode(),
                tag=tag,
                keys=list(keys),
                group=group,
                delay_seconds=delay,
                properties=pairs,
            )
        sent = await client.send(topic, data, tag=tag, keys=keys, properties=pairs, message_group=group)
        return {"id": sent.id}

    click.echo(target.run(one)["id"])


@command.command("peek")
@click.argument("topic")
@click.option("-n", "count", type=int, default=10, show_default=True)
@click.option("--queue", type=int, default=-1, help="Only this queue.")
@options.as_json
@click.pass_obj
def peek(target: Target, topic: str, count: int, queue: int, as_json: bool) -> None:
    """Show the newest messages of a topic without consuming them."""
    _show_messages(target.operate("peek", topic=topic, count=count, queue=queue), as_json)


@command.command("consume")
@click.argument("topic")
@click.option("--group", default="sampan-mq", show_default=True, help="Consumer group.")
@click.option("--filter", "expression", default="*", help="Tags (`a || b`), or with --sql a condition.")
@click.option("--sql", is_flag=True, help="The filter is SQL92.")
@click.option("-n", "count", type=int, default=0, help="Stop after so many; 0: go on until interrupted.")
@click.option("--no-ack", is_flag=True, help="Leave the messages to be delivered again.")
@options.as_json
@click.pass_obj
def consume(
    target: Target, topic: str, group: str, expression: str, sql: bool, count: int, no_ack: bool, as_json: bool
) -> None:
    """Receive and acknowledge messages, and print them."""

    async def loop(client: MessagingClient) -> None:
        seen = 0
        while not count or seen < count:
            batch = min(32, count - seen) if count else 32
            messages = await client.receive(group, topic, batch=batch, expression=expression, sql=sql)
            for message in messages:
                click.echo(_line(message, as_json))
            if messages and not no_ack:
                await client.acknowledge(*messages)
            seen += len(messages)

    try:
        target.run(loop)
    except KeyboardInterrupt:
        return


@command.command("lag")
@click.argument("group")
@options.as_json
@click.pass_obj
def lag(target: Target, group: str, as_json: bool) -> None:
    """Show how far a consumer group is behind, queue by queue."""
    rows = target.operate("lag", group=group)
    _show(rows, as_json, ["topic", "queue", "minimum", "maximum", "committed", "held", "lag"])
    if not as_json and rows:
        click.echo(f"lag {sum(row['lag'] for row in rows)}")


@command.command("reset")
@click.argument("group")
@click.argument("topic")
@click.option(
    "--to", default="latest", show_default=True, help="earliest, latest, a time (ISO 8601 or ms), or @OFFSET."
)
@click.option("--queue", type=int, default=-1, help="Only this queue.")
@click.pass_obj
def reset(target: Target, group: str, topic: str, to: str, queue: int) -> None:
    """Let a group read a topic from somewhere else."""
    if to not in ("earliest", "latest") and not to.startswith("@") and not to.isdecimal():
        try:
            moment = datetime.fromisoformat(to)
        except ValueError:
            raise SampanError(
                f"--to {to}: give earliest, latest, a time in ISO 8601 or milliseconds, or @OFFSET"
            ) from None
        to = str(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
    rows = target.operate("reset", group=group, topic=topic, to=to, queue=queue)
    _show(rows, False, ["topic", "queue", "offset"])


@command.group("dlq")
def dlq() -> None:
    """List and replay dead letters."""


@dlq.command("list")
@click.argument("group")
@click.option("-n", "count", type=int, default=100, show_default=True)
@options.as_json
@click.pass_obj
def dlq_list(target: Target, group: str, count: int, as_json: bool) -> None:
    """Show a group's dead letters."""
    found = target.operate("dead_letters", group=group, count=count)
    _show_messages(found, as_json)
    if not found:
        click.echo(f"{group} has no dead letters", err=True)


@dlq.command("replay")
@click.argument("group")
@click.argument("ids", nargs=-1)
@click.pass_obj
def dlq_replay(target: Target, group: str, ids: tuple[str, ...]) -> None:
    """Send a group's dead letters (all, or those with the given ids) to their topics again."""
    outcome = target.operate("replay", group=group, ids=list(ids) or None)
    click.echo(f"{len(outcome['replayed'])} sent again")
    if outcome["missing"]:
        raise SampanError(f"not among the dead letters of {group}: {', '.join(outcome['missing'])}")


@command.command("trace")
@click.argument("key")
@click.option("--topic", default="", help="Only messages of this topic.")
@options.as_json
@click.pass_obj
def trace(target: Target, key: str, topic: str, as_json: bool) -> None:
    """Show what happened to the messages with an id or key."""
    paths = target.operate("trace", key=key, topic=topic)
    if as_json:
        click.echo(_json(paths))
        return
    if not paths:
        raise SampanError(f"no message has the id or key {key}")
    for path in paths:
        click.echo(f"{path['id']}  {path['topic']} queue {path['queue']} offset {path['offset']}")
        for event in path["events"]:
            facts = "  ".join(
                f"{name}={value}" for name, value in event.items() if name not in ("event", "at_ms", "until_ms")
            )
            until = f"  until {_time(event['until_ms'])}" if event.get("until_ms") else ""
            click.echo(f"  {_time(event['at_ms'])}  {event['event']:<16}{until}  {facts}".rstrip())


@command.group("user")
def user() -> None:
    """Users of the broker: their access keys and secrets."""


@user.command("list")
@options.as_json
@click.pass_obj
def user_list(target: Target, as_json: bool) -> None:
    """List users."""
    _show(target.operate("users"), as_json, ["name", "super", "enabled"])


@user.command("set")
@click.argument("name")
@click.option("--secret", help="The secret key; made and printed when not given.")
@click.option("--super", "is_super", is_flag=True, help="May do everything.")
@click.option("--disabled", is_flag=True, help="Refuse this user's requests.")
@click.pass_obj
def user_set(target: Target, name: str, secret: str | None, is_super: bool, disabled: bool) -> None:
    """Create a user, or change it."""
    made = secret or secrets.token_urlsafe(24)
    target.operate("set_user", name=name, secret=made, super=is_super, enabled=not disabled)
    if secret is None:
        click.echo(made)


@user.command("delete")
@click.argument("name")
@click.pass_obj
def user_delete(target: Target, name: str) -> None:
    """Delete a user and its policy."""
    target.operate("delete_user", name=name)


@command.group("acl")
def acl() -> None:
    """What users may do, by topic, group and address."""


@acl.command("list")
@options.as_json
@click.pass_obj
def acl_list(target: Target, as_json: bool) -> None:
    """List the rules."""
    policies = target.operate("policies")
    rows = [
        {
            "user": policy["user"],
            "resource": entry["resource"],
            "decision": entry["decision"],
            "actions": ",".join(entry["actions"]),
            "sources": ",".join(entry["sources"]),
        }
        for policy in policies
        for entry in policy["entries"]
    ]
    _show(policies if as_json else rows, as_json, ["user", "resource", "decision", "actions", "sources"])


@acl.command("add")
@click.argument("name")
@click.argument("resource")
@click.argument("actions", nargs=-1, required=True)
@click.option("--deny", is_flag=True, help="Forbid instead of allowing.")
@click.option("--source", "sources", multiple=True, help="Only from this address or network; may be repeated.")
@click.pass_obj
def acl_add(
    target: Target, name: str, resource: str, actions: tuple[str, ...], deny: bool, sources: tuple[str, ...]
) -> None:
    """Add a rule for a user: RESOURCE is Topic:NAME, Group:NAME (a name may end in *) or *; ACTIONS are Pub, Sub, ... or All."""
    entries = [entry for policy in target.operate("policies") if policy["user"] == name for entry in policy["entries"]]
    decision = "Deny" if deny else "Allow"
    entries.append({"resource": resource, "actions": actions, "decision": decision, "sources": sources})
    target.operate("set_policy", user=name, entries=entries)


@acl.command("delete")
@click.argument("name")
@click.option("--resource", help="Only the rules about this resource.")
@click.pass_obj
def acl_delete(target: Target, name: str, resource: str | None) -> None:
    """Delete a user's rules."""
    if resource is None:
        target.operate("delete_policy", user=name)
        return
    policies = [policy for policy in target.operate("policies") if policy["user"] == name]
    entries = [entry for policy in policies for entry in policy["entries"]]
    kept = [entry for entry in entries if entry["resource"] != resource]
    if len(kept) == len(entries):
        raise SampanError(f"user {name} has no rule about {resource}")
    target.operate("set_policy", user=name, entries=kept)


@command.command("repair")
@click.option("--dry-run", is_flag=True, help="Say what is damaged; change nothing.")
@click.option("--folder", type=click.Path(path_type=Path), help="The broker's folder; default: the platform's.")
@options.as_json
@click.pass_obj
def repair_(target: Target, dry_run: bool, folder: Path | None, as_json: bool) -> None:
    """Bring a broker up again whose log is damaged, with everything in it that can be read. The broker must be down.

    Damaged files are kept in the folder's `damaged`, and what is gone is told by topic, queue and offset. Queues keep their
    offsets; groups whose progress is not known any more read again, so messages may come twice. It may be stopped and begun
    again at any moment. A snapshot, where there is one, has more: see `sampan snapshot`.
    """
    from sampan.parts.messaging.repair import inspect, repair

    place = folder or target.folder
    try:
        report = inspect(place) if dry_run else repair(place)
    except OSError as error:
        raise SampanError(f"{place}: {error.strerror or error}; repair again when that is mended") from error
    if as_json:
        click.echo(_json(report))
        return
    for line in report.lines():
        click.echo(line)
    if dry_run and (report.damages or report.headers):
        click.echo("`sampan mq repair` keeps everything else.")


def _pair(text: str, option: str = "--property") -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"{option} {text}: write it as NAME=VALUE")
    return name, value


def _show(rows: list[dict[str, Any]], as_json: bool, columns: list[str]) -> None:
    if as_json:
        click.echo(_json(rows))
        return
    texts = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(text[at]) for text in texts)) if texts else len(column)
        for at, column in enumerate(columns)
    ]
    for line in [[column.upper().replace("_", " ") for column in columns], *texts]:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _show_messages(messages: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(_json(messages))
        return
    for message in messages:
        tag = f"  tag={message['tag']}" if message["tag"] else ""
        keys = f"  keys={','.join(message['keys'])}" if message["keys"] else ""
        origin = f"  from {message['origin_topic']}" if message["origin_topic"] else ""
        where = f"{message['topic']}:{message['queue']}:{message['offset']}"
        click.echo(
            f"{_time(message['stored_ms'])}  {message['id']}  {where}{tag}{keys}{origin}  {message['body'][:200]}"
        )


def _line(message: Any, as_json: bool) -> str:
    if as_json:
        return msgspec.json.encode(message).decode()
    tag = f"  tag={message.tag}" if message.tag else ""
    return f"{_time(message.stored_ms)}  {message.id}  attempt={message.attempt}{tag}  {message.body.decode('utf-8', 'replace')}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if ms else "-" * 23


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
