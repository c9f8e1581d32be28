"""What requests are like for their clients: latencies and outcomes, measured in the gateway."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from ray.serve.metrics import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from services.replica_pool import OverloadedError, ReplicaLostError, ReplicaPool

logger = logging.getLogger(__name__)

# vLLM's buckets, seconds and tokens.
_FIRST_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_WHOLE_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

OTHER = "other"
PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/health",
        "/openapi.json",
        "/admin/status",
        "/dashboard",
        "/dashboard/generate",
    }
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of the gateway; without buckets it is a counter."""

    name: str
    description: str
    labels: tuple[str, ...] = ("model_name",)
    buckets: tuple[float, ...] = ()


FIRST = Measure(
    "time_to_first_token_seconds",
    "From when a generation is handed to the replicas to its first token, waiting included.",
    buckets=_FIRST_S,
)
BETWEEN = Measure(
    "inter_token_latency_seconds",
    "Time between two chunks of a generation, per token of the later one.",
    buckets=_BETWEEN_S,
)
WHOLE = Measure(
    "e2e_request_latency_seconds", "From when a generation is handed over to its end.", buckets=_WHOLE_S
)
PROMPT = Measure("request_prompt_tokens", "Prompt tokens of a generation.", buckets=_TOKENS)
GENERATED = Measure("request_generation_tokens", "Tokens that a generation yielded.", buckets=_TOKENS)
OUTCOMES = Measure(
    "evospec_generations",
    "Generations by how they ended: stop, length, abandoned by the client, refused, overloaded or lost.",
    ("model_name", "outcome"),
)
ANSWERS = Measure(
    "evospec_http_responses",
    "HTTP responses by path and status.",
    ("path", "status"),
)
GATEWAY = (FIRST, BETWEEN, WHOLE, PROMPT, GENERATED, OUTCOMES, ANSWERS)


class MeasuredPool:
    """A pool of replicas whose generations are measured and, once they end, logged."""

    def __init__(self, pool: ReplicaPool, model: str) -> None:
        self._pool = pool
        self._tags = {"model_name": model}
        self._first = _histogram(FIRST)
        self._between = _histogram(BETWEEN)
        self._whole = _histogram(WHOLE)
        self._prompt = _histogram(PROMPT)
        self._generated = _histogram(GENERATED)
        self._outcomes = _counter(OUTCOMES)

    async def limits(self) -> ModelLimits:
        return await self._pool.limits()

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk | GenerationFailure]:
        run = _Run(len(request.prompt_ids), time.perf_counter())
        outcome = "abandoned"
        try:
            async with aclosing(self._pool.generate(request)) as items:
                async for item in items:
                    if isinstance(item, GenerationFailure):
                        outcome = "refused" if item.kind == "invalid" else "lost"
                    else:
                        self._take(run, item)
                        outcome = item.finish_reason or outcome
                    yield item
        except OverloadedError:
            outcome = "overloaded"
            raise
        except ReplicaLostError:
            outcome = "lost"
            raise
        finally:
            self._end(request, run, outcome)

    def _take(self, run: _Run, chunk: GenerationChunk) -> None:
        now = time.perf_counter()
        if chunk.token_ids and run.first_s is None:
            run.first_s = now - run.began
            self._first.observe(run.first_s, self._tags)
        elif chunk.token_ids:
            self._between.observe((now - run.latest) / len(chunk.token_ids), self._tags)
        run.latest = now
        run.tokens += len(chunk.token_ids)
        run.drafted += chunk.drafted
        run.accepted += chunk.accepted
        run.version = chunk.adapter_version

    def _end(self, request: GenerationRequest, run: _Run, outcome: str) -> None:
        seconds = time.perf_counter() - run.began
        self._outcomes.inc(1, {**self._tags, "outcome": outcome})
        if outcome in ("stop", "length"):
            self._whole.observe(seconds, self._tags)
            self._prompt.observe(run.prompt, self._tags)
            self._generated.observe(run.tokens, self._tags)
        logger.info(
            "generation ended",
            extra={
                "generation": request.id,
                "outcome": outcome,
                "prompt_tokens": run.prompt,
                "tokens": run.tokens,
                "drafted": run.drafted,
                "accepted": run.accepted,
                "adapter_version": run.version,
                "first_token_ms": None if run.first_s is None else round(1000 * run.first_s, 1),
                "duration_ms": round(1000 * seconds, 1),
            },
        )


@dataclass(slots=True)
class _Run:
    """One generation so far; times in seconds of the performance counter."""

    prompt: int
    began: float
    latest: float = 0.0
    first_s: float | None = None
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    version: int = 0


class CountedResponses:
    """ASGI middleware: counts responses. Paths that are none of the API's count as one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answers = _counter(ANSWERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what is raised is answered so, outside of this

        async def pass_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        finally:
            path = scope["path"] if scope["path"] in PATHS else OTHER
            self._answers.inc(1, {"path": path, "status": str(status)})


def _histogram(measure: Measure) -> Histogram:
    return Histogram(
        measure.name, measure.description, list(measure.buckets), cast("tuple[str]", measure.labels)
    )


def _counter(measure: Measure) -> Counter:
    return Counter(measure.name, measure.description, cast("tuple[str]", measure.labels))
