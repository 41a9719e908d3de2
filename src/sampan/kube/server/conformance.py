"""What a body may contain: unknown fields and wrong types against the kind's schema."""

from __future__ import annotations

from sampan.kube.objects import Object
from sampan.kube.server.call import Call
from sampan.kube.status import bad_request


def conform(call: Call, obj: Object, old: Object | None = None) -> None:
    """Drop unknown fields, in place, and report them as the client's field validation asks; ``old`` is what it replaces.

    Raises:
        ApiError: 400, a value has the wrong type, or there are unknown fields and the client is strict about them.
    """
    strategy = call.type.strategy
    unknown = strategy.prune(obj) if old is None else strategy.prune_change(obj, old)
    if not unknown or call.options.field_validation == "Ignore":
        return
    texts = [f'unknown field "{path}"' for path in unknown]
    if call.options.field_validation == "Strict":
        type = call.type
        raise bad_request(
            f'{type.kind} in version "{type.resource.version}" cannot be handled as a {type.kind}: '
            f"strict decoding error: {', '.join(texts)}"
        )
    call.warnings.extend(texts)
