"""The statistical index: which long-tail tokens came soon after which tokens, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evospec.vocab.successor_table import ABSENT, Successors, SuccessorTable

_LARGEST_SCALE = 1e6  # counts are brought back to their size before they lose digits
_LEAST = 1e-9  # what is left of a count below this is nothing


@dataclass(frozen=True, slots=True)
class SuccessorLimits:
    """How much an index keeps.

    Attributes:
        heads: tokens whose successors are kept.
        successors: tokens kept per head.
        window: a token succeeds those up to so many places before it.
        half_life: requests learned from after which a count has halved.
    """

    heads: int
    successors: int
    window: int
    half_life: int


class SuccessorIndex:
    """Counts long-tail tokens by the tokens shortly before them, and forgets slowly.

    Bounded: the least seen heads make room for new ones, and the least counted successors of a head.
    The same requests in the same order always make the same index.

    Args:
        common: token ids that are never counted as successors: they are active anyway.
    """

    def __init__(self, vocab_size: int, common: np.ndarray, limits: SuccessorLimits) -> None:
        self._vocab_size = vocab_size
        self._limits = limits
        self._long_tail = np.ones(vocab_size, dtype=bool)
        self._long_tail[common] = False
        self._scale = 1.0  # what one occurrence adds; as it grows, everything before it fades
        self._growth = 2.0 ** (1.0 / limits.half_life)
        self._row_of = np.full(vocab_size, ABSENT, dtype=np.int32)
        self._rows = SuccessorTable.of_size(min(limits.heads, 256), limits.successors)
        self._count = 0

    def __len__(self) -> int:
        """Heads that it knows."""
        return self._count

    def learn(self, tokens: Sequence[int] | np.ndarray, first: int = 0) -> None:
        """Counts the tokens of a request, prompt and answer in order.

        Args:
            first: tokens before that place were counted already: they only are what others succeed.
        """
        sequence = np.asarray(tokens, dtype=np.int64)
        self._scale *= self._growth
        if self._scale > _LARGEST_SCALE:
            self._rescale()
        codes = self._pairs(sequence, first)
        pairs, counts = np.unique(codes, return_counts=True)
        heads, place, totals = np.unique(sequence, return_inverse=True, return_counts=True)
        known = self._row_of[heads] != ABSENT
        totals = np.where(known, np.bincount(place[first:], minlength=len(heads)), totals)
        paired = np.isin(heads, pairs // self._vocab_size) | known
        self._see(heads[paired], totals[paired] * self._scale)
        self._add(pairs, counts * self._scale)

    def merge(self, other: SuccessorTable) -> None:
        """Adds another index's counts to its own."""
        self._see(other.heads.astype(np.int64), other.totals.astype(np.float64) * self._scale)
        row, place = np.nonzero(other.counts)
        successors = other.successors[row, place].astype(np.int64)
        pairs = other.heads[row].astype(np.int64) * self._vocab_size + successors
        counts = other.counts[row, place].astype(np.float64) * self._scale
        tail = self._long_tail[successors]
        self._add(pairs[tail], counts[tail])

    def table(self) -> SuccessorTable:
        """A copy of what it knows, heads rising and counts falling; a token seen in the latest request
        counts 1."""
        used = self._rows.first(self._count)
        order = np.argsort(used.heads)
        successors, counts = used.successors[order], used.counts[order]
        falling = np.lexsort((successors, -counts), axis=1)
        return SuccessorTable(
            used.heads[order],
            (used.totals[order] / self._scale).astype(np.float32),
            np.take_along_axis(successors, falling, axis=1),
            (np.take_along_axis(counts, falling, axis=1) / self._scale).astype(np.float32),
        )

    def look_up(self, tokens: np.ndarray) -> Successors:
        """What came soon after these tokens [n], of each at most `limits.successors`."""
        rows = self._row_of[tokens]
        return self._rows.after(rows[rows != ABSENT])

    def _pairs(self, sequence: np.ndarray, first: int) -> np.ndarray:
        """head * vocab + successor for each long-tail token from `first` on and each token shortly before."""
        parts = [np.zeros(0, dtype=np.int64)]
        for distance in range(1, min(self._limits.window, len(sequence) - 1) + 1):
            begin = max(first, distance)
            heads, successors = sequence[begin - distance : -distance], sequence[begin:]
            counted = self._long_tail[successors] & (heads != successors)
            parts.append(heads[counted] * self._vocab_size + successors[counted])
        return np.concatenate(parts)

    def _see(self, heads: np.ndarray, totals: np.ndarray) -> None:
        """Adds to the totals of distinct heads; those it did not know get rows as far as they deserve one."""
        rows = self._row_of[heads]
        known = rows != ABSENT
        self._rows.totals[rows[known]] += totals[known].astype(np.float32)
        heads, totals = heads[~known], totals[~known]
        order = np.lexsort((heads, -totals))
        heads, totals = heads[order], totals[order]
        rows = self._make_room(totals)
        heads, totals = heads[: len(rows)], totals[: len(rows)]
        left = self._rows.heads[rows]
        self._row_of[left[left != ABSENT]] = ABSENT
        self._row_of[heads] = rows
        self._rows.heads[rows] = heads
        self._rows.totals[rows] = totals
        self._rows.successors[rows] = ABSENT
        self._rows.counts[rows] = 0.0

    def _make_room(self, totals: np.ndarray) -> np.ndarray:
        """Rows for newcomers with these falling totals: free ones, then those of heads seen less."""
        free = min(self._limits.heads - self._count, len(totals))
        self._reserve(self._count + free)
        rows = np.arange(self._count, self._count + free)
        self._count += free
        rivals = totals[free:]
        if len(rivals):
            used = self._rows.first(self._count - free)
            weakest = _lowest(used.totals, len(rivals), used.heads)
            # The weakest rise and the newcomers fall, so the exchanges that pay form a prefix.
            pays = used.totals[weakest] < rivals[: len(weakest)]
            rows = np.concatenate((rows, weakest[: int(pays.sum())]))
        return rows

    def _reserve(self, heads: int) -> None:
        size = len(self._rows)
        if heads <= size:
            return
        while size < heads:
            size *= 2
        larger = SuccessorTable.of_size(min(size, self._limits.heads), self._limits.successors)
        for old, new in (
            (self._rows.heads, larger.heads),
            (self._rows.totals, larger.totals),
            (self._rows.successors, larger.successors),
            (self._rows.counts, larger.counts),
        ):
            new[: len(old)] = old
        self._rows = larger

    def _add(self, pairs: np.ndarray, counts: np.ndarray) -> None:
        """Adds distinct pairs to their heads' successors, and keeps the best of each head."""
        rows, successors = self._row_of[pairs // self._vocab_size], pairs % self._vocab_size
        known = rows != ABSENT
        rows, successors, counts = rows[known], successors[known], counts[known]
        places = self._rows.successors[rows] == successors[:, None]  # [pairs, successors]
        here = places.any(axis=1)
        self._rows.counts[rows[here], places[here].argmax(axis=1)] += counts[here].astype(np.float32)
        self._insert(rows[~here], successors[~here], counts[~here])

    def _insert(self, rows: np.ndarray, successors: np.ndarray, counts: np.ndarray) -> None:
        """Brings in successors that their heads' rows don't hold, as far as they count more than others."""
        order = np.argsort(rows, kind="stable")
        distinct, first, sizes = np.unique(rows[order], return_index=True, return_counts=True)
        if not len(distinct):
            return
        place = np.repeat(np.arange(len(distinct)), sizes)
        column = self._limits.successors + np.arange(len(order)) - first[place]
        width = self._limits.successors + int(sizes.max())
        ids = np.full((len(distinct), width), ABSENT, dtype=np.int32)
        numbers = np.zeros((len(distinct), width), dtype=np.float32)
        ids[:, : self._limits.successors] = self._rows.successors[distinct]
        numbers[:, : self._limits.successors] = self._rows.counts[distinct]
        ids[place, column], numbers[place, column] = successors[order], counts[order]
        best = np.lexsort((ids, -numbers), axis=1)[:, : self._limits.successors]
        self._rows.successors[distinct] = np.take_along_axis(ids, best, axis=1)
        self._rows.counts[distinct] = np.take_along_axis(numbers, best, axis=1)

    def _rescale(self) -> None:
        rows = self._rows
        rows.totals[:] = np.maximum(rows.totals / self._scale, _LEAST)
        rows.counts[:] /= self._scale
        forgotten = rows.counts < _LEAST
        rows.counts[forgotten] = 0.0
        rows.successors[forgotten] = ABSENT
        self._scale = 1.0


def _lowest(values: np.ndarray, count: int, ties: np.ndarray) -> np.ndarray:
    """Places of the `count` lowest values, rising; of equal ones, those with the lowest `ties` first."""
    places = np.arange(len(values))
    if count < len(values):  # the others need no order
        places = np.flatnonzero(values <= np.partition(values, count)[count])
    return places[np.lexsort((ties[places], values[places]))][:count]
