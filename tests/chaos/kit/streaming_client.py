"""One client of the endpoint: streams, and asks again as long as it was shown nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.patience import PATIENCE_S

# What the openai package sends again by itself.
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0
TIMEOUT = httpx.Timeout(90.0, pool=None)
_EVENT, _DONE = "data: ", "[DONE]"

Ending = Literal["complete", "broken", "lost"]


@dataclass(slots=True)
class Answer:
    """What came of one request.

    Attributes:
        ending: `broken`: it failed after its first token; `lost`: it failed, and nothing was shown.
        retries: attempts that were made again, by what ended them.
        told: whether an answer that broke off said so, rather than just ending.
        gaps_s: seconds between two pieces of the answer.
        versions: adapter version that the usage extension names.
    """

    tokens: list[int] = field(default_factory=list)
    ending: Ending = "lost"
    reason: str = ""
    retries: Counter[str] = field(default_factory=Counter)
    told: bool = True
    gaps_s: list[float] = field(default_factory=list)
    version: int | None = None

    def wrong_tokens(self, expected: Sequence[int]) -> int:
        """Tokens that differ from `expected`; of a complete answer, those that are missing too."""
        wrong = sum(mine != right for mine, right in zip(self.tokens, expected, strict=False))
        wrong += max(len(self.tokens) - len(expected), 0)
        if self.ending == "complete":
            wrong += max(len(expected) - len(self.tokens), 0)
        return wrong


class _TryAgainError(Exception):
    """An attempt failed before its first token, in a way that a client tries again."""

    def __init__(self, cause: str, pause_s: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.pause_s = pause_s


class StreamingClient:
    """Asks for the greedy continuation of known prompts at /v1/completions."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self._model = model

    async def ask(self, prompt: KnownPrompt) -> Answer:
        """Never raises what the endpoint or the network did: it is in the answer."""
        answer = Answer()
        give_up = time.monotonic() + PATIENCE_S
        pause = FIRST_PAUSE_S
        while True:
            try:
                await self._attempt(prompt, answer)
            except _TryAgainError as again:
                answer.reason = again.cause
                if time.monotonic() > give_up:
                    return answer
                answer.retries[again.cause] += 1
                if again.pause_s is not None:
                    await asyncio.sleep(again.pause_s)
                    continue
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                return answer

    async def _attempt(self, prompt: KnownPrompt, answer: Answer) -> None:
        body = {
            "model": self._model,
            "prompt": prompt.text,
            "max_tokens": len(prompt.expected),
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "ignore_eos": True,
        }
        try:
            async with self._http.stream("POST", "/v1/completions", json=body, timeout=TIMEOUT) as response:
                if response.status_code != httpx.codes.OK:
                    _refused(response, answer)
                    return
                await _read(response, answer)
        except httpx.TransportError as error:
            _failed(answer, type(error).__name__, told=False)


def _refused(response: httpx.Response, answer: Answer) -> None:
    """Raises _TryAgainError, or leaves the answer lost where asking again is no use."""
    cause = str(response.status_code)
    if response.status_code not in RETRIED:
        answer.reason = cause
        return
    after = response.headers.get("retry-after")
    if after is None:
        raise _TryAgainError(f"{cause} without Retry-After")
    raise _TryAgainError(cause, float(after))


def _failed(answer: Answer, cause: str, *, told: bool) -> None:
    """Raises _TryAgainError unless the client was shown something already."""
    if not answer.tokens:
        raise _TryAgainError(cause)
    answer.ending, answer.reason, answer.told = "broken", cause, told


async def _read(response: httpx.Response, answer: Answer) -> None:
    finished, last = False, None
    async for line in response.aiter_lines():
        if not line.startswith(_EVENT):
            continue
        content = line.removeprefix(_EVENT)
        if content == _DONE:
            break
        event: dict[str, Any] = json.loads(content)
        if "error" in event:
            _failed(answer, str(event["error"]["message"]), told=True)
            return
        for choice in event["choices"]:
            now = time.perf_counter()
            if last is not None:
                answer.gaps_s.append(now - last)
            last = now
            answer.tokens += choice["token_ids"]
            finished = finished or choice["finish_reason"] is not None
        if event.get("usage") is not None:
            answer.version = event["usage"]["evospec"]["adapter_version"]
    if finished:
        answer.ending, answer.reason = "complete", ""
    else:
        _failed(answer, "the stream ended before the answer did", told=False)
