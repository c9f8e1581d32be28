"""One request to an OpenAI-compatible endpoint, and what its client sees."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from evospec.bench.prompts import Prompt
from services.event_stream import RequestFailedError, error_reason, read_events
from services.load.settings import Asked

UNANSWERED = 0  # in place of a status: no answer came


@dataclass(slots=True)
class Answer:
    """What came back; times are those of `time.perf_counter`.

    Attributes:
        status: HTTP status, 0 without an answer.
        error: why the answer is none, or not complete.
        pieces: when each piece of text came. Of an answer that is not streamed: its end.
        tokens: by the endpoint's `usage`; pieces of text where it gives none.
        cycles: of EvoSpec's extension of `usage`; so are `drafted` and `accepted`. 0 elsewhere.
    """

    started: float
    finished: float = 0.0
    status: int = UNANSWERED
    error: str | None = None
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    counted: bool = False  # whether the endpoint counted tokens

    @property
    def failed(self) -> bool:
        return self.error is not None

    def take_usage(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = usage.get("prompt_tokens") or 0
        self.tokens = usage.get("completion_tokens") or 0
        self.counted = True
        own = usage.get("evospec") or {}
        self.cycles = own.get("cycles", 0)
        self.drafted = own.get("drafted", 0)
        self.accepted = own.get("accepted", 0)


class LoadClient:
    """Sends prompts; whatever goes wrong is in the answer.

    Args:
        http: with the endpoint's base URL, headers and timeout.
        model: its name at the endpoint.
    """

    def __init__(self, http: httpx.AsyncClient, model: str, asked: Asked) -> None:
        self._http = http
        self._asked = asked
        self._path = "/v1/chat/completions" if asked.chat else "/v1/completions"
        self._fixed: dict[str, Any] = {
            "model": model,
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
        }
        if asked.ignore_eos:
            self._fixed["ignore_eos"] = True
        if asked.stream:
            self._fixed |= {"stream": True, "stream_options": {"include_usage": True}}

    async def send(self, prompt: Prompt) -> Answer:
        answer = Answer(started=time.perf_counter())
        try:
            async with self._http.stream("POST", self._path, json=self._body(prompt)) as response:
                answer.status = response.status_code
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    answer.error = error_reason(response.text) or response.reason_phrase
                elif self._asked.stream:
                    await _read_stream(response.aiter_bytes(), answer)
                else:
                    await response.aread()
                    _read_whole(response, answer)
        except RequestFailedError as error:
            answer.error = str(error)
        except httpx.HTTPError as error:
            answer.error = type(error).__name__
        answer.finished = time.perf_counter()
        if not answer.counted:
            answer.tokens = len(answer.pieces)
        return answer

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        if self._asked.chat:
            return {**self._fixed, "messages": [{"role": "user", "content": prompt.text}]}
        return {**self._fixed, "prompt": prompt.text}


async def _read_stream(content: AsyncIterator[bytes], answer: Answer) -> None:
    """Raises RequestFailedError unless the stream comes to its end."""
    finished = False
    async with aclosing(read_events(content)) as events:
        async for event in events:
            came = time.perf_counter()
            for choice in event.get("choices") or ():
                text = (choice.get("delta") or {}).get("content") or choice.get("text")
                if text:
                    answer.pieces.append(came)
                finished = finished or choice.get("finish_reason") is not None
            if event.get("usage"):
                answer.take_usage(event["usage"])
    if not finished:
        raise RequestFailedError("the stream ended before the answer was complete")


def _read_whole(response: httpx.Response, answer: Answer) -> None:
    """Raises RequestFailedError when the answer has no choice."""
    try:
        body = response.json()
        complete = bool(body["choices"])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise RequestFailedError("the answer is not a completion")
    answer.pieces.append(time.perf_counter())
    if body.get("usage"):
        answer.take_usage(body["usage"])
