"""The review kinds: questions put to the API server as objects that are created, answered and never stored.

Who am I (SelfSubjectReview), whose token is this (TokenReview), may this user do that (the SubjectAccessReview family), what
may I do here (SelfSubjectRulesReview). They answer truthfully from RBAC even where the server itself allows everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sampan.kernel.clock import Clock
from sampan.kube.access.authentication import RequestAuthenticator
from sampan.kube.access.interface import Attributes, Authorizer, User
from sampan.kube.access.rbac import MASTERS, RbacAuthorizer
from sampan.kube.access.tokens import TokenError
from sampan.kube.objects import Object, Resource, copy
from sampan.kube.status import FieldError, bad_request, invalid, not_found

AUTHENTICATION = "authentication.k8s.io"
AUTHORIZATION = "authorization.k8s.io"
TOKEN_REVIEWS = Resource(AUTHENTICATION, "v1", "tokenreviews")
SELF_SUBJECT_REVIEWS = Resource(AUTHENTICATION, "v1", "selfsubjectreviews")
SUBJECT_ACCESS_REVIEWS = Resource(AUTHORIZATION, "v1", "subjectaccessreviews")
LOCAL_SUBJECT_ACCESS_REVIEWS = Resource(AUTHORIZATION, "v1", "localsubjectaccessreviews")
SELF_SUBJECT_ACCESS_REVIEWS = Resource(AUTHORIZATION, "v1", "selfsubjectaccessreviews")
SELF_SUBJECT_RULES_REVIEWS = Resource(AUTHORIZATION, "v1", "selfsubjectrulesreviews")


class AccessReviews:
    """Answers every review kind; the server routes their creates here."""

    resources = frozenset(
        {
            TOKEN_REVIEWS,
            SELF_SUBJECT_REVIEWS,
            SUBJECT_ACCESS_REVIEWS,
            LOCAL_SUBJECT_ACCESS_REVIEWS,
            SELF_SUBJECT_ACCESS_REVIEWS,
            SELF_SUBJECT_RULES_REVIEWS,
        }
    )

    def __init__(
        self, authenticator: RequestAuthenticator, authorizer: Authorizer, rbac: RbacAuthorizer, clock: Clock
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._rbac = rbac
        self._clock = clock

    async def create(self, user: User, resource: Resource, namespace: str, obj: Object) -> Object:
        """The review with its ``status`` filled."""
        answer: Object = copy(obj)
        metadata = answer.setdefault("metadata", {})
        spec = answer.get("spec") or {}
        if resource == TOKEN_REVIEWS:
            answer["status"] = self._token(spec)
        elif resource == SELF_SUBJECT_REVIEWS:
            metadata["creationTimestamp"] = datetime.fromtimestamp(self._clock.time(), UTC).strftime(
                "%Y-%m-%dT%H:%M:%SZ"
            )
            answer["status"] = {"userInfo": user_info(user)}
        elif resource == SELF_SUBJECT_RULES_REVIEWS:
            answer.setdefault("spec", {})
            answer["status"] = self._rules(user, spec)
        elif resource == SELF_SUBJECT_ACCESS_REVIEWS:
            answer["status"] = self._access(answer, spec, user)
        elif resource == SUBJECT_ACCESS_REVIEWS:
            answer["status"] = self._access(answer, spec, _subject(answer, spec))
        elif resource == LOCAL_SUBJECT_ACCESS_REVIEWS:
            _check_local(answer, spec, namespace)
            metadata["namespace"] = namespace
            answer["status"] = self._access(answer, spec, _subject(answer, spec))
        else:
            raise not_found(resource, "")
        return answer

    def _token(self, spec: Mapping[str, Any]) -> Object:
        token = spec.get("token") or ""
        if not token:
            raise bad_request("token is required for TokenReview in authentication")
        wanted = spec.get("audiences") or None
        try:
            credential = self._authenticator.bearer(token, wanted)
        except TokenError as error:
            return {"user": {}, "error": str(error)}
        return {"authenticated": True, "user": user_info(credential.user), "audiences": list(credential.audiences)}

    def _access(self, review: Object, spec: Mapping[str, Any], user: User) -> Object:
        wanted, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if (wanted is None) == (path is None):
            problem = (
                "exactly one of nonResourceAttributes or resourceAttributes must be specified"
                if wanted is None
                else "cannot be specified in combination with resourceAttributes"
            )
            field = "spec.resourceAttributes" if wanted is None else "spec.nonResourceAttributes"
            raise _invalid(review, FieldError(field, "FieldValueInvalid", f"Invalid value: null: {problem}"))
        if wanted is not None:
            attributes = Attributes(
                user,
                wanted.get("verb") or "",
                Resource(wanted.get("group") or "", wanted.get("version") or "", wanted.get("resource") or ""),
                wanted.get("subresource") or "",
                wanted.get("namespace") or "",
                wanted.get("name") or "",
            )
        else:
            assert path is not None
            attributes = Attributes(user, path.get("verb") or "", path=path.get("path") or "")
        decision = self._authorizer.authorize(attributes)
        status: Object = {"allowed": decision.allowed}
        if decision.reason:
            status["reason"] = decision.reason
        return status

    def _rules(self, user: User, spec: Mapping[str, Any]) -> Object:
        namespace = spec.get("namespace") or ""
        if not namespace:
            raise bad_request("no namespace on request")
        resource_rules: list[Object] = []
        path_rules: list[Object] = []
        if MASTERS in user.groups:
            resource_rules.append({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
            path_rules.append({"verbs": ["*"], "nonResourceURLs": ["*"]})
        for grant in self._rbac.grants(user, namespace).grants:
            for rule in grant.rules:
                if rule.get("resources"):
                    keys = ("verbs", "apiGroups", "resources", "resourceNames")
                    resource_rules.append({key: list(rule[key]) for key in keys if rule.get(key)})
                if rule.get("nonResourceURLs") and not grant.namespace:
                    path_rules.append({key: list(rule[key]) for key in ("verbs", "nonResourceURLs")})
        return {"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": False}


def user_info(user: User) -> Object:
    """A user as reviews, webhooks and audit events show it."""
    info: Object = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    if user.groups:
        info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in user.extra.items()}
    return info


def _subject(review: Object, spec: Mapping[str, Any]) -> User:
    name, groups = spec.get("user") or "", tuple(spec.get("groups") or ())
    if not name and not groups:
        problem = 'Invalid value: "": at least one of user or group must be specified'
        raise _invalid(review, FieldError("spec.user", "FieldValueInvalid", problem))
    extra = {key: tuple(values or ()) for key, values in (spec.get("extra") or {}).items()}
    return User(name, groups, spec.get("uid") or "", extra)


def _check_local(review: Object, spec: Mapping[str, Any], namespace: str) -> None:
    wanted = spec.get("resourceAttributes")
    if wanted is not None and (wanted.get("namespace") or "") != namespace:
        problem = f'Invalid value: "{wanted.get("namespace") or ""}": must match metadata.namespace'
        raise _invalid(review, FieldError("spec.resourceAttributes.namespace", "FieldValueInvalid", problem))
    if wanted is None and spec.get("nonResourceAttributes") is not None:
        problem = "Invalid value: null: disallowed on this kind of request"
        raise _invalid(review, FieldError("spec.nonResourceAttributes", "FieldValueInvalid", problem))


def _invalid(review: Object, error: FieldError) -> Exception:
    kind = review.get("kind") or "SubjectAccessReview"
    return invalid(AUTHORIZATION, kind, (review.get("metadata") or {}).get("name") or "", [error])
