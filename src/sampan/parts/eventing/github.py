"""GitHub's webhooks as events: the signature, the event, and its subject. No I/O."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

from sampan.parts.eventing import cloudevents
from sampan.parts.eventing.cloudevents import Event
from sampan.parts.eventing.errors import MalformedEventError, NotAnEventError

TYPE = "dev.knative.source.github."
_SUBJECTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # event: the first of these places in the payload that holds something
    "commit_comment": (("comment", "id"),),
    "create": (("ref",),),
    "delete": (("ref",),),
    "deployment": (("deployment", "id"),),
    "deployment_status": (("deployment", "id"),),
    "fork": (("forkee", "id"),),
    "issue_comment": (("comment", "id"),),
    "issues": (("issue", "number"),),
    "label": (("label", "name"),),
    "member": (("member", "id"),),
    "milestone": (("milestone", "number"),),
    "pull_request": (("pull_request", "number"), ("number",)),
    "pull_request_review": (("review", "id"),),
    "pull_request_review_comment": (("comment", "id"),),
    "push": (("compare",),),
    "release": (("release", "tag_name"),),
    "repository": (("repository", "name"),),
    "status": (("sha",),),
    "watch": (("repository", "name"),),
}


def verified(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Whether GitHub signed this body with the secret; without a secret nothing is signed."""
    if not secret:
        return True
    for name, digest in (("X-Hub-Signature-256", "sha256"), ("X-Hub-Signature", "sha1")):
        given = headers.get(name)
        if given is not None:
            wanted = f"{digest}={hmac.new(secret.encode(), body, getattr(hashlib, digest)).hexdigest()}"
            return hmac.compare_digest(given.encode(), wanted.encode())
    return False


def event_of(headers: Mapping[str, str], body: bytes, repository: str) -> Event:
    """The event of a webhook call.

    Raises:
        NotAnEventError: it does not come from GitHub.
        MalformedEventError: its body is not JSON.
    """
    kind, delivery = headers.get("X-GitHub-Event"), headers.get("X-GitHub-Delivery")
    if not kind or not delivery:
        raise NotAnEventError("the headers X-GitHub-Event and X-GitHub-Delivery are missing")
    try:
        payload = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEventError(f"the body is not a JSON object: {error}") from None
    event = cloudevents.make(
        f"{TYPE}{kind}", f"https://github.com/{repository}", delivery, body, datacontenttype="application/json"
    )
    for path in _SUBJECTS.get(kind, ()):
        value: Any = payload
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        if value:
            event.attributes["subject"] = str(value).rsplit("/", 1)[-1] if kind == "push" else str(value)
            break
    cloudevents.check(event.attributes)
    return event
