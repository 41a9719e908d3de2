"""ServiceAccount tokens: made for a TokenRequest, verified at each use, published for others to verify.

A token is a JSON Web Token signed with the platform's own key (ES256; an elliptic key because making an RSA key would take
longer than the rest of a first start). It names its ServiceAccount and, when *bound*, one pod, secret or node: it is valid
only while these exist with the same uid, whatever its expiry says. So verification has two halves: the signature and the
claims, which never change and are remembered for the tokens last seen, and the living objects, which are looked up each time.

Older clients read a token from a Secret of type ``kubernetes.io/service-account-token``; such a token has no expiry and lives
as long as its Secret holds it.

Expiry is counted on the platform's clock.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sampan.kernel.clock import Clock
from sampan.kernel.errors import SampanError
from sampan.kernel.files import write_private
from sampan.kube.access.interface import ObjectCache, User
from sampan.kube.objects import Object, copy, dig
from sampan.kube.resources import NODES, PODS, SECRETS, SERVICE_ACCOUNTS
from sampan.kube.status import FieldError, bad_request, conflict, invalid, not_found

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from jwt.types import Options

ISSUER = "https://kubernetes.default.svc.cluster.local"
LEGACY_ISSUER = "kubernetes/serviceaccount"
ALGORITHM = "ES256"
SECONDS_DEFAULT = 3600
SECONDS_LEAST = 600
SECONDS_MOST = 1 << 32
SECONDS_POD = 3607
"""The lifetime a pod's own token volume asks for; recognised, as upstream does, and stretched to `SECONDS_STRETCHED`."""
SECONDS_STRETCHED = 365 * 24 * 3600
REMEMBERED = 4096
"""Verified tokens remembered; the least recently used go first."""
TOKEN_BYTES_LIMIT = 16 * 1024
"""A longer bearer token is not looked at."""

USER_PREFIX = "system:serviceaccount:"
GROUP_ALL = "system:serviceaccounts"
EXTRA = "authentication.kubernetes.io/"
_BOUND = {"Pod": ("pod", PODS), "Secret": ("secret", SECRETS), "Node": ("node", NODES)}


class TokenError(SampanError):
    """A token is malformed, forged, expired, for somebody else, or its object is gone."""


class Verified(NamedTuple):
    """A good token: who it stands for, and which of the wanted audiences it is for."""

    user: User
    audiences: tuple[str, ...]


class SigningKeyError(SampanError):
    """The kept signing key cannot be used."""


class SigningKey:
    """The key that signs ServiceAccount tokens; made at first use and kept (0600).

    Reading it costs tens of milliseconds, nearly all of them for loading the cryptography: so that happens at first use, or
    ahead of it by `load` on any thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._private: EllipticCurvePrivateKey | None = None
        self._key_id = ""

    def load(self) -> EllipticCurvePrivateKey:
        """The private key.

        Raises:
            SigningKeyError: the file holds no key of the right kind.
        """
        with self._lock:
            if self._private is None:
                self._private = self._read() if self._path.exists() else self._make()
            return self._private

    @property
    def private(self) -> EllipticCurvePrivateKey:
        return self._private or self.load()

    @property
    def public(self) -> EllipticCurvePublicKey:
        return self.private.public_key()

    @property
    def key_id(self) -> str:
        """The key's name in token headers: the digest of its public half."""
        if not self._key_id:
            from cryptography.hazmat.primitives import serialization

            form = serialization.PublicFormat.SubjectPublicKeyInfo
            der = self.public.public_bytes(serialization.Encoding.DER, form)
            self._key_id = _base64url(hashlib.sha256(der).digest())
        return self._key_id

    def _read(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            loaded = serialization.load_pem_private_key(self._path.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise SigningKeyError(f"{self._path} cannot be read as a key: {error}") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise SigningKeyError(f"{self._path} is not an elliptic-curve key; remove it to have a new one made")
        return loaded

    def _make(self) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        made = ec.generate_private_key(ec.SECP256R1())
        pem = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self._path, pem)
        return made

    def jwk(self) -> Object:
        """The public half as a JSON Web Key."""
        numbers = self.public.public_numbers()
        return {
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": _base64url(numbers.x.to_bytes(32, "big")),
            "y": _base64url(numbers.y.to_bytes(32, "big")),
        }


class Tokens:
    """Makes and verifies ServiceAccount tokens.

    ``audiences`` are the API server's own: a token for any of them is good here. ``jwks_uri`` stands in the discovery
    document; it may be set once the server's address is known.
    """

    def __init__(
        self,
        key: SigningKey,
        cache: ObjectCache,
        clock: Clock,
        *,
        issuer: str = ISSUER,
        audiences: Sequence[str] = (),
        jwks_uri: str = "https://kubernetes.default.svc/openid/v1/jwks",
    ) -> None:
        self._key = key
        self._cache = cache
        self._clock = clock
        self.issuer = issuer
        self.audiences = tuple(dict.fromkeys((issuer, "https://kubernetes.default.svc", *audiences)))
        self.jwks_uri = jwks_uri
        self._seen: OrderedDict[bytes, Mapping[str, Any]] = OrderedDict()

    def prepare(self) -> None:
        """Load the signing key and what is needed to use it; blocks, may be called on any thread, and need not be."""
        import jwt  # noqa: F401 (loaded ahead of its first use)

        self._key.load()

    # -- making

    def request(self, user: User, service_account: Object, request: Object) -> Object:
        """Answer a TokenRequest for a ServiceAccount: the request with its ``status`` filled.

        Raises:
            ApiError: 422 the lifetime is out of bounds; 404 or 409 the bound object is gone or another; 400 the pod runs
                as another ServiceAccount.
        """
        spec = request.get("spec") or {}
        metadata = service_account["metadata"]
        seconds = spec.get("expirationSeconds")
        seconds = SECONDS_DEFAULT if seconds is None else int(seconds)
        _check_seconds(seconds)
        audiences = list(spec.get("audiences") or (self.issuer,))
        now = int(self._clock.time())
        expires = now + seconds
        private: dict[str, Any] = {
            "namespace": metadata["namespace"],
            "serviceaccount": {"name": metadata["name"], "uid": metadata["uid"]},
        }
        if reference := spec.get("boundObjectRef"):
            private |= self._bind(service_account, reference)
            if seconds == SECONDS_POD and "pod" in private and set(audiences) <= set(self.audiences):
                private["warnafter"] = now + seconds
                expires = now + SECONDS_STRETCHED
        claims = {
            "aud": audiences,
            "exp": expires,
            "iat": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "nbf": now,
            "sub": f"{USER_PREFIX}{metadata['namespace']}:{metadata['name']}",
        }
        stamp = datetime.fromtimestamp(now + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        created = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer: Object = copy(request)
        answer.setdefault("apiVersion", "authentication.k8s.io/v1")
        answer.setdefault("kind", "TokenRequest")
        own = answer.setdefault("metadata", {})
        own.update(name=metadata["name"], namespace=metadata["namespace"], creationTimestamp=created)
        answer["spec"] = {**spec, "audiences": audiences, "expirationSeconds": seconds}
        answer["spec"].setdefault("boundObjectRef", None)
        answer["status"] = {"token": self._sign(claims), "expirationTimestamp": stamp}
        return answer

    def legacy(self, service_account: Object, secret: Object) -> str:
        """The token kept in a ``kubernetes.io/service-account-token`` Secret."""
        metadata = service_account["metadata"]
        return self._sign(
            {
                "iss": LEGACY_ISSUER,
                "sub": f"{USER_PREFIX}{metadata['namespace']}:{metadata['name']}",
                "kubernetes.io/serviceaccount/namespace": metadata["namespace"],
                "kubernetes.io/serviceaccount/secret.name": secret["metadata"]["name"],
                "kubernetes.io/serviceaccount/service-account.name": metadata["name"],
                "kubernetes.io/serviceaccount/service-account.uid": metadata["uid"],
            }
        )

    def _bind(self, service_account: Object, reference: Mapping[str, Any]) -> dict[str, Any]:
        kind, name = reference.get("kind") or "", reference.get("name") or ""
        if kind not in _BOUND or reference.get("apiVersion") not in (None, "", "v1"):
            version = reference.get("apiVersion") or ""
            group, _, version = version.rpartition("/")
            raise bad_request(f"cannot bind token to object of type {group}/{version}, Kind={kind}")
        claim, resource = _BOUND[kind]
        namespace = "" if kind == "Node" else service_account["metadata"]["namespace"]
        found = self._cache.get(resource, namespace, name)
        if found is None:
            raise not_found(resource, name)
        uid = found["metadata"]["uid"]
        if reference.get("uid") and reference["uid"] != uid:
            raise conflict(
                resource,
                name,
                f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record. "
                "The object might have been deleted and then recreated",
            )
        bound: dict[str, Any] = {claim: {"name": name, "uid": uid}}
        if kind == "Pod":
            account = service_account["metadata"]["name"]
            if (dig(found, "spec", "serviceAccountName") or "default") != account:
                raise bad_request(
                    f'cannot bind token for serviceaccount "{account}" to pod running with different serviceaccount name.'
                )
            node_name = dig(found, "spec", "nodeName")
            if node_name:
                node = self._cache.get(NODES, "", node_name)
                bound["node"] = {"name": node_name, **({"uid": node["metadata"]["uid"]} if node else {})}
        return bound

    def _sign(self, claims: Mapping[str, Any]) -> str:
        import jwt

        return jwt.encode(
            dict(claims), self._key.private, algorithm=ALGORITHM, headers={"kid": self._key.key_id, "typ": None}
        )

    # -- verifying

    def verify(self, token: str, audiences: Sequence[str] | None = None) -> Verified | None:
        """Who a token stands for; None when it is no ServiceAccount token of ours.

        ``audiences``: it must be for one of these (default: the API server's own).

        Raises:
            TokenError: it is ours in form but not (or no longer) good.
        """
        claims = self._claims(token)
        if claims is None:
            return None
        wanted = tuple(audiences) if audiences else self.audiences
        if claims["iss"] == LEGACY_ISSUER:
            return self._verify_legacy(token, claims, wanted, audiences)
        now = self._clock.time()
        if now >= claims["exp"]:
            raise TokenError("service account token has expired")
        if now < claims.get("nbf", 0) - 1:
            raise TokenError("service account token is not valid yet")
        given = claims.get("aud")
        given = [given] if isinstance(given, str) else list(given or ())
        common = tuple(audience for audience in wanted if audience in given)
        if not common:
            raise TokenError(f"token audiences {given} is invalid for the target audiences {list(wanted)}")
        return Verified(self._living(claims), common)

    def _claims(self, token: str) -> Mapping[str, Any] | None:
        if token.count(".") != 2 or len(token) > TOKEN_BYTES_LIMIT:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        if (claims := self._seen.get(digest)) is not None:
            self._seen.move_to_end(digest)
            return claims
        import jwt

        # Times are checked against the platform's clock, audiences against the question, both at each use.
        unread: Options = {"verify_signature": False}
        unchecked: Options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
        try:
            claims = jwt.decode(token, options={**unread, **unchecked})
            if claims.get("iss") not in (self.issuer, LEGACY_ISSUER):
                return None
            claims = jwt.decode(token, self._key.public, algorithms=[ALGORITHM], options=unchecked)
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise TokenError(f"invalid bearer token: {error}") from None
        if not _well_formed(claims):
            raise TokenError("invalid bearer token: claims are missing or of the wrong type")
        self._seen[digest] = claims
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return claims

    def _verify_legacy(
        self, token: str, claims: Mapping[str, Any], wanted: tuple[str, ...], asked: Sequence[str] | None
    ) -> Verified:
        prefix = "kubernetes.io/serviceaccount/"
        namespace = str(claims.get(f"{prefix}namespace"))
        name = str(claims.get(f"{prefix}service-account.name"))
        account = self._account(namespace, name, claims.get(f"{prefix}service-account.uid"))
        secret = self._cache.get(SECRETS, namespace, str(claims.get(f"{prefix}secret.name")))
        if secret is None or secret["metadata"].get("deletionTimestamp"):
            raise TokenError("service account token has been invalidated")
        if dig(secret, "data", "token") != base64.b64encode(token.encode()).decode():
            raise TokenError("service account token is not the one its secret holds")
        common = tuple(audience for audience in wanted if audience in self.audiences)
        if asked and not common:
            raise TokenError(
                f"token audiences {list(self.audiences)} is invalid for the target audiences {list(wanted)}"
            )
        return Verified(service_account_user(account), common)

    def _account(self, namespace: str, name: str, uid: Any) -> Object:
        account = self._cache.get(SERVICE_ACCOUNTS, namespace, name)
        if account is None:
            raise TokenError(f'serviceaccounts "{name}" not found')
        if account["metadata"].get("uid") != uid:
            raise TokenError(f"service account UID ({account['metadata'].get('uid')}) does not match claim ({uid})")
        return account

    def _living(self, claims: Mapping[str, Any]) -> User:
        """The user, provided that the account and the bound objects are (still) the ones the token was made for."""
        private = claims["kubernetes.io"]
        namespace = private["namespace"]
        account = self._account(namespace, private["serviceaccount"]["name"], private["serviceaccount"].get("uid"))
        extra: dict[str, tuple[str, ...]] = {}
        if claims.get("jti"):
            extra[f"{EXTRA}credential-id"] = (f"JTI={claims['jti']}",)
        for claim, resource in _BOUND.values():
            bound = private.get(claim)
            if not bound:
                continue
            name, uid = bound.get("name", ""), bound.get("uid", "")
            # A pod's node is told for information: only a token bound to the node itself dies with it.
            if claim != "node" or "pod" not in private:
                found = self._cache.get(resource, "" if claim == "node" else namespace, name)
                if found is None or found["metadata"].get("uid") != uid:
                    raise TokenError(f"service account token has been invalidated: its {claim} {name} is gone")
                if claim != "node" and _gone_since(found, self._clock.time()):
                    raise TokenError(f"service account token has been invalidated: its {claim} {name} was deleted")
            if claim != "secret":
                extra[f"{EXTRA}{claim}-name"] = (name,)
                if uid:
                    extra[f"{EXTRA}{claim}-uid"] = (uid,)
        return service_account_user(account, extra)

    # -- publishing

    def discovery(self) -> Object:
        """The OpenID Connect discovery document."""
        return {
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        }

    def keys(self) -> Object:
        """The JSON Web Key Set."""
        return {"keys": [self._key.jwk()]}


def service_account_user(account: Object, extra: Mapping[str, tuple[str, ...]] | None = None) -> User:
    """The user that a ServiceAccount acts as."""
    metadata = account["metadata"]
    namespace = metadata["namespace"]
    groups = (GROUP_ALL, f"{GROUP_ALL}:{namespace}", "system:authenticated")
    return User(f"{USER_PREFIX}{namespace}:{metadata['name']}", groups, metadata.get("uid", ""), extra or {})


DELETED_GRACE = 60.0
"""Seconds a bound token outlives its object's deletion timestamp, as upstream allows for a pod's last requests."""


def _gone_since(obj: Object, now: float) -> bool:
    stamp = obj["metadata"].get("deletionTimestamp")
    return stamp is not None and parse_time(stamp) + DELETED_GRACE < now


def parse_time(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time.

    Raises:
        ValueError: not such a time.
    """
    moment = datetime.fromisoformat(stamp)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _check_seconds(seconds: int) -> None:
    why = ""
    if seconds < SECONDS_LEAST:
        why = "may not specify a duration less than 10 minutes"
    elif seconds > SECONDS_MOST:
        why = "may not specify a duration larger than 2^32 seconds"
    if why:
        error = FieldError("spec.expirationSeconds", "FieldValueInvalid", f"Invalid value: {seconds}: {why}")
        raise invalid("authentication.k8s.io", "TokenRequest", "", [error])


def _well_formed(claims: Mapping[str, Any]) -> bool:
    if claims["iss"] == LEGACY_ISSUER:
        return True
    private = claims.get("kubernetes.io")
    return (
        isinstance(claims.get("exp"), int | float)
        and isinstance(private, dict)
        and isinstance(private.get("namespace"), str)
        and isinstance(dig(private, "serviceaccount", "name"), str)
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
