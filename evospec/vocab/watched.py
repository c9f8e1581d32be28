"""Which tokens the last rows hold, and which ones left last: what a row more or less would change."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from evospec.vocab.active import ActiveRows
from evospec.vocab.budget import WATCHED, RowBudget


class WatchedRows:
    """Tells a budget how often emitted tokens were among them."""

    __slots__ = ("_budget", "_gone", "_is_gone", "_is_last", "_rows")

    def __init__(self, rows: ActiveRows, budget: RowBudget) -> None:
        self._rows = rows
        self._budget = budget
        self._is_last = np.zeros(rows.vocab_size, dtype=bool)
        self._is_gone = np.zeros(rows.vocab_size, dtype=bool)
        self._gone = np.zeros(0, dtype=np.int64)  # latest last

    def choose(self) -> None:
        """Watches the rows that would leave next."""
        self._is_last[:] = False
        self._is_last[self._rows.lowest(WATCHED)] = True

    def left(self, token_ids: np.ndarray) -> None:
        """These have no row any more, int64 [n]."""
        if len(token_ids):
            self._is_gone[self._gone] = False
            self._gone = np.concatenate((self._gone, token_ids))[-WATCHED:]
            self._is_gone[self._gone] = True

    def emitted(self, token_ids: Iterable[int]) -> None:
        """Counts tokens of a cycle, each once: from now on the text itself holds them."""
        tokens = np.fromiter(set(token_ids), dtype=np.int64)
        active = self._rows.contains(tokens)
        last, gone = tokens[self._is_last[tokens] & active], tokens[self._is_gone[tokens] & ~active]
        self._is_last[last] = False
        self._is_gone[gone] = False
        self._budget.count(len(last), len(gone))
