"""Bootstrap tokens: a short-lived secret by which a new machine introduces itself. Pure.

A token is ``<id>.<secret>``, six and sixteen letters or digits; it lives as the Secret ``bootstrap-token-<id>`` in
``kube-system``. Its id may be known to all; its secret authenticates (usage ``authentication``) and signs (``signing``) the
public description of the cluster, so that the joining side knows whom it talks to, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sampan.kernel.errors import SampanError
from sampan.kube.objects import Object

NAMESPACE = "kube-system"
TYPE = "bootstrap.kubernetes.io/token"
PREFIX = "bootstrap-token-"
"""A token's Secret is named by this and its id."""
USAGES = ("authentication", "signing")
NODE_GROUP = "system:bootstrappers:kubeadm:default-node-token"
"""The group of tokens that nodes join with."""
GROUPS_PREFIX = "system:bootstrappers:"
DEFAULT_TTL = 24 * 3600.0

_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_GROUP = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")
_LETTERS = string.ascii_lowercase + string.digits


class JoinError(SampanError):
    """A node cannot join, or a token is not usable; the message says why and what to do."""


class Token(NamedTuple):
    """A bootstrap token."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{self.id}.{self.secret}"

    @property
    def name(self) -> str:
        """Its Secret's name."""
        return f"{PREFIX}{self.id}"

    @staticmethod
    def new() -> Token:
        """A random one."""

        def letters(count: int) -> str:
            return "".join(secrets.choice(_LETTERS) for _ in range(count))

        return Token(letters(6), letters(16))

    @staticmethod
    def parse(text: str) -> Token:
        """Read ``<id>.<secret>``.

        Raises:
            JoinError: it is not of that form.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise JoinError(
                "the token is not of the form abcdef.0123456789abcdef (six and sixteen lower-case letters or digits); "
                "`sampan node token create` on the platform prints one"
            )
        return Token(*match.groups())


def secret_object(
    token: Token,
    *,
    expiration: str = "",
    usages: Sequence[str] = USAGES,
    groups: Sequence[str] = (NODE_GROUP,),
    description: str = "",
) -> Object:
    """The Secret of a token; ``expiration`` is RFC 3339, "" for a token that never ends.

    Raises:
        JoinError: an unknown usage, or a group outside ``system:bootstrappers:``.
    """
    unknown = sorted(set(usages) - set(USAGES))
    if unknown or not usages:
        raise JoinError(f"usages are {' and '.join(USAGES)}; there is no {', '.join(unknown) or 'token without one'}")
    for group in groups:
        if not _GROUP.fullmatch(group):
            raise JoinError(
                f'the group "{group}" does not begin with {GROUPS_PREFIX} or has other letters than a-z0-9:-'
            )
    data = {"token-id": token.id, "token-secret": token.secret}
    if description:
        data["description"] = description
    if expiration:
        data["expiration"] = expiration
    if groups:
        data["auth-extra-groups"] = ",".join(groups)
    for usage in usages:
        data[f"usage-bootstrap-{usage}"] = "true"
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    metadata = {"name": token.name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": TYPE, "data": encoded}


def secret_data(secret: Mapping[str, Any]) -> dict[str, str]:
    """A Secret's values as text; values that are none are left out."""
    found: dict[str, str] = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value).decode()
        except ValueError:
            continue
    return found


def token_of(secret: Mapping[str, Any]) -> Token | None:
    """The token a Secret holds; None where it holds none, or one that its name belies."""
    if secret.get("type") != TYPE:
        return None
    data = secret_data(secret)
    try:
        token = Token.parse(f"{data.get('token-id', '')}.{data.get('token-secret', '')}")
    except JoinError:
        return None
    return token if secret["metadata"]["name"] == token.name else None


def signature(content: str, token: Token) -> str:
    """The detached signature (JWS, HS256) of a text by a token: header and MAC with nothing between them."""
    header = _base64url(json.dumps({"alg": "HS256", "kid": token.id}, separators=(",", ":")).encode())
    signed = f"{header}.{_base64url(content.encode())}"
    mac = hmac.new(token.secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{header}..{_base64url(mac)}"


def is_signed(content: str, given: str, token: Token) -> bool:
    """The signature is this token's, over this text."""
    header, _, mac = given.partition("..")
    try:
        told = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except ValueError:
        return False
    if not isinstance(told, dict) or told.get("alg") != "HS256" or told.get("kid") != token.id:
        return False
    signed = f"{header}.{_base64url(content.encode())}"
    wanted = hmac.new(token.secret.encode(), signed.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(_base64url(wanted).encode(), mac.encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
