"""The kinds that are questions: authentication.k8s.io/v1 and authorization.k8s.io/v1. They are posted, answered, not stored."""

from __future__ import annotations

from sampan.kube.types.groups.declare import CREATE_ONLY, declare
from sampan.kube.types.resource import ResourceType
from sampan.kube.types.strategy import BuiltinStrategy


class ReviewStrategy(BuiltinStrategy):
    """A cluster-scoped review."""

    namespaced = False


class NamespacedReviewStrategy(BuiltinStrategy):
    """A review inside a namespace."""


def types() -> list[ResourceType]:
    """The kinds of this module."""
    authentication, authorization = "authentication.k8s.io/v1", "authorization.k8s.io/v1"
    return [
        declare(authentication, plural, kind, ReviewStrategy(), verbs=CREATE_ONLY)
        for plural, kind in (("selfsubjectreviews", "SelfSubjectReview"), ("tokenreviews", "TokenReview"))
    ] + [
        declare(
            authorization,
            "localsubjectaccessreviews",
            "LocalSubjectAccessReview",
            NamespacedReviewStrategy(),
            verbs=CREATE_ONLY,
        ),
        *(
            declare(authorization, plural, kind, ReviewStrategy(), verbs=CREATE_ONLY)
            for plural, kind in (
                ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
                ("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
                ("subjectaccessreviews", "SubjectAccessReview"),
            )
        ),
    ]
