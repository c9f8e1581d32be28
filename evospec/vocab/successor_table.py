"""Successor counts as arrays: what an index holds and gives away, and what is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ABSENT = -1  # no token


@dataclass(frozen=True, slots=True, eq=False)
class Successors:
    """Token ids [n], not always distinct, and how often each followed its head, float32 [n]: a share of the
    head's occurrences, above 1 where it came several times within the window."""

    token_ids: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class SuccessorTable:
    """Decayed counts by head.

    Attributes:
        heads: token ids, distinct, int32 [heads]; they rise in a table that an index gave away.
        totals: how often each was seen, float32 [heads].
        successors: token ids, distinct in a row, int32 [heads, successors]; -1 where there is none.
        counts: how often each came soon after the head, float32 [heads, successors]; 0 where there is none.
    """

    heads: np.ndarray
    totals: np.ndarray
    successors: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.heads)

    @classmethod
    def of_size(cls, heads: int, successors: int) -> SuccessorTable:
        return cls(
            np.full(heads, ABSENT, dtype=np.int32),
            np.zeros(heads, dtype=np.float32),
            np.full((heads, successors), ABSENT, dtype=np.int32),
            np.zeros((heads, successors), dtype=np.float32),
        )

    def first(self, heads: int) -> SuccessorTable:
        """The first rows, as views."""
        return SuccessorTable(
            self.heads[:heads], self.totals[:heads], self.successors[:heads], self.counts[:heads]
        )

    def within(self, most_bytes: int) -> SuccessorTable:
        """As many rows as so many bytes hold, those of the most seen heads; their order stays."""
        fit = most_bytes // (8 + 8 * self.successors.shape[1])
        if fit >= len(self):
            return self
        kept = np.sort(np.lexsort((self.heads, -self.totals))[:fit])
        return SuccessorTable(self.heads[kept], self.totals[kept], self.successors[kept], self.counts[kept])

    def look_up(self, tokens: np.ndarray) -> Successors:
        """What came soon after these tokens [n]; heads must rise."""
        sought = tokens.astype(np.int32)
        rows = np.searchsorted(self.heads, sought)
        inside = rows < len(self)
        rows, sought = rows[inside], sought[inside]
        return self.after(rows[self.heads[rows] == sought])

    def after(self, rows: np.ndarray) -> Successors:
        """What came soon after the heads in these rows."""
        counts = self.counts[rows]  # [rows, successors]
        shares = counts / self.totals[rows, None]
        known = counts > 0
        return Successors(self.successors[rows][known], shares[known])


SuccessorTables = Mapping[str, SuccessorTable]  # by tenant, see `evospec.vocab.tenants`
