"""What a load run sends, how, and what it may not ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import JsonValue

from evospec.errors import EvoSpecError

KEY_VARIABLES = ("EVOSPEC_API_KEY", "OPENAI_API_KEY")


class LoadError(EvoSpecError):
    """A load run that can't be made."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What every request asks for, beside its prompt.

    Attributes:
        chat: to /v1/chat/completions, else to /v1/completions.
        ignore_eos: vLLM's extension; answers are all `max_tokens` long.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    stream: bool = True
    chat: bool = True
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """One run.

    Attributes:
        url: of the endpoint, with or without /v1.
        model: its name there; None takes the first that the endpoint lists.
        concurrency: of a closed loop: as many requests are always under way.
        rate: of an open loop: requests per second, arriving at random however many are under way.
        every: requests of a domain before the next one; None mixes all domains.
        warmup: requests that are sent before and count nowhere, as many at a time as `concurrency`.
        seed: of arrivals and of the mix.
    """

    url: str
    prompts: tuple[Path, ...]
    split: str | None = None
    limit: int | None = None
    model: str | None = None
    asked: Asked = Asked()
    requests: int = 100
    concurrency: int = 4
    rate: float | None = None
    every: int | None = None
    warmup: int = 0
    timeout_s: float = 600.0
    seed: int = 0

    def described(self, model: str) -> dict[str, JsonValue]:
        """For the result file: names no host and no folder."""
        return {
            "model": model,
            "prompts": [path.name for path in self.prompts],
            "split": self.split,
            "limit": self.limit,
            "loop": "closed" if self.rate is None else "open",
            "concurrency": self.concurrency if self.rate is None else None,
            "rate": self.rate,
            "requests": self.requests,
            "every": self.every,
            "warmup": self.warmup,
            "endpoint": "chat completions" if self.asked.chat else "completions",
            "stream": self.asked.stream,
            "max_tokens": self.asked.max_tokens,
            "temperature": self.asked.temperature,
            "ignore_eos": self.asked.ignore_eos,
            "timeout_s": self.timeout_s,
            "seed": self.seed,
        }


def base_url(url: str) -> str:
    """The endpoint's root, which /v1/... is appended to. Raises LoadError unless it is an HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise LoadError(f"{url!r} is not the URL of an endpoint: write it like http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise LoadError(f"{url!r}: an endpoint's URL has neither ? nor #")
    return url.rstrip("/").removesuffix("/v1")


def api_key(given: str | None) -> str | None:
    """The key on the command line, else the first in the environment."""
    candidates = (given, *(os.environ.get(name) for name in KEY_VARIABLES))
    return next((key for key in candidates if key), None)
