"""The HTTP API over a pool of scripted replicas: no Ray, no model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from evospec.config.access import AccessConfig
from services.completion import CompletionService
from services.http_api import create_app
from services.prompt_encoder import PromptEncoder
from services.replica_pool import ReplicaPool
from tests.tiny import tiny_tokenizer

T = TypeVar("T")
OPEN = AccessConfig()
Script = list[GenerationChunk | GenerationFailure | Exception]
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def chunk(text: str, finish: Any = None, **counters: int) -> GenerationChunk:
    settings = {"drafted": 3, "accepted": len(text) - 1, "adapter_version": 2, "vocabulary_epoch": 9}
    tokens = tuple(text.encode())
    return GenerationChunk(text=text, token_ids=tokens, finish_reason=finish, **{**settings, **counters})


def answer() -> Script:
    return [chunk("H", drafted=0, accepted=0), chunk("ello"), chunk(" you", "stop", adapter_version=3)]


class Pool:
    """Plays one script per call; the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts) or [answer()]
        self.requests: list[GenerationRequest] = []
        self.closed = 0
        self.limits_error: Exception | None = None
        self.pause: asyncio.Event | None = None

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk | GenerationFailure]:
        self.requests.append(request)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            for item in script:
                if self.pause is not None:
                    await self.pause.wait()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed += 1

    async def limits(self) -> ModelLimits:
        if self.limits_error is not None:
            raise self.limits_error
        return ModelLimits(max_length=64, vocab_size=260)


async def cluster_state() -> dict[str, Any]:
    return {"replicas": [{"replica": "a", "arms": {3: {"tokens": 1}}}], "aligner": None, "rollout": None}


def api(
    pool: ReplicaPool,
    timeout_s: float = 60.0,
    access: AccessConfig = OPEN,
    name: str = "tiny",
    names: Sequence[str] = (),
) -> FastAPI:
    service = CompletionService(pool, name, timeout_s)
    return create_app(service, PromptEncoder(tiny_tokenizer()), access, cluster_state, names)


def call(
    pool: Pool,
    use: Callable[[httpx.AsyncClient], Awaitable[T]],
    timeout_s: float = 60.0,
    access: AccessConfig = OPEN,
) -> T:
    async def run() -> T:
        app = api(pool, timeout_s, access)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


def post(pool: Pool, path: str, body: Any, timeout_s: float = 60.0) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(pool, lambda client: client.post(path, content=content), timeout_s)


def chat(pool: Pool, **fields: Any) -> httpx.Response:
    return post(pool, "/v1/chat/completions", {**HELLO, **fields})


def events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in body["error"]["message"]
    found: dict[str, Any] = body["error"]
    return found
