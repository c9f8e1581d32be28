"""Does the drafter still fit the traffic? Two moving averages of what traces say was accepted."""

from __future__ import annotations

from dataclasses import dataclass

from evospec.align.trace import Trace


@dataclass(slots=True)
class MovingShare:
    """Hits per attempt over the latest traces: one that is `half_life` traces old counts half."""

    half_life: int
    hits: float = 0.0
    attempts: float = 0.0

    def add(self, hits: int, attempts: int) -> None:
        keep = 0.5 ** (1 / self.half_life)
        self.hits = keep * self.hits + hits
        self.attempts = keep * self.attempts + attempts

    @property
    def share(self) -> float:
        """0 before any attempt."""
        return self.hits / self.attempts if self.attempts else 0.0


class DriftDetector:
    """Compares how often first draft tokens are accepted lately with how often they were before.

    The first token of a draft alone: its acceptance does not depend on how long drafts are. Traffic
    has drifted while the short average is more than `threshold` of the long one below it.
    """

    def __init__(self, short: int, long: int, threshold: float) -> None:
        """`short` and `long` are half-lives in traces."""
        self._short = MovingShare(short)
        self._long = MovingShare(long)
        self._threshold = threshold
        self._traces = 0

    def observe(self, trace: Trace) -> None:
        first = trace.generated & (trace.draft_position == 0)
        attempts = int(first.sum())
        if attempts:
            hits = int((first & trace.accepted).sum())
            self._traces += 1
            self._short.add(hits, attempts)
            self._long.add(hits, attempts)

    @property
    def short(self) -> float:
        return self._short.share

    @property
    def long(self) -> float:
        return self._long.share

    @property
    def drifted(self) -> bool:
        """Never before twice the short average's half-life: both averages hold the same traces then."""
        known = self._traces >= 2 * self._short.half_life
        return known and self.short < (1 - self._threshold) * self.long
