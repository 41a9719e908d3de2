"""Access control put together: everything the API server needs of this package, made once a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sampan.kernel.clock import Clock
from sampan.kernel.files import private_folder
from sampan.kube.access.admission import AdmissionChain
from sampan.kube.access.authentication import RequestAuthenticator, StaticTokens
from sampan.kube.access.interface import AdmissionPlugin, Authorizer, ObjectCache
from sampan.kube.access.plugins import first_plugins, last_plugins
from sampan.kube.access.plugins.plugin import PluginContext
from sampan.kube.access.policies import ValidatingPolicies
from sampan.kube.access.rbac import AlwaysAllow, AuthorizerChain, NodeAuthorizer, RbacAuthorizer
from sampan.kube.access.reviews import AccessReviews
from sampan.kube.access.service_endpoints import Resolver, ServiceEndpoints
from sampan.kube.access.tokens import ISSUER, SigningKey, Tokens
from sampan.kube.access.webhook_call import WebhookCaller
from sampan.kube.access.webhooks import MutatingWebhooks, ValidatingWebhooks, WebhookMetrics
from sampan.kube.types.resource import TypeRegistry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@dataclass(frozen=True)
class AccessControl:
    """The gates of one API server."""

    authenticator: RequestAuthenticator
    authorizer: Authorizer
    admission: AdmissionChain
    reviews: AccessReviews
    tokens: Tokens
    webhooks: WebhookCaller
    resolve: Resolver
    """Where a Service is reached from this process (also for conversion webhooks and aggregated APIs)."""
    administrator_token: str
    """The static bearer token of ``system:admin``."""

    async def close(self) -> None:
        """Release the connections to webhooks."""
        await self.webhooks.close()


def access_control(
    *,
    cache: ObjectCache,
    types: TypeRegistry,
    clock: Clock,
    directory: Path,
    metrics: CollectorRegistry | None = None,
    issuer: str = ISSUER,
    authorization: Literal["RBAC", "AlwaysAllow"] = "RBAC",
    anonymous: bool = True,
    resolve: Resolver | None = None,
) -> AccessControl:
    """Make the gates; keys and the administrator's token are kept in ``directory``.

    ``authorization`` "AlwaysAllow" lets every request through; reviews still answer from RBAC. The key of ServiceAccount
    tokens is read (or made) at its first use; ``tokens.prepare`` does that ahead.
    """
    folder = private_folder(directory)
    rbac = RbacAuthorizer(cache)
    judged: Authorizer = AuthorizerChain([NodeAuthorizer(cache), rbac])
    authorizer = judged if authorization == "RBAC" else AlwaysAllow()
    tokens = Tokens(SigningKey(folder / "service-account.key"), cache, clock, issuer=issuer)
    administrator_token, static = StaticTokens.administrator(folder / "admin.token")
    authenticator = RequestAuthenticator(
        cache=cache, clock=clock, tokens=tokens, static=static, authorizer=authorizer, anonymous=anonymous
    )
    context = PluginContext(cache, clock, authorizer)
    resolve = resolve or ServiceEndpoints(cache).resolve
    caller = WebhookCaller(clock, resolve)
    counted = WebhookMetrics(metrics) if metrics is not None else None
    last: list[AdmissionPlugin] = [
        MutatingWebhooks(cache, types, authorizer, caller, counted),
        ValidatingPolicies(cache, types, authorizer),
        ValidatingWebhooks(cache, types, authorizer, caller, counted),
        *last_plugins(context),
    ]
    return AccessControl(
        authenticator,
        authorizer,
        AdmissionChain(first_plugins(context), last),
        AccessReviews(authenticator, judged, rbac, clock),
        tokens,
        caller,
        resolve,
        administrator_token,
    )
