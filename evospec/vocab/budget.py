"""How many rows are worth scoring: as few as reach the coverage that is wanted."""

from __future__ import annotations

_MEMORY = 0.5 ** (1 / 1024)  # what is left of an observation after one more token
_MORE = 512  # rows added when coverage is short
_FEWER = 128  # rows taken away when there is more than enough of it
_SLACK = 0.9  # rows are taken away below this share of the misses that are allowed


class RowBudget:
    """Rows to keep active, between `least` and `most`, which it begins with.

    Every row costs the drafter time at every step, and the last ones are seldom drafted: beyond the
    wanted coverage they are not worth it. Between the misses that are allowed and `_SLACK` of them
    nothing changes, so that the number does not swing. The values are ours.

    Args:
        coverage: share of the target's tokens that shall be active; 1 always takes `most`.

    Attributes:
        rows: the number at present.
    """

    __slots__ = ("_allowed", "_least", "_misses", "_most", "_tokens", "rows")

    def __init__(self, least: int, most: int, coverage: float) -> None:
        self._least = min(least, most)
        self._most = most
        self._allowed = 1.0 - coverage
        self._misses = 0.0
        self._tokens = 0.0
        self.rows = most

    def observe(self, tokens: int, missed: int) -> None:
        """Takes in emitted tokens, and how many of them were not active."""
        kept = _MEMORY**tokens
        self._tokens = self._tokens * kept + tokens
        self._misses = self._misses * kept + missed

    def review(self) -> int:
        """Changes the number by what was observed; call now and then.

        Returns:
            `rows`.
        """
        if self._tokens and self._allowed > 0:
            share = self._misses / self._tokens
            if share > self._allowed:
                self.rows = min(self._most, self.rows + _MORE)
            elif share < _SLACK * self._allowed:
                self.rows = max(self._least, self.rows - _FEWER)
        return self.rows
