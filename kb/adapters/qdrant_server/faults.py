"""What the client raises, in our words: whose fault it is, and whether to try again."""

from __future__ import annotations

import json
from dataclasses import dataclass

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)
from qdrant_client.http.models import UpdateStatus

_GRPC_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
}
_REST_AGAIN = {408, 425, 429}
_REMEDIES = {
    401: "check KB_QDRANT__API_KEY",
    403: "check KB_QDRANT__API_KEY",
    413: "lower KB_QDRANT__BATCH_BYTES, or raise the server's max_request_size_mb",
    grpc.StatusCode.UNAUTHENTICATED: "check KB_QDRANT__API_KEY",
    grpc.StatusCode.PERMISSION_DENIED: "check KB_QDRANT__API_KEY",
}


class Unfinished(Exception):
    """The server has a write, but stopped waiting for it to be applied."""

    def __init__(self, status: UpdateStatus) -> None:
        super().__init__(f"the write is not applied yet ({status.value})")


CLIENT_ERRORS = (ApiException, QdrantException, grpc.RpcError, Unfinished)


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed attempt.

    Attributes:
        again: the same call may succeed later.
        wait_s: how long the server asks to wait before that.
        missing: the collection is not there.
        exists: the collection is there already.
    """

    reason: str
    again: bool = False
    wait_s: float | None = None
    missing: bool = False
    exists: bool = False


def fault_of(error: Exception) -> Fault:
    """What one of CLIENT_ERRORS means."""
    if isinstance(error, UnexpectedResponse):
        return _of_response(error)
    if isinstance(error, ResponseHandlingException):
        source = error.source
        reason = f"{type(source).__name__}: {source}"
        return Fault(reason, again=isinstance(source, httpx.TransportError))
    if isinstance(error, ResourceExhaustedResponse):
        return Fault(str(error), again=True, wait_s=float(error.retry_after_s))
    if isinstance(error, grpc.RpcError):
        return _of_rpc(error)
    # An unreadable Retry-After, or a write that is not applied yet.
    return Fault(str(error), again=True)


def _of_response(error: UnexpectedResponse) -> Fault:
    status = error.status_code or 0
    reason = f"status {status}: {_message(error.content)}"
    if status in _REMEDIES:
        reason += f"; {_REMEDIES[status]}"
    return Fault(
        reason,
        again=status in _REST_AGAIN or status >= 500,
        missing=status == 404,
        exists=status == 409,
    )


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


def _of_rpc(error: grpc.RpcError) -> Fault:
    if not isinstance(error, grpc.Call):
        return Fault(repr(error))
    code = error.code()
    reason = f"{code.name}: {error.details()}"
    if code in _REMEDIES:
        reason += f"; {_REMEDIES[code]}"
    return Fault(
        reason,
        again=code in _GRPC_AGAIN,
        missing=code == grpc.StatusCode.NOT_FOUND,
        exists=code == grpc.StatusCode.ALREADY_EXISTS,
    )
