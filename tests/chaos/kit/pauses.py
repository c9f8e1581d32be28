"""Pauses between the outputs of a request on one engine, and which of them a swap fell into."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.emission import Emission
from actors.engine_loop import EngineLoop
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from tests.chaos.kit.known_prompts import KnownPrompt

JOIN_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Pauses:
    """Seconds between two outputs of one request; `swapped` are those that a swap fell into."""

    plain: list[float] = field(default_factory=list)
    swapped: list[float] = field(default_factory=list)
    requests: int = 0
    tokens: int = 0
    wrong: int = 0


class _Reading:
    """One request's outputs, taken down on the engine's thread."""

    def __init__(self, pauses: Pauses) -> None:
        self.tokens: list[int] = []
        self.over = threading.Event()
        self.error: EvoSpecError | None = None
        self._pauses = pauses
        self._last: float | None = None
        self._version = 0

    def deliver(self, item: Emission | EvoSpecError) -> None:
        now = time.perf_counter()
        if isinstance(item, EvoSpecError):
            self.error = item
            self.over.set()
            return
        if self._last is not None:
            swapped = item.adapter_version != self._version
            (self._pauses.swapped if swapped else self._pauses.plain).append(now - self._last)
        self._last, self._version = now, item.adapter_version
        self.tokens += item.output.tokens
        if item.output.finish_reason is not None:
            self.over.set()


@contextmanager
def pauses_of(loop: EngineLoop, prompt: KnownPrompt) -> Iterator[Pauses]:
    """Decodes `prompt` again and again, alone, while the block runs."""
    pauses, stopping = Pauses(), threading.Event()
    errors: list[EvoSpecError] = []

    def decode() -> None:
        while not stopping.is_set():
            reading = _Reading(pauses)
            sampling = SamplingParams(max_tokens=len(prompt.expected), ignore_eos=True)
            loop.admit(Request(f"r{pauses.requests}", prompt.prompt_ids, sampling), reading.deliver)
            reading.over.wait()
            if reading.error is not None:
                errors.append(reading.error)
                return
            pauses.requests += 1
            pauses.tokens += len(reading.tokens)
            pauses.wrong += sum(a != b for a, b in zip(reading.tokens, prompt.expected, strict=True))

    thread = threading.Thread(target=decode, name="decode", daemon=True)
    thread.start()
    try:
        yield pauses
    finally:
        stopping.set()
        thread.join(JOIN_TIMEOUT_S)
    assert not errors, errors
    assert not thread.is_alive()
