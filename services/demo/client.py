"""One request to the endpoint, streamed, the way an OpenAI client sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from services.event_stream import RequestFailedError, error_reason, read_events

TIMEOUT_S = 300.0  # on two busy cores the first token of a queued request takes a while


@dataclass(frozen=True, slots=True)
class Usage:
    """The last chunk's counts: OpenAI's, and EvoSpec's extension."""

    tokens: int
    cycles: int
    drafted: int
    accepted: int
    adapter_version: int


class ChatClient:
    """Sends prompts to /v1/chat/completions.

    Args:
        http: with the endpoint's base URL.
        model: its name at the endpoint.
    """

    def __init__(self, http: httpx.AsyncClient, model: str, max_tokens: int) -> None:
        self._http = http
        self._model = model
        self._max_tokens = max_tokens

    async def ask(self, prompt: str, first_token: Callable[[], None]) -> Usage:
        """Reads an answer to its end; calls `first_token` when its first text is there.

        Raises:
            RequestFailedError: whatever kept the answer from being complete.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise RequestFailedError(f"HTTP {response.status_code}: {error_reason(response.text)}")
                return await _read(response.aiter_bytes(), first_token)
        except httpx.HTTPError as error:
            raise RequestFailedError(f"{type(error).__name__}: {error}") from error


async def _read(content: AsyncIterator[bytes], first_token: Callable[[], None]) -> Usage:
    usage: Usage | None = None
    finished = begun = False
    async with aclosing(read_events(content)) as events:
        async for event in events:
            for choice in event["choices"]:
                if choice["delta"].get("content") and not begun:
                    begun = True
                    first_token()
                finished = finished or choice["finish_reason"] is not None
            if event.get("usage") is not None:
                usage = _usage(event["usage"])
    if usage is None or not finished:
        raise RequestFailedError("the stream ended before the answer was complete")
    return usage


def _usage(counts: dict[str, Any]) -> Usage:
    own = counts["evospec"]
    return Usage(
        tokens=counts["completion_tokens"],
        cycles=own["cycles"],
        drafted=own["drafted"],
        accepted=own["accepted"],
        adapter_version=own["adapter_version"],
    )
