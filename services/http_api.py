"""The HTTP endpoints: OpenAI's paths over a completion service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from evospec.config.access import AccessConfig
from services import api_errors
from services.access import Authentication, Caller
from services.api_errors import ApiError
from services.completion import CompletionService, Origin
from services.openai_answers import ChatCompletion, ClusterState, Health, ModelCard, ModelList, TextCompletion
from services.openai_schema import ChatBody, CompletionBody, GenerationBody, Model, model_list, parse_body
from services.openapi import NEEDS_KEY, answers, describe, takes
from services.prompt_encoder import PromptEncoder
from services.rendering import ChatFormat, Format, TextFormat, render_stream, render_whole
from services.request_ids import RequestIds

MAX_BODY_BYTES = 16 << 20
TRACE_HEADER = "x-evospec-trace"
LARGE_BODY = 64 << 10  # bytes of a body that is read beside the event loop
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # for proxies that buffer
_GENERATION_ERRORS = (400, 401, 404, 408, 413, 429, 500, 503)


def create_app(
    service: CompletionService,
    encoder: PromptEncoder,
    access: AccessConfig,
    cluster_state: Callable[[], Awaitable[dict[str, Any]]],
    names: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application.

    Args:
        cluster_state: what administrators are told, as `ClusterState` describes it.
        names: of all models at the address of this one; none: it is the only one.
    """
    app = FastAPI(title="EvoSpec", openapi_url=None)
    app.add_middleware(Authentication, access=access)
    app.add_middleware(RequestIds)
    _add_models(app, service)
    _add_generation(app, service, encoder)
    _add_administration(app, cluster_state)
    _add_error_handlers(app)
    document = describe(app, names or (service.model,), ChatBody, CompletionBody, needs_key=bool(access.keys))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(document)

    return app


def _add_models(app: FastAPI, service: CompletionService) -> None:
    started = int(time.time())

    @app.get("/health", responses=answers(Health, 429, 503), openapi_extra={"security": []})
    async def health() -> Response:
        await service.probe()
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models", responses=answers(ModelList, 401, 429, 503))
    async def models() -> Response:
        limits = await service.limits()
        return JSONResponse(model_list(service.model, started, limits.max_length))

    @app.get("/v1/models/{model:path}", responses=answers(ModelCard, 401, 404, 429, 503))
    async def model(model: str) -> Response:
        service.check_model(model)
        limits = await service.limits()
        return JSONResponse(model_list(service.model, started, limits.max_length)["data"][0])


def _add_generation(app: FastAPI, service: CompletionService, encoder: PromptEncoder) -> None:
    @app.post(
        "/v1/chat/completions",
        responses=answers(ChatCompletion, *_GENERATION_ERRORS, streams=True),
        openapi_extra=takes(ChatBody),
    )
    async def chat(request: Request) -> Response:
        body = await _parse(ChatBody, request)
        service.check_model(body.model)
        prompt_ids = await encoder.chat(body.messages)
        return await _answer(service, body, prompt_ids, "messages", origin_of(request), ChatFormat())

    @app.post(
        "/v1/completions",
        responses=answers(TextCompletion, *_GENERATION_ERRORS, streams=True),
        openapi_extra=takes(CompletionBody),
    )
    async def completions(request: Request) -> Response:
        body = await _parse(CompletionBody, request)
        service.check_model(body.model)
        prompt = body.prompt
        prompt_ids = await encoder.text(prompt) if isinstance(prompt, str) else tuple(prompt)
        return await _answer(service, body, prompt_ids, "prompt", origin_of(request), TextFormat())


def _add_administration(app: FastAPI, cluster_state: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    @app.get("/admin/status", responses=answers(ClusterState, 401), openapi_extra={"security": NEEDS_KEY})
    async def status() -> Response:
        return JSONResponse(jsonable_encoder(await cluster_state()))


async def _answer(
    service: CompletionService,
    body: GenerationBody,
    prompt_ids: Sequence[int],
    param: str,
    origin: Origin,
    form: Format,
) -> Response:
    completion = await service.start(body, tuple(prompt_ids), param, origin)
    if body.stream:
        events = render_stream(completion, body, form)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
    return JSONResponse(await render_whole(completion, body, form))


def origin_of(request: Request) -> Origin:
    """Raises ApiError (400) when the header that keeps a request out of traces says something else."""
    caller: Caller = request.state.caller
    trace = request.headers.get(TRACE_HEADER, "on").lower()
    if trace not in {"on", "off"}:
        raise api_errors.invalid(
            f"The header {TRACE_HEADER} must be on or off.", TRACE_HEADER, "invalid_value"
        )
    return Origin(caller.tenant, trace == "on")


async def _parse(model: type[Model], request: Request) -> Model:
    raw = await read_body(request, MAX_BODY_BYTES)
    if len(raw) < LARGE_BODY:
        return parse_body(model, raw)
    return await asyncio.to_thread(parse_body, model, raw)


async def read_body(request: Request, most: int) -> bytes:
    """Raises ApiError (413) as soon as there are more bytes of it."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > most:
            raise ApiError(413, f"The body is larger than {most} bytes.", code="request_too_large")
    return bytes(raw)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        reason = HTTPStatus(error.status_code).phrase
        message = f"{reason}: {request.method} {request.url.path}"
        return _error_response(ApiError(error.status_code, message, headers=error.headers or {}))


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers))
