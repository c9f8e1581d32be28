"""The page's endpoints below /dashboard: its files, the live values, an answer with its sources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from evospec.engine.text import Tokenizer
from services import api_errors
from services.api_errors import ApiError
from services.completion import RETRY_AFTER_S, Completion, CompletionService, Origin
from services.http_api import origin_of, read_body
from services.live import sse
from services.live.assets import SECURITY_HEADERS, Asset, read_assets
from services.live.feed import LiveFeed
from services.live.provenance import render_sources
from services.openai_schema import Body, ChatBody, CompletionBody, parse_body
from services.prompt_encoder import PromptEncoder

MAX_VIEWERS = 64  # each holds a connection and a place among the gateway's requests
MAX_BODY_BYTES = 64 << 10


class PromptBody(Body):
    """POST /dashboard/generate."""

    prompt: str = Field(min_length=1)
    max_tokens: int = Field(200, ge=1, le=2048)
    temperature: float = Field(0.0, ge=0.0, le=2.0)


def dashboard_routes(
    feed: LiveFeed,
    service: CompletionService,
    encoder: PromptEncoder,
    tokenizer: Tokenizer,
    *,
    chats: bool,
) -> APIRouter:
    """Page and files are for everyone, as they hold nothing; for what they fetch see `services.access`.

    Args:
        tokenizer: decodes on the event loop, one token at a time; nobody may encode with it.
        chats: whether prompts go through the model's chat template.
    """

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        feed.start()
        yield
        await feed.stop()

    router = APIRouter(prefix="/dashboard", include_in_schema=False, lifespan=lifespan)
    assets = read_assets()

    @router.get("")
    async def page(request: Request) -> Response:
        return _file(assets["index.html"], request)

    @router.get("/assets/{name}")
    async def asset(name: str, request: Request) -> Response:
        if name not in assets:
            raise ApiError(404, f"The dashboard has no file '{name}'.")
        return _file(assets[name], request)

    @router.get("/events")
    async def events(request: Request) -> Response:
        if feed.viewers >= MAX_VIEWERS:
            raise api_errors.overloaded(RETRY_AFTER_S)
        return StreamingResponse(feed.messages(), media_type="text/event-stream", headers=sse.HEADERS)

    @router.post("/generate")
    async def generate(request: Request) -> Response:
        asked = parse_body(PromptBody, await read_body(request, MAX_BODY_BYTES))
        completion = await _started(service, encoder, asked, origin_of(request), chats=chats)
        answer = render_sources(completion, tokenizer)
        return StreamingResponse(answer, media_type="text/event-stream", headers=sse.HEADERS)

    return router


async def _started(
    service: CompletionService, encoder: PromptEncoder, asked: PromptBody, origin: Origin, *, chats: bool
) -> Completion:
    """The same way as requests of the API. Raises ApiError."""
    settings: dict[str, Any] = {
        "model": service.model,
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
        "stream": True,
    }
    if chats:
        chat = ChatBody.model_validate({**settings, "messages": [{"role": "user", "content": asked.prompt}]})
        return await service.start(chat, await encoder.chat(chat.messages), "prompt", origin, each_cycle=True)
    plain = CompletionBody.model_validate({**settings, "prompt": asked.prompt})
    return await service.start(plain, await encoder.text(asked.prompt), "prompt", origin, each_cycle=True)


def _file(asset: Asset, request: Request) -> Response:
    headers = {**SECURITY_HEADERS, "ETag": asset.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
