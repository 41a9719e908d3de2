"""Authentication: from a request's credentials to a `User`, then to whom that user impersonates.

In this order, the first that finds credentials decides: request headers set by a trusted front proxy, a client certificate
(common name and organizations), a bearer token. A bearer token may be the administrator's static one (made at first start),
a ServiceAccount's (`tokens`) or a bootstrap token for joining nodes. Credentials that are present but wrong are refused with
401; a request without any is anonymous.

Impersonation (``Impersonate-User`` and its companions, kubectl's ``--as``) follows at once, so everything behind this module
sees only the user in effect; each impersonated part needs the verb ``impersonate``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from sampan.kernel.clock import Clock
from sampan.kernel.files import write_private
from sampan.kube.access.interface import MASTER, Attributes, Authorizer, ObjectCache, User
from sampan.kube.access.refusal import denied
from sampan.kube.access.tokens import GROUP_ALL, USER_PREFIX, TokenError, Tokens, parse_time
from sampan.kube.objects import Object, Resource
from sampan.kube.resources import SECRETS, SERVICE_ACCOUNTS
from sampan.kube.status import bad_request, internal, unauthorized

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
ANONYMOUS_NAME = "system:anonymous"
BOOTSTRAP_NAMESPACE = "kube-system"
BOOTSTRAP_TYPE = "bootstrap.kubernetes.io/token"
BOOTSTRAP_GROUP = "system:bootstrappers"
FRONT_PROXY = "front-proxy-client"
"""Common name of the certificates whose holders may set ``X-Remote-User``."""
_BOOTSTRAP_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."

_USERS = Resource("", "v1", "users")
_GROUPS = Resource("", "v1", "groups")
_UIDS = Resource("authentication.k8s.io", "v1", "uids")
_EXTRAS = Resource("authentication.k8s.io", "v1", "userextras")


class StaticTokens:
    """Bearer tokens that never change, compared in constant time."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = [(hashlib.sha256(token.encode()).digest(), user) for token, user in users.items()]

    @staticmethod
    def administrator(path: Path, user: User = MASTER) -> tuple[str, StaticTokens]:
        """The administrator's token, made at first use and kept at ``path`` (0600); flushing it is the caller's business."""
        token = path.read_text().strip() if path.exists() else ""
        if not token:  # or a power cut left an empty file
            token = secrets.token_urlsafe(32)
            write_private(path, token + "\n", durable=False)
        return token, StaticTokens({token: user})

    def find(self, token: str) -> User | None:
        """The token's user; every known token is compared, so the time taken tells nothing."""
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, user in self._users:
            if hmac.compare_digest(known, digest):
                found = user
        return found


class Credential(NamedTuple):
    """An authenticated bearer token and the audiences it is good for."""

    user: User
    audiences: tuple[str, ...]


class RequestAuthenticator:
    """The `Authenticator` of the API server.

    ``anonymous`` False turns requests without credentials away; ``proxies`` are the common names trusted to set
    ``X-Remote-*`` headers.
    """

    def __init__(
        self,
        *,
        cache: ObjectCache,
        clock: Clock,
        tokens: Tokens,
        static: StaticTokens,
        authorizer: Authorizer,
        anonymous: bool = True,
        proxies: Iterable[str] = (FRONT_PROXY,),
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._tokens = tokens
        self._static = static
        self._authorizer = authorizer
        self._anonymous = anonymous
        self._proxies = frozenset(proxies)

    async def authenticate(self, headers: Mapping[str, str], peer_certificate: Mapping[str, Any] | None) -> User | None:
        """The user in effect; None: anonymous."""
        user = self._identify(headers, peer_certificate)
        if user is None and not self._anonymous:
            raise unauthorized()
        return self._impersonate(user, headers)

    def bearer(self, token: str, audiences: Sequence[str] | None = None) -> Credential:
        """Whom a bearer token stands for; also what TokenReview asks.

        Raises:
            TokenError: nobody.
        """
        if not token.isascii():
            # Headers may carry any byte; no token of any kind does.
            raise TokenError("invalid bearer token")
        if user := self._static.find(token):
            return Credential(user, self._own_audiences(audiences))
        if verified := self._tokens.verify(token, audiences):
            return Credential(verified.user, verified.audiences)
        if user := self._bootstrap(token):
            return Credential(user, self._own_audiences(audiences))
        raise TokenError("invalid bearer token")

    def _own_audiences(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        if not wanted:
            return self._tokens.audiences
        common = tuple(audience for audience in wanted if audience in self._tokens.audiences)
        if not common:
            raise TokenError(
                f"token audiences {list(self._tokens.audiences)} is invalid for the target audiences {wanted}"
            )
        return common

    def _identify(self, headers: Mapping[str, str], certificate: Mapping[str, Any] | None) -> User | None:
        if certificate:
            user = certificate_user(certificate)
            if user is not None and user.name in self._proxies and headers.get("X-Remote-User"):
                return proxied_user(headers)
            if user is not None:
                return user
        token = _bearer(headers)
        if token is None:
            return None
        try:
            return self.bearer(token).user
        except TokenError:
            # Which half was wrong is nobody's business.
            raise unauthorized() from None

    def _bootstrap(self, token: str) -> User | None:
        """The joining node behind a bootstrap token (``<id>.<secret>``)."""
        match = _BOOTSTRAP_TOKEN.fullmatch(token)
        if match is None:
            return None
        identity, secret_part = match.groups()
        secret = self._cache.get(SECRETS, BOOTSTRAP_NAMESPACE, f"bootstrap-token-{identity}")
        if secret is None or secret.get("type") != BOOTSTRAP_TYPE or secret["metadata"].get("deletionTimestamp"):
            return None
        data = decoded_data(secret)
        if data.get("token-id") != identity or not _same(data.get("token-secret", ""), secret_part):
            return None
        if data.get("usage-bootstrap-authentication") != "true":
            return None
        if expiration := data.get("expiration"):
            try:
                if parse_time(expiration) <= self._clock.time():
                    return None
            except ValueError:
                return None
        extra = [group.strip() for group in data.get("auth-extra-groups", "").split(",")]
        groups = [BOOTSTRAP_GROUP, *(group for group in extra if group.startswith(f"{BOOTSTRAP_GROUP}:"))]
        return User(f"system:bootstrap:{identity}", (*dict.fromkeys(groups), AUTHENTICATED))

    # -- impersonation

    def _impersonate(self, user: User | None, headers: Mapping[str, str]) -> User | None:
        name = _one(headers, "Impersonate-User")
        groups = _all(headers, "Impersonate-Group")
        uid = _one(headers, "Impersonate-Uid")
        extra = _prefixed(headers, "impersonate-extra-")
        if not (name or groups or uid or extra):
            return user
        if not name:
            raise internal("requested impersonation of groups, uid or extras without impersonating a user")
        actor = user or User(ANONYMOUS_NAME, (UNAUTHENTICATED,))
        account = service_account_name(name)
        if account is not None:
            namespace, account_name = account
            self._may(actor, SERVICE_ACCOUNTS, account_name, namespace=namespace)
        else:
            self._may(actor, _USERS, name)
        for group in groups:
            self._may(actor, _GROUPS, group)
        if uid:
            self._may(actor, _UIDS, uid)
        for key, values in extra.items():
            for value in values:
                self._may(actor, _EXTRAS, value, subresource=key)
        if account is not None and not groups:
            groups = [GROUP_ALL, f"{GROUP_ALL}:{account[0]}"]
        if name == ANONYMOUS_NAME:
            groups = [*groups, UNAUTHENTICATED]
        elif UNAUTHENTICATED not in groups:
            groups = [*groups, AUTHENTICATED]
        return User(name, tuple(dict.fromkeys(groups)), uid, extra)

    def _may(self, actor: User, resource: Resource, name: str, *, namespace: str = "", subresource: str = "") -> None:
        attributes = Attributes(actor, "impersonate", resource, subresource, namespace, name)
        decision = self._authorizer.authorize(attributes)
        if not decision.allowed:
            raise denied(attributes, decision.reason)


def certificate_user(certificate: Mapping[str, Any]) -> User | None:
    """The user a verified certificate names; None without a common name."""
    name, groups = "", []
    for relative in certificate.get("subject") or ():
        for key, value in relative:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    return User(name, (*dict.fromkeys(groups), AUTHENTICATED)) if name else None


def proxied_user(headers: Mapping[str, str]) -> User:
    """The user a trusted front proxy names."""
    groups = _all(headers, "X-Remote-Group")
    extra = _prefixed(headers, "x-remote-extra-")
    if UNAUTHENTICATED not in groups:
        groups = [*groups, AUTHENTICATED]
    uid = _one(headers, "X-Remote-Uid")
    return User(_one(headers, "X-Remote-User"), tuple(dict.fromkeys(groups)), uid, extra)


def proxy_headers(user: User) -> list[tuple[str, str]]:
    """The headers that tell an aggregated API server who asks."""
    headers = [("X-Remote-User", user.name)]
    if user.uid:
        headers.append(("X-Remote-Uid", user.uid))
    headers += [("X-Remote-Group", group) for group in user.groups]
    for key, values in user.extra.items():
        escaped = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else _percent(c) for c in key)
        headers += [(f"X-Remote-Extra-{escaped}", value) for value in values]
    return headers


def service_account_name(user: str) -> tuple[str, str] | None:
    """(namespace, name) of a ServiceAccount's user name."""
    if not user.startswith(USER_PREFIX):
        return None
    namespace, separator, name = user.removeprefix(USER_PREFIX).partition(":")
    return (namespace, name) if separator and namespace and name and ":" not in name else None


def decoded_data(secret: Object) -> dict[str, str]:
    """A Secret's data as text; values that are not text are left out."""
    decoded = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            decoded[key] = base64.b64decode(value).decode()
        except (ValueError, binascii.Error):
            continue
    return decoded


def _same(known: str, given: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing."""
    return hmac.compare_digest(known.encode(), given.encode())


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _bearer(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("Authorization") or ""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if "Sec-WebSocket-Protocol" not in headers:
        return None
    # Browsers cannot set headers on a WebSocket: the token travels as a subprotocol.
    for protocol in (headers.get("Sec-WebSocket-Protocol") or "").split(","):
        protocol = protocol.strip()
        if protocol.startswith(_WEBSOCKET_BEARER):
            encoded = protocol.removeprefix(_WEBSOCKET_BEARER)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (ValueError, binascii.Error):
                raise unauthorized() from None
    return None


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    """Every value of a header that may repeat.

    Raises:
        ApiError: 400, a value is not UTF-8.
    """
    getall = getattr(headers, "getall", None)
    values = [str(value) for value in getall(name, ())] if getall is not None else [headers.get(name) or ""]
    return [_text(name, value) for value in values if value]


def _one(headers: Mapping[str, str], name: str) -> str:
    """A header's value, "" without; raises as `_all`."""
    return _text(name, headers.get(name) or "")


def _text(name: str, value: str) -> str:
    # HTTP servers keep undecodable bytes as lone surrogates, which no answer could be written with.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise bad_request(f"header {name} is not valid UTF-8")
    return value


def _prefixed(headers: Mapping[str, str], prefix: str) -> dict[str, tuple[str, ...]]:
    """Headers whose name begins with ``prefix``, by the (percent-decoded, lower-case) rest of the name."""
    found: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys(key.lower() for key in headers):
        if name.startswith(prefix):
            found[unquote(_text(prefix, name.removeprefix(prefix)))] = tuple(_all(headers, name))
    return found
