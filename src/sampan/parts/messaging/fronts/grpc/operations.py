"""The operator's front: one unary method of ours, on the same port, that speaks JSON.

``/sampan.messaging.v1.Operations/Call`` takes ``{"operation": name, "arguments": {...}}`` and answers ``{"result": ...}`` or
``{"error": {"reason": ..., "message": ...}}``. The operations are the methods of `Operations`. Where access control is on, only a
super user may call it.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import msgspec

from sampan.kernel.grpc import Call, Method
from sampan.kernel.tasks import Tasks
from sampan.parts.messaging.core import Core
from sampan.parts.messaging.errors import MessagingError, Reason
from sampan.parts.messaging.fronts.grpc.codes import CODES
from sampan.parts.messaging.operations import Operations

log = logging.getLogger(__name__)

PATH = "/sampan.messaging.v1.Operations/Call"


class Request(msgspec.Struct):
    """What is asked."""

    operation: str
    arguments: dict[str, Any] = {}


class OperationsService:
    """Serves `Operations`."""

    def __init__(self, core: Core, tasks: Tasks) -> None:
        self._core = core
        self._tasks = tasks
        operations = Operations(core)
        self._operations = {
            name: method
            for name, method in inspect.getmembers(operations, inspect.iscoroutinefunction)
            if name[0] != "_"
        }

    def methods(self) -> list[Method]:
        """The one method."""
        return [Method(PATH, "unary", self._begin)]

    def _begin(self, payload: bytes, call: Call) -> None:
        self._tasks.start("operation", self._run(payload, call))

    async def _run(self, payload: bytes, call: Call) -> None:
        try:
            if self._core.access.enabled and not self._core.access.authenticate(call.metadata).super:
                raise MessagingError(Reason.FORBIDDEN, "only a super user may operate the broker")
            request = msgspec.json.decode(payload, type=Request)
            operation = self._operations.get(request.operation)
            if operation is None:
                raise MessagingError(Reason.NOT_IMPLEMENTED, f"there is no operation {request.operation}")
            try:
                inspect.signature(operation).bind(**request.arguments)
            except TypeError as error:
                raise MessagingError(Reason.BAD_REQUEST, f"{request.operation}: {error}") from None
            answer: dict[str, Any] = {"result": await operation(**request.arguments)}
        except MessagingError as error:
            answer = _refusal(error.reason, str(error))
        except msgspec.MsgspecError as error:
            answer = _refusal(Reason.BAD_REQUEST, str(error))
        except Exception:
            log.exception("an operation failed")
            answer = _refusal(Reason.INTERNAL, "internal error; see the broker's log")
        call.respond(msgspec.json.encode(answer))


def _refusal(reason: Reason, message: str) -> dict[str, Any]:
    return {"error": {"reason": reason.name, "code": CODES[reason], "message": message}}
