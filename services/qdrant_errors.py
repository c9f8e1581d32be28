"""Errors of the Qdrant client, as half a line that says what happened and what to do."""

from __future__ import annotations

import sqlite3
from http import HTTPStatus

import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "check semantic.api_key",
    HTTPStatus.FORBIDDEN: "check the rights of semantic.api_key",
    HTTPStatus.TOO_MANY_REQUESTS: "it is overloaded: try again later",
}
# The client asserts on answers without a result; local mode uses built-in errors and SQLite's.
CLIENT_ERRORS = (
    ApiException,
    QdrantException,
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
        source = error.source
        if isinstance(source, httpx.TimeoutException):
            return "did not answer in time: check its load and the network"
        if isinstance(source, httpx.TransportError):
            return f"is not reachable ({_line(source)}): check that Qdrant runs and semantic.url"
        return f"gave an answer that is not Qdrant's ({_line(source)}): check semantic.url"
    return f"failed ({_line(error)})"


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
