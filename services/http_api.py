"""The HTTP endpoints: OpenAI's paths over a completion service."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from services import api_errors
from services.api_errors import ApiError
from services.completion import CompletionService
from services.openai_schema import ChatBody, CompletionBody, GenerationBody, model_list, parse_body
from services.prompt_encoder import PromptEncoder
from services.rendering import ChatFormat, Format, TextFormat, render_stream, render_whole

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # for proxies that buffer


def create_app(service: CompletionService, encoder: PromptEncoder) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="EvoSpec", openapi_url=None)
    started = int(time.time())

    @app.get("/health")
    async def health() -> Response:
        await service.probe()
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        limits = await service.limits()
        return JSONResponse(model_list(service.model, started, limits.max_length))

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        service.check_model(model)
        limits = await service.limits()
        return JSONResponse(model_list(service.model, started, limits.max_length)["data"][0])

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = parse_body(ChatBody, await _read(request))
        service.check_model(body.model)
        prompt_ids = await encoder.chat(body.messages)
        return await _answer(service, body, prompt_ids, "messages", ChatFormat())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = parse_body(CompletionBody, await _read(request))
        service.check_model(body.model)
        prompt = body.prompt
        prompt_ids = await encoder.text(prompt) if isinstance(prompt, str) else tuple(prompt)
        return await _answer(service, body, prompt_ids, "prompt", TextFormat())

    _add_error_handlers(app)
    return app


async def _answer(
    service: CompletionService, body: GenerationBody, prompt_ids: tuple[int, ...], param: str, form: Format
) -> Response:
    completion = await service.start(body, prompt_ids, param)
    if body.stream:
        events = render_stream(completion, body, form)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
    return JSONResponse(await render_whole(completion, body, form))


async def _read(request: Request) -> bytes:
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
    return raw


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        reason = HTTPStatus(error.status_code).phrase
        message = f"{reason}: {request.method} {request.url.path}"
        return _error_response(ApiError(error.status_code, message, headers=error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        logger.error("a request failed", exc_info=error)
        return _error_response(api_errors.server_error("The server failed to answer this request."))


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=dict(error.headers))
