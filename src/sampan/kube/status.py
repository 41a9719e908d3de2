"""Kubernetes' own errors: one exception, `ApiError`, that is a ``Status`` object.

Every layer of kube raises `ApiError`; the HTTP front writes its ``status()`` and the HTTP client raises the same exception
from what it reads, so both client transports fail alike. Reasons, codes and message texts are upstream's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sampan.kernel.errors import SampanError
from sampan.kube.objects import Object, Resource


class FieldError(NamedTuple):
    """One invalid field, as ``details.causes`` reports it."""

    field: str
    """Path such as ``spec.containers[0].image``."""
    reason: str
    """FieldValueRequired, FieldValueInvalid, FieldValueDuplicate, FieldValueNotSupported, FieldValueForbidden, ..."""
    message: str
    """Text without the path, such as ``Required value`` or ``Invalid value: "x": must be ...``."""


class ApiError(SampanError):
    """A failed API request: HTTP code, reason, message and details of the ``Status`` that answers it."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.retry_after = retry_after
        if retry_after is not None:
            self.details["retryAfterSeconds"] = retry_after

    def status(self) -> Object:
        """The ``Status`` object."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if self.details:
            status["details"] = self.details
        return status

    @staticmethod
    def of(status: Mapping[str, Any], code: int = 500) -> ApiError:
        """The error that a received ``Status`` object stands for."""
        details = status.get("details") or {}
        return ApiError(
            int(status.get("code") or code),
            status.get("reason") or "Unknown",
            status.get("message") or "",
            details=details,
            retry_after=details.get("retryAfterSeconds"),
        )

    @property
    def not_found(self) -> bool:
        return self.reason == "NotFound"

    @property
    def already_exists(self) -> bool:
        return self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        return self.reason == "Conflict"

    @property
    def namespace_terminating(self) -> bool:
        """Nothing can be created because the namespace is being deleted."""
        return any(cause.get("reason") == "NamespaceTerminating" for cause in self.details.get("causes") or ())

    @property
    def expired(self) -> bool:
        return self.reason in ("Expired", "Gone")


def _about(resource: Resource, name: str) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', details=_about(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details=_about(resource, name))


def conflict(resource: Resource, name: str, why: str | None = None) -> ApiError:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, details=_about(resource, name))


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    """``why`` follows ``... is forbidden: ``."""
    subject = f'{resource.qualified} "{name}"' if name else resource.qualified
    return ApiError(403, "Forbidden", f"{subject} is forbidden: {why}", details=_about(resource, name))


def invalid(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 Invalid with one cause a field."""
    texts = [f"{error.field}: {error.message}" if error.field else error.message for error in errors]
    qualified = f"{kind}.{group}" if group else kind
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details: dict[str, Any] = {"name": name, "kind": kind}
    if group:
        details["group"] = group
    details["causes"] = [{"reason": e.reason, "message": e.message, "field": e.field} for e in errors]
    return ApiError(422, "Invalid", f'{qualified} "{name}" is invalid: {listed}', details=details)


def method_not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def timeout(message: str, *, too_large_revision: bool = False) -> ApiError:
    causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
    return ApiError(
        504, "Timeout", message, details={"causes": causes, "retryAfterSeconds": 1} if too_large_revision else {}
    )


def too_many_requests(message: str, retry_after: int = 1, details: Mapping[str, Any] | None = None) -> ApiError:
    return ApiError(429, "TooManyRequests", message, retry_after=retry_after, details=details)


def too_large(limit: int) -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    return ApiError(406, "NotAcceptable", f"only the following media types are accepted: {', '.join(accepted)}")


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {message}")


def unavailable(message: str) -> ApiError:
    return ApiError(503, "ServiceUnavailable", message)
