"""When a request's tokens came."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timed:
    """Times are those of `time.perf_counter`."""

    started: float
    first: float | None = None
    finished: float = 0.0
    tokens: int = 0

    def add(self, tokens: int, now: float) -> None:
        if self.first is None and tokens:
            self.first = now
        self.finished = now
        self.tokens += tokens

    @property
    def ttft_ms(self) -> float:
        return ((self.finished if self.first is None else self.first) - self.started) * 1e3
