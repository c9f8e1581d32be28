"""Errors of the Qdrant client, as half a line that says what happened and what to do."""

from __future__ import annotations

import sqlite3
from http import HTTPStatus

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "check semantic.api_key",
    HTTPStatus.FORBIDDEN: "check the rights of semantic.api_key",
    HTTPStatus.TOO_MANY_REQUESTS: "it is overloaded: try again later",
}
GRPC_HINTS: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAUTHENTICATED: HINTS[HTTPStatus.UNAUTHORIZED],
    grpc.StatusCode.PERMISSION_DENIED: HINTS[HTTPStatus.FORBIDDEN],
    grpc.StatusCode.RESOURCE_EXHAUSTED: HINTS[HTTPStatus.TOO_MANY_REQUESTS],
    grpc.StatusCode.UNIMPLEMENTED: "it is not Qdrant's gRPC port: check semantic.grpc_port",
}
# What a server's refusal of one request is raised as.
REFUSALS = (UnexpectedResponse, grpc.RpcError)
# The client asserts on answers without a result; local mode uses built-in errors and SQLite's.
CLIENT_ERRORS = (
    ApiException,
    QdrantException,
    grpc.RpcError,
    httpx.HTTPError,
    httpx.InvalidURL,
    sqlite3.Error,
    AssertionError,
    OSError,
    RuntimeError,
    ValueError,
)


def explain(error: BaseException) -> str:
    """What to write after the address of the server or folder."""
    if isinstance(error, ResourceExhaustedResponse):
        return f"is overloaded (429): try again in {error.retry_after_s} s"
    if isinstance(error, UnexpectedResponse):
        hint = HINTS.get(error.status_code or 0, "see the server's log")
        return f"answered {error.status_code} {error.reason_phrase}: {hint}"
    if isinstance(error, ResponseHandlingException):
        return _explain_transport(error.source)
    if isinstance(error, grpc.RpcError):
        return _explain_grpc(error)
    return f"failed ({_line(error)})"


def _explain_transport(source: BaseException) -> str:
    if isinstance(source, httpx.TimeoutException):
        return "did not answer in time: check its load and the network"
    if isinstance(source, httpx.TransportError):
        return f"is not reachable ({_line(source)}): check that Qdrant runs and semantic.url"
    return f"gave an answer that is not Qdrant's ({_line(source)}): check semantic.url"


def _explain_grpc(error: grpc.RpcError) -> str:
    code, details = error.code(), _first_line(error.details() or "")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "did not answer in time: check its load and the network"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"is not reachable ({details}): check that Qdrant runs, semantic.url and semantic.grpc_port"
    hint = GRPC_HINTS.get(code, "see the server's log")
    return f"answered {code.name} ({details}): {hint}"


def _line(error: BaseException) -> str:
    return _first_line(str(error)) or type(error).__name__


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")
