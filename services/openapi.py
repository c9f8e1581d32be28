"""The OpenAPI document: what FastAPI knows of the routes, with the bodies that they really take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

import evospec
from services.openai_answers import ErrorAnswer
from services.openai_schema import GenerationBody

Json = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_REASONS = {
    400: "The request can't be served as asked: `param` says why.",
    401: "No API key, or one that is not valid.",
    404: "There is no such model.",
    408: "The request took longer than `serve.request_timeout_s`.",
    413: "The body is too large.",
    429: "Too many requests wait; Retry-After says when to try again.",
    500: "The server failed.",
    503: "No replica is available; Retry-After says when to try again.",
}
_EVENT: Json = {
    "type": "object",
    "description": "With `stream`: true. One event.",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk as JSON; the last one is [DONE]."}},
}
_STREAM = {"text/event-stream": {"schema": _EVENT}}
NEEDS_KEY: list[dict[str, list[str]]] = [{"ApiKey": []}]
_KEY = {"ApiKey": {"type": "http", "scheme": "bearer", "description": "Made by `evospec keys new`."}}


def answers(model: type[BaseModel], *errors: int, streams: bool = False) -> dict[int | str, Json]:
    """A route's `responses`."""
    found: dict[int | str, Json] = {200: {"model": model, "description": "The answer."}}
    if streams:
        found[200]["content"] = _STREAM
    return found | {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in errors}


def takes(model: type[BaseModel]) -> Json:
    """A route's `openapi_extra`: the JSON body that it reads and checks itself, and the headers."""
    body = {"required": True, "content": {"application/json": {"schema": _reference(model)}}}
    return {"requestBody": body, "parameters": [_TRACE, _REQUEST_ID]}


def describe(app: FastAPI, names: Sequence[str], *bodies: type[GenerationBody], needs_key: bool) -> Json:
    """The document.

    Args:
        names: of models that requests may ask for.
        needs_key: whether the API does; administration does in any case.
        bodies: models that routes take.
    """
    document: Json = get_openapi(
        title="EvoSpec",
        version=evospec.__version__,
        summary="OpenAI's API over speculative decoding that adapts to its traffic.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = _KEY
    if needs_key:
        document["security"] = NEEDS_KEY
    schemas = components.setdefault("schemas", {})
    for model in bodies:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schema["properties"]["model"]["enum"] = list(names)
        schemas[model.__name__] = schema
    for unused in (
        "HTTPValidationError",
        "ValidationError",
    ):  # FastAPI's own shape of errors, which is not ours
        schemas.pop(unused, None)
    return document


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


_TRACE = _header(
    "X-EvoSpec-Trace",
    {"type": "string", "enum": ["on", "off"]},
    "`off`: nothing is learned from this request, or kept of it, as with `trace`: false.",
)
_REQUEST_ID = _header(
    "X-Request-Id",
    {"type": "string"},
    "Comes back in the answer and stands in logs; one is made where there is none that is fit for that.",
)
