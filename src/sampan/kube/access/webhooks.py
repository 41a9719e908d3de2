"""Admission webhooks: somebody else's server is asked about a write, and may change or refuse it.

Mutating webhooks run one after the other, in the order of their configurations' names and then of the list; each sees what the
one before made of the object. When one changes the object, the chain runs the mutating phase once more: the built-in plugins,
and of the webhooks those with ``reinvocationPolicy: IfNeeded`` that ran before the change. Validating webhooks run side by
side on the final object; of several refusals the first in order is told.

A webhook that cannot be asked counts as a refusal (500) or as an agreement, as its ``failurePolicy`` says.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from sampan.kube import cel
from sampan.kube.access import expressions
from sampan.kube.access.interface import AdmissionRequest, Authorizer, ObjectCache
from sampan.kube.access.matching import converted, described, exempt, matched, selected
from sampan.kube.access.refusal import refused
from sampan.kube.access.webhook_call import WebhookCaller, WebhookCallError
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.patch import json_patch
from sampan.kube.resources import MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from sampan.kube.status import ApiError, bad_request, internal
from sampan.kube.types.resource import ResourceType, TypeRegistry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10
REVIEW_VERSIONS = ("v1", "v1beta1")
WARNINGS_LIMIT = 16
"""Warnings taken from one webhook's answer."""
WARNING_LENGTH_LIMIT = 256

Phase = Literal["admit", "validating"]


class Webhook(NamedTuple):
    """One webhook of one configuration."""

    configuration: str
    position: int
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        name: str = self.spec["name"]
        return name

    @property
    def identity(self) -> tuple[str, int]:
        return self.configuration, self.position

    @property
    def ignores_failure(self) -> bool:
        return self.spec.get("failurePolicy") == "Ignore"


class _Asked(NamedTuple):
    """A webhook that is concerned, and the version in which it wants to see the objects."""

    webhook: Webhook
    type: ResourceType


@dataclass(slots=True)
class _Rounds:
    """What the mutating webhooks did to one request."""

    round: int = 0
    earlier: set[tuple[str, int]] = field(default_factory=set)
    """Webhooks with IfNeeded that have run since the object last changed."""
    again: set[tuple[str, int]] = field(default_factory=set)
    """Those to ask once more in the second round."""
    last: Object | None = None
    """The object as the last webhook of the first round left it."""


class WebhookMetrics:
    """Upstream's webhook metrics.

    Two of its counters do not end in ``_total``, which a Prometheus counter here always does; they are gauges that only grow.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from sampan.kernel import telemetry

        prefix = "apiserver_admission_webhook"
        self.duration = telemetry.histogram(
            registry,
            f"{prefix}_admission_duration_seconds",
            "Admission webhook latency in seconds, by name, operation, type and outcome.",
            ("name", "type", "operation", "rejected"),
            (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0),
        )
        self.requests = telemetry.counter(
            registry,
            f"{prefix}_request_total",
            "Calls of admission webhooks, by the code that the request got from them.",
            ("name", "type", "operation", "code", "rejected"),
        )
        self.rejections = telemetry.gauge(
            registry,
            f"{prefix}_rejection_count",
            "Requests refused by admission webhooks.",
            ("name", "type", "operation", "error_type", "rejection_code"),
        )
        self.open = telemetry.gauge(
            registry, f"{prefix}_fail_open_count", "Failed webhook calls that were ignored.", ("name", "type")
        )


class _Webhooks:
    """What the mutating and the validating side share: knowing the webhooks, choosing and asking them."""

    resource: Resource
    kind: Phase

    def __init__(
        self,
        cache: ObjectCache,
        types: TypeRegistry,
        authorizer: Authorizer,
        caller: WebhookCaller,
        metrics: WebhookMetrics | None = None,
    ) -> None:
        self._cache = cache
        self._types = types
        self._authorizer = authorizer
        self._caller = caller
        self._metrics = metrics
        self._generation = -1
        self._known: list[Webhook] = []

    async def admit(self, request: AdmissionRequest) -> None:
        """The mutating phase; nothing to do on the validating side."""

    async def validate(self, request: AdmissionRequest) -> None:
        """The validating phase; nothing to do on the mutating side."""

    def webhooks(self) -> list[Webhook]:
        """All configured webhooks in the order in which they are asked."""
        generation = self._cache.generation(self.resource)
        if generation != self._generation:
            self._generation = generation
            found = sorted(self._cache.objects(self.resource), key=lambda each: str(each["metadata"]["name"]))
            self._known = [
                Webhook(each["metadata"]["name"], position, spec)
                for each in found
                for position, spec in enumerate(each.get("webhooks") or ())
            ]
        return self._known

    async def _concerned(self, webhook: Webhook, request: AdmissionRequest) -> _Asked | None:
        """Whether a webhook is to be asked.

        Raises:
            ApiError: 403, its match conditions cannot be evaluated; 400, it has side effects and this is a dry run.
        """
        spec = webhook.spec
        rules = spec.get("rules") or ()
        type = matched(request, self._types, rules, equivalent=spec.get("matchPolicy") != "Exact")
        if type is None:
            return None
        if not selected(request, self._cache, spec.get("namespaceSelector"), spec.get("objectSelector")):
            return None
        if conditions := spec.get("matchConditions"):
            values = expressions.bindings(
                request,
                self._authorizer,
                described=described(request, type, ""),
                obj=await converted(request.object, request.type, type),
                old=await converted(request.old_object, request.type, type),
            )
            try:
                if expressions.first_unmet(conditions, values):
                    return None
            except cel.CelError as error:
                if webhook.ignores_failure:
                    self._opened(webhook, f"match conditions: {error}")
                    return None
                raise refused(request, str(error)) from None
        if request.dry_run and spec.get("sideEffects") not in ("None", "NoneOnDryRun"):
            raise bad_request(f'admission webhook "{webhook.name}" does not support dry run')
        return _Asked(webhook, type)

    async def _ask(self, asked: _Asked, request: AdmissionRequest) -> Mapping[str, Any]:
        """A webhook's agreeing response.

        Raises:
            ApiError: it refuses, or cannot be asked and that counts as a refusal.
            WebhookCallError: it cannot be asked; only where that is to be ignored.
        """
        webhook = asked.webhook
        began = time.perf_counter()
        refusal: ApiError | None = None
        try:
            response = await self._response(asked, request)
            self._note(webhook, request, response)
            if not response.get("allowed"):
                refusal = denial(webhook.name, response.get("status") or {})
        except WebhookCallError as error:
            if webhook.ignores_failure:
                self._opened(webhook, str(error))
                key = f"failed-open.{'mutation' if self.kind == 'admit' else 'validating'}.webhook.admission.k8s.io"
                request.audit[f"{key}/{webhook.configuration}_{webhook.position}"] = webhook.name
                raise
            refusal = internal(f'failed calling webhook "{webhook.name}": {error}')
            self._rejected(webhook, request, "calling_webhook_error", 0)
        else:
            if refusal is not None:
                self._rejected(webhook, request, "no_error", refusal.code)
        finally:
            if self._metrics is not None:
                rejected = str(refusal is not None).lower()
                code = "200" if refusal is None else str(refusal.code)
                about = (webhook.name, self.kind, request.operation)
                self._metrics.duration.labels(*about, rejected).observe(time.perf_counter() - began)
                self._metrics.requests.labels(*about, code, rejected).inc()
        if refusal is not None:
            raise refusal
        return response

    async def _response(self, asked: _Asked, request: AdmissionRequest) -> Mapping[str, Any]:
        spec = asked.webhook.spec
        version = next((v for v in spec.get("admissionReviewVersions") or ("v1",) if v in REVIEW_VERSIONS), None)
        if version is None:
            raise WebhookCallError("webhook does not accept known AdmissionReview versions (v1, v1beta1)")
        uid = str(uuid.uuid4())
        about = described(request, asked.type, uid)
        about["object"] = await converted(request.object, request.type, asked.type)
        about["oldObject"] = await converted(request.old_object, request.type, asked.type)
        review = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": about}
        seconds = spec.get("timeoutSeconds") or TIMEOUT_SECONDS
        answer = await self._caller.post(spec.get("clientConfig") or {}, review, seconds)
        return _checked(answer, version, uid)

    def _note(self, webhook: Webhook, request: AdmissionRequest, response: Mapping[str, Any]) -> None:
        for warning in (response.get("warnings") or ())[:WARNINGS_LIMIT]:
            request.warnings.append(str(warning)[:WARNING_LENGTH_LIMIT])
        for key, value in (response.get("auditAnnotations") or {}).items():
            request.audit[f"{webhook.name}/{key}"] = str(value)

    def _opened(self, webhook: Webhook, why: str) -> None:
        log.warning("webhook %s failed and is ignored, as its failurePolicy says: %s", webhook.name, why)
        if self._metrics is not None:
            self._metrics.open.labels(webhook.name, self.kind).inc()

    def _rejected(self, webhook: Webhook, request: AdmissionRequest, why: str, code: int) -> None:
        if self._metrics is not None:
            self._metrics.rejections.labels(webhook.name, self.kind, request.operation, why, str(code)).inc()


class MutatingWebhooks(_Webhooks):
    """MutatingAdmissionWebhook."""

    resource = MUTATING_WEBHOOKS
    kind: Phase = "admit"

    async def admit(self, request: AdmissionRequest) -> None:
        known = self.webhooks()
        if not known or exempt(request):
            return
        rounds: _Rounds = request.notes.setdefault("webhooks", _Rounds())
        second = rounds.round > 0
        if second and rounds.last is not None and rounds.last != request.object:
            # The built-in plugins answered the webhooks' change with one of their own.
            rounds.again |= rounds.earlier
        for webhook in known:
            if second and webhook.identity not in rounds.again:
                continue
            asked = await self._concerned(webhook, request)
            if asked is None:
                continue
            try:
                response = await self._ask(asked, request)
                changed = await self._patched(asked, request, response)
            except WebhookCallError:
                continue
            if changed:
                request.reinvoke = True
                rounds.again |= rounds.earlier
                rounds.earlier = set()
            if webhook.spec.get("reinvocationPolicy") == "IfNeeded":
                rounds.earlier.add(webhook.identity)
        rounds.round += 1
        rounds.last = copy(request.object)

    async def _patched(self, asked: _Asked, request: AdmissionRequest, response: Mapping[str, Any]) -> bool:
        """Apply the response's patch; whether it changed the object."""
        encoded = response.get("patch")
        if not encoded:
            return False
        name = asked.webhook.name
        if request.object is None:
            raise internal(
                f'admission webhook "{name}" attempted to modify the object, which is not supported for this operation'
            )
        before = await converted(request.object, request.type, asked.type)
        try:
            operations = msgspec.json.decode(base64.b64decode(encoded))
            after = json_patch.apply(before, operations)
        except (ValueError, binascii.Error, ApiError) as error:
            why = error.message if isinstance(error, ApiError) else str(error)
            if asked.webhook.ignores_failure:
                self._opened(asked.webhook, why)
                return False
            raise internal(f'failed calling webhook "{name}": cannot apply its patch: {why}') from None
        if not isinstance(after, dict):
            raise internal(f'failed calling webhook "{name}": its patch leaves no object')
        if after == before:
            return False
        request.object = await converted(after, asked.type, request.type)
        assert request.object is not None
        if not request.subresource or request.subresource == "status":
            strategy = request.type.strategy
            if request.type.custom:
                strategy.prune(request.object)
            strategy.default(request.object)
        return True


class ValidatingWebhooks(_Webhooks):
    """ValidatingAdmissionWebhook."""

    resource = VALIDATING_WEBHOOKS
    kind: Phase = "validating"

    async def validate(self, request: AdmissionRequest) -> None:
        known = self.webhooks()
        if not known or exempt(request):
            return
        asked = [each for webhook in known if (each := await self._concerned(webhook, request)) is not None]
        if not asked:
            return
        answers = await asyncio.gather(*(self._ask(each, request) for each in asked), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, WebhookCallError):
                raise answer


def denial(webhook: str, status: Mapping[str, Any]) -> ApiError:
    """The error for a response that does not allow the request; the response's status may say more."""
    told = f'admission webhook "{webhook}" denied the request'
    if status.get("message"):
        text = f"{told}: {status['message']}"
    elif status.get("reason"):
        text = f"{told}: {status['reason']}"
    else:
        text = f"{told} without explanation"
    code = status.get("code") or 0
    details = status.get("details")
    return ApiError(code if code >= 400 else 400, status.get("reason") or "", text, details=details)


class _Status(msgspec.Struct):
    """What a refusal may say."""

    code: int | None = None
    message: str | None = None
    reason: str | None = None
    details: dict[str, Any] | None = None


class _Response(msgspec.Struct, rename="camel"):
    """The shape of a response: anything else is a failed call."""

    uid: str | None = None
    allowed: bool | None = None
    status: _Status | None = None
    patch: str | None = None
    patch_type: str | None = None
    warnings: list[str] | None = None
    audit_annotations: dict[str, str] | None = None


def _checked(answer: Object, version: str, uid: str) -> Mapping[str, Any]:
    """The response of an AdmissionReview that is what was asked for.

    Raises:
        WebhookCallError: it is not.
    """
    wanted = f"admission.k8s.io/{version}"
    # v1beta1 webhooks were allowed to leave the type out.
    if (answer.get("apiVersion"), answer.get("kind")) != (wanted, "AdmissionReview") and version == "v1":
        given = f"{answer.get('apiVersion') or ''}, Kind={answer.get('kind') or ''}"
        raise WebhookCallError(f"expected webhook response of {wanted}, Kind=AdmissionReview, got {given}")
    response = answer.get("response")
    if not isinstance(response, dict):
        raise WebhookCallError("webhook response was absent")
    try:
        msgspec.convert(response, _Response)
    except msgspec.ValidationError as error:
        raise WebhookCallError(f"could not read the webhook's response: {error}") from None
    if version == "v1" and response.get("uid") != uid:
        raise WebhookCallError(f'expected response.uid="{uid}", got "{response.get("uid") or ""}"')
    patched = bool(response.get("patch"))
    if patched and response.get("patchType") != "JSONPatch" and version == "v1":
        raise WebhookCallError(
            f'expected response.patchType to be "JSONPatch", got "{response.get("patchType") or ""}"'
        )
    return response
