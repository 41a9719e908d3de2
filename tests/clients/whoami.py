"""Who the API server takes a Python client for."""

from __future__ import annotations

import kubernetes.client as kube


def whoami(api: kube.ApiClient) -> kube.V1UserInfo:
    """The user behind a client's credentials, as the server sees it.

    Raises:
        ApiException: the credentials are refused.
    """
    review = kube.AuthenticationV1Api(api).create_self_subject_review(kube.V1SelfSubjectReview())
    assert review.status is not None
    assert isinstance(review.status.user_info, kube.V1UserInfo)
    return review.status.user_info
