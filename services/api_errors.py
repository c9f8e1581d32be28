"""Errors of the HTTP API in OpenAI's shape: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class ApiError(Exception):
    """An answer other than 200. `code` is for programs, `message` for people."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def model_not_found(model: str, served: str) -> ApiError:
    return ApiError(
        404,
        f"The model '{model}' does not exist; this server has '{served}'.",
        param="model",
        code="model_not_found",
    )


def context_length_exceeded(prompt_tokens: int, max_length: int, param: str) -> ApiError:
    return invalid(
        f"This model's maximum context length is {max_length} tokens, and the prompt has {prompt_tokens}, "
        "which leaves no room for an answer. Please shorten it.",
        param,
        "context_length_exceeded",
    )


def overloaded(retry_after_s: int) -> ApiError:
    return ApiError(
        429,
        "The server has too many waiting requests. Please try again later.",
        type="rate_limit_error",
        code="overloaded",
        headers={"Retry-After": str(retry_after_s)},
    )


def timed_out(limit_s: float) -> ApiError:
    return ApiError(
        408, f"The request took longer than {limit_s:g} seconds.", type="timeout_error", code="timeout"
    )


def unavailable(retry_after_s: int) -> ApiError:
    return ApiError(
        503,
        "No model replica is available at the moment. Please try again later.",
        type="server_error",
        code="unavailable",
        headers={"Retry-After": str(retry_after_s)},
    )


def server_error(message: str) -> ApiError:
    return ApiError(500, message, type="server_error", code="internal_error")
