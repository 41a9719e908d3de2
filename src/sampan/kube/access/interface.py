"""Who asks, what they ask for, and the gates a request passes: authentication → authorization → admission."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sampan.kube.objects import Object, Resource
from sampan.kube.types.resource import ResourceType


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated (or anonymous) identity."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))
MASTER = User("system:admin", ("system:masters", "system:authenticated"))
APISERVER = User("system:apiserver", ("system:masters", "system:authenticated"))
"""The API server itself, writing what it needs to run: no webhook and no policy is asked about that, so that a broken one
cannot keep a platform from starting."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants to do, for authorization."""

    user: User
    verb: str
    resource: Resource | None = None
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    """Set for non-resource requests only."""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


class ObjectCache(Protocol):
    """Decoded objects of the API server's own process, never behind a write; shared: do not change them.

    Authorization and admission read roles, namespaces, webhook configurations and quotas through it.
    """

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object; ``namespace`` is "" for cluster-scoped resources."""
        ...

    def objects(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """All objects of a resource (of one namespace)."""
        ...

    def generation(self, resource: Resource) -> int:
        """Grows with each change of the resource: the key under which to cache what is derived from it."""
        ...


class Authorizer(Protocol):
    def authorize(self, attributes: Attributes) -> Decision:
        """Decide from state in memory."""
        ...


class Authenticator(Protocol):
    async def authenticate(self, headers: Mapping[str, str], peer_certificate: Mapping[str, Any] | None) -> User | None:
        """The identity behind a request (None: anonymous), after impersonation.

        ``headers`` must look names up without regard to case and, for repeated ones, should be a multidict with ``getall``;
        ``peer_certificate`` is what ``ssl.SSLSocket.getpeercert()`` gives for a verified certificate.

        Raises:
            ApiError: 401, the credentials are bad; 403, the user may not impersonate whom it names.
        """
        ...


class Reviews(Protocol):
    """Kinds that are created, answered and never stored: TokenReview, SubjectAccessReview and their family."""

    resources: frozenset[Resource]

    async def create(self, user: User, resource: Resource, namespace: str, obj: Object) -> Object:
        """The review with its ``status`` filled; the caller has authorized the create and decoded ``obj``.

        Raises:
            ApiError: the review is malformed.
        """
        ...


class ServiceAccountTokens(Protocol):
    """ServiceAccount tokens: the ``token`` subresource and what verifiers need to know of the issuer."""

    def request(self, user: User, service_account: Object, request: Object) -> Object:
        """Answer a TokenRequest (POST ``serviceaccounts/<name>/token``): the request with its ``status`` filled.

        Raises:
            ApiError: the request is invalid, or names an object that does not exist.
        """
        ...

    def discovery(self) -> Object:
        """The document of ``/.well-known/openid-configuration``."""
        ...

    def keys(self) -> Object:
        """The JSON Web Key Set of ``/openid/v1/jwks``."""
        ...


Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]


@dataclass(slots=True)
class AdmissionRequest:
    """One write on its way to the store. Mutating plugins change ``object`` in place or replace it."""

    operation: Operation
    type: ResourceType
    user: User
    namespace: str
    name: str
    object: Object | None
    old_object: Object | None = None
    subresource: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)
    """Sent to the client as Warning headers."""
    audit: dict[str, str] = field(default_factory=dict)
    finished: list[Callable[[], None]] = field(default_factory=list)
    """What admission wants to be told: the server calls each once, when the write has been stored or has failed."""
    reinvoke: bool = False
    """The object was changed from outside (a webhook, a policy): the chain runs the mutating phase once more."""
    source: str = ""
    """The address the request came from; empty: from the platform's own process."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What plugins remember of this request between their phases, by plugin."""


class AdmissionPlugin(Protocol):
    """One admission step; either method may do nothing. Both raise ``ApiError`` to refuse."""

    async def admit(self, request: AdmissionRequest) -> None:
        """Change the object (mutating phase)."""
        ...

    async def validate(self, request: AdmissionRequest) -> None:
        """Refuse the final object (validating phase)."""
        ...


class Admission(Protocol):
    """The whole chain; the server calls it with defaulting between the phases and runs ``request.finished`` at the end."""

    @property
    def plugins(self) -> Sequence[AdmissionPlugin]:
        """Every plugin, in the order in which it runs."""
        ...

    def add(self, plugin: AdmissionPlugin) -> None:
        """Append a part's own plugin: it runs after the built-in ones and before policies and webhooks."""
        ...

    async def admit(self, request: AdmissionRequest) -> None: ...

    async def validate(self, request: AdmissionRequest) -> None: ...
