"""Who may do what: users with access keys, and policies by topic and group (the 5.x "ACL 2.0" model).

A request is signed with ``MQv2-HMAC-SHA1 Credential=<key>, SignedHeaders=x-mq-date-time, Signature=<hex>``: the HMAC of the date
header under the user's secret. A *super* user may do everything. For others, policies decide: an entry names a resource
(``Topic:orders``, ``Topic:ord*``, ``Group:*``), the actions it is about, from where, and allows or denies; the most specific
matching resource wins, a denial wins over an allowance of equal specificity, and what no entry mentions is denied.

Off while the broker listens on loopback only; required as soon as it does not.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from sampan.parts.messaging.errors import MessagingError, Reason

Action = Literal["Pub", "Sub", "Create", "Update", "Delete", "Get", "List", "All"]
_AUTHORIZATION = re.compile(
    r"MQv2-HMAC-SHA1\s+Credential=(?P<key>[^,/\s]*)(?:/[^,]*)?,\s*SignedHeaders=[^,]*,\s*Signature=(?P<signature>[0-9a-fA-F]*)"
)


class User(msgspec.Struct, frozen=True):
    """A user: its name is its access key."""

    name: str
    secret: str
    super: bool = False
    enabled: bool = True


class Entry(msgspec.Struct, frozen=True):
    """One rule of a policy."""

    resource: str
    """``Topic:<pattern>``, ``Group:<pattern>`` or ``*``; a pattern may end in ``*``."""
    actions: tuple[Action, ...]
    decision: Literal["Allow", "Deny"] = "Allow"
    sources: tuple[str, ...] = ()
    """IP addresses or networks it applies to; empty: all."""


class Policy(msgspec.Struct, frozen=True):
    """The rules of one user."""

    user: str
    entries: tuple[Entry, ...] = ()


class Access:
    """Users and policies in force."""

    def __init__(self, *, enabled: bool = False) -> None:
        self.enabled = enabled
        self.users: dict[str, User] = {}
        self.policies: dict[str, Policy] = {}

    def set_user(self, user: User) -> None:
        """Add or replace a user."""
        self.users[user.name] = user

    def remove_user(self, name: str) -> None:
        """Forget a user and its policy."""
        self.users.pop(name, None)
        self.policies.pop(name, None)

    def authenticate(self, metadata: Mapping[str, str]) -> User:
        """The user who signed a request.

        Raises:
            MessagingError: UNAUTHORIZED, the signature is missing, malformed, of nobody, or wrong.
        """
        match = _AUTHORIZATION.match(metadata.get("authorization", ""))
        if match is None:
            raise MessagingError(
                Reason.UNAUTHORIZED, "the request is not signed; give the client an access key and secret"
            )
        user = self.users.get(match["key"])
        if user is None or not user.enabled:
            raise MessagingError(Reason.UNAUTHORIZED, f"there is no user with access key {match['key']!r}")
        date = metadata.get("x-mq-date-time", "")
        expected = sign(user.secret, date)
        if not hmac.compare_digest(expected, match["signature"].lower()):
            raise MessagingError(Reason.UNAUTHORIZED, "the request's signature does not match; check the secret key")
        return user

    def check(self, user: User, action: Action, *, topic: str = "", group: str = "", source: str = "") -> None:
        """Refuse what the user's policy does not allow on each named resource.

        Raises:
            MessagingError: FORBIDDEN.
        """
        for kind, name in (("Topic", topic), ("Group", group)):
            if name and not self.allowed(user, action, f"{kind}:{name}", source):
                raise MessagingError(Reason.FORBIDDEN, f"user {user.name} has no {action} permission on {kind} {name}")

    def check_any(self, user: User, actions: Iterable[Action], *, topic: str, source: str = "") -> None:
        """Refuse a user who may do none of these on a topic.

        Raises:
            MessagingError: FORBIDDEN.
        """
        if not any(self.allowed(user, action, f"Topic:{topic}", source) for action in actions):
            raise MessagingError(Reason.FORBIDDEN, f"user {user.name} has no permission on topic {topic}")

    def allowed(self, user: User, action: Action, resource: str, source: str = "") -> bool:
        """What the user's policy says."""
        if user.super:
            return True
        policy = self.policies.get(user.name)
        best: tuple[int, bool] | None = None
        for entry in policy.entries if policy is not None else ():
            specificity = _match(entry.resource, resource)
            if specificity < 0 or not ({action, "All"} & set(entry.actions)) or not _from(entry.sources, source):
                continue
            ranked = (specificity, entry.decision == "Deny")
            if best is None or ranked > best:
                best = ranked
        return best is not None and not best[1]


def sign(secret: str, date: str) -> str:
    """The hex signature of a date header."""
    return hmac.new(secret.encode(), date.encode(), hashlib.sha1).hexdigest()


def _match(pattern: str, resource: str) -> int:
    """How specifically a pattern names a resource; -1: it does not."""
    if pattern == "*":
        return 0
    if pattern.endswith("*"):
        return len(pattern) if resource.startswith(pattern[:-1]) else -1
    return 1 << 16 if pattern == resource else -1


def _from(networks: tuple[str, ...], source: str) -> bool:
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(source)
        return any(address in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:
        return False
