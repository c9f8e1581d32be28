"""Many requests at once, each sent once, and what they leave behind in the server's processes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.processes import actor_processes
from tests.chaos.kit.streaming_client import TIMEOUT

_MEBIBYTE_KB = 1024


@dataclass(slots=True)
class Flood:
    """What became of them, by status; of the answers, how many tokens were compared, and how many wrong."""

    statuses: Counter[str] = field(default_factory=Counter)
    retry_after: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    wrong: int = 0

    def add(self, response: httpx.Response, prompt: KnownPrompt) -> None:
        self.statuses[str(response.status_code)] += 1
        if response.status_code == httpx.codes.OK:
            tokens: list[int] = response.json()["choices"][0]["token_ids"]
            self.compared += len(tokens)
            self.wrong += sum(a != b for a, b in zip(tokens, prompt.expected, strict=True))
        else:
            self.retry_after[response.headers.get("retry-after", "missing")] += 1


def flood(url: str, model: str, prompts: Sequence[KnownPrompt], *, requests: int, at_once: int) -> Flood:
    """Sends them over so many connections, without a pause."""

    async def send_all() -> Flood:
        found, waiting = Flood(), iter(range(requests))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(base_url=url, limits=limits, trust_env=False, timeout=TIMEOUT) as http:

            async def client() -> None:
                for number in waiting:
                    prompt = prompts[number % len(prompts)]
                    found.add(await http.post("/v1/completions", json=_body(model, prompt)), prompt)

            await asyncio.gather(*(client() for _ in range(at_once)))
        return found

    return asyncio.run(send_all())


def seconds_for_one(url: str, model: str, prompt: KnownPrompt) -> float:
    began = time.monotonic()
    httpx.post(
        f"{url}/v1/completions", json=_body(model, prompt), timeout=TIMEOUT, trust_env=False
    ).raise_for_status()
    return time.monotonic() - began


def memory_mb() -> dict[str, float]:
    """Memory of their own of the processes behind all named actors, the HTTP proxy among them, in MiB."""
    return {process.name: _anonymous_mb(process.pid) for process in actor_processes()}


def _anonymous_mb(pid: int) -> float:
    # Not all that is resident: the object store, which they share, would count in each.
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kilobytes) / _MEBIBYTE_KB


def _body(model: str, prompt: KnownPrompt) -> dict[str, object]:
    return {
        "model": model,
        "prompt": prompt.text,
        "max_tokens": len(prompt.expected),
        "temperature": 0,
        "return_token_ids": True,
        "ignore_eos": True,
    }
