"""How many rows are worth scoring: those that save more time than they take."""

from __future__ import annotations

from dataclasses import dataclass

_KEPT = 0.9  # of what was observed, at each review
WATCHED = 256  # rows that are given up, or added, at a time
# A token that is not active ends a draft early: of a cycle that would have emitted t tokens, t - 1 of them
# drafted, it costs (t - 1)² / 2t² in the mean, which is 0.22 at t = 3.
_MISS = 0.22


@dataclass(slots=True)
class _Observed:
    """Sums over cycles, older ones counting less: tokens that only the last rows held, and that only the next
    rows would have, draft steps, running requests, and seconds."""

    hits: float = 0.0
    misses: float = 0.0
    steps: float = 0.0
    requests: float = 0.0
    seconds: float = 0.0

    def fade(self) -> None:
        self.hits *= _KEPT
        self.misses *= _KEPT
        self.steps *= _KEPT
        self.requests *= _KEPT
        self.seconds *= _KEPT


class RowBudget:
    """Rows to keep active, between `least` and `most`, which it begins with.

    A row takes time at every draft step, and saves a part of a cycle whenever a token is emitted that
    nothing else holds. What the rows that would leave next save is counted, and what those that left last
    would have saved: when the first is less than they take, rows are given up; when the second is more,
    rows are added. The values are ours.

    Args:
        row_seconds: what a row takes at one draft step; 0 always keeps `most`.

    Attributes:
        rows: the number at present.
    """

    __slots__ = ("_least", "_most", "_observed", "_row_seconds", "rows")

    def __init__(self, least: int, most: int, row_seconds: float) -> None:
        self._least = min(least, most)
        self._most = most
        self._row_seconds = row_seconds
        self._observed = _Observed()
        self.rows = most

    def count(self, hits: int, misses: int) -> None:
        """Takes in emitted tokens: those that only the rows held that would leave next, `WATCHED` of them,
        and those that none held, but so many that left last did."""
        self._observed.hits += hits
        self._observed.misses += misses

    def timed(self, seconds: float, steps: int, requests: int) -> None:
        """Takes in a cycle of so many draft steps."""
        self._observed.seconds += seconds
        self._observed.steps += steps
        self._observed.requests += requests

    def review(self) -> int:
        """Changes the number by what was observed; call now and then.

        Returns:
            `rows`.
        """
        observed = self._observed
        if observed.steps:
            worth = _MISS * observed.seconds / observed.requests  # of a token
            taken = WATCHED * self._row_seconds * observed.steps
            if observed.misses * worth > taken:
                self.rows = min(self._most, self.rows + WATCHED)
            elif observed.hits * worth < taken:
                self.rows = max(self._least, self.rows - WATCHED)
        observed.fade()
        return self.rows
