"""The context source: the latest tokens of each request, pinned while they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from evospec.vocab.active import ActiveRows
from evospec.vocab.proposals import NOTHING, Proposals

_SCORE = 1.0  # of every token


class _Window:
    """The latest distinct tokens of one request, oldest first: the ids it holds pinned."""

    __slots__ = ("limit", "pinned")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pinned: dict[int, None] = {}

    def use(self, token_ids: Sequence[int]) -> list[int]:
        """Marks tokens as the latest, oldest first, and drops those beyond the limit.

        Returns:
            What is left of them: distinct, latest first.
        """
        latest = list(islice(dict.fromkeys(reversed(token_ids)), self.limit))
        for token in reversed(latest):
            self.pinned.pop(token, None)
            self.pinned[token] = None
        return latest

    def overflow(self) -> list[int]:
        """Removes and returns the oldest ids beyond the limit."""
        excess = list(islice(self.pinned, max(0, len(self.pinned) - self.limit)))
        for token in excess:
            del self.pinned[token]
        return excess


class ContextSource:
    """Tokens of prompts and answers.

    `propose` unpins what left the windows; `pin`, called when the proposals are in, pins what came.

    Args:
        limit: distinct tokens held per request, the latest.
    """

    def __init__(self, rows: ActiveRows, limit: int) -> None:
        self._rows = rows
        self._limit = limit
        self._windows: dict[str, _Window] = {}
        self._used: dict[str, list[int]] = {}
        self._fresh: list[tuple[_Window, int]] = []

    def admit(self, request_id: str, prompt_ids: Sequence[int]) -> None:
        self._windows[request_id] = _Window(self._limit)
        self.emitted(request_id, prompt_ids)

    def emitted(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._used.setdefault(request_id, []).extend(token_ids)

    def finish(self, request_id: str) -> None:
        window = self._windows.pop(request_id, None)
        self._used.pop(request_id, None)
        if window is not None and window.pinned:
            self._rows.unpin(np.fromiter(window.pinned, dtype=np.int64))

    def propose(self) -> Proposals:
        if not self._used:
            return NOTHING
        proposed: dict[int, None] = {}
        left: list[int] = []
        for request_id, tokens in self._used.items():
            window = self._windows[request_id]
            self._fresh += [(window, token) for token in dict.fromkeys(tokens) if token not in window.pinned]
            proposed.update(dict.fromkeys(window.use(tokens)))
            left += window.overflow()
        self._used.clear()
        if left:
            # Unpin first: a full buffer makes room from what just left the windows.
            self._rows.unpin(np.array(left, dtype=np.int64))
        return Proposals.of(proposed, _SCORE)

    def pin(self) -> None:
        """Pins what windows took in; a token that found no room leaves them again."""
        fresh = [(window, token) for window, token in self._fresh if token in window.pinned]
        self._fresh.clear()
        if not fresh:
            return
        ids = np.array([token for _, token in fresh], dtype=np.int64)
        active = self._rows.contains(ids)
        self._rows.pin(ids[active])
        for index in np.flatnonzero(~active).tolist():
            window, token = fresh[index]
            del window.pinned[token]
