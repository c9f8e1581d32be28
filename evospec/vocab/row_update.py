"""What changes in a buffer of head rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """Slots that get other tokens, int64 each.

    Attributes:
        slots, ids: distinct slots, and the token of each [n].
        sources: head row of each token [n].
        dropped: tokens that have no row any more [m].
        count: slots in use afterwards: the first ones.
    """

    slots: np.ndarray
    ids: np.ndarray
    sources: np.ndarray
    dropped: np.ndarray
    count: int

    def packed(self) -> np.ndarray:
        """slots, sources and ids, then the tokens whose state changes, and their new states."""
        flags = np.zeros(len(self.ids) + len(self.dropped), dtype=np.int64)
        flags[: len(self.ids)] = 1
        return np.concatenate((self.slots, self.sources, self.ids, self.dropped, flags))

    def parts(self, most: int) -> Iterator[RowUpdate]:
        """The same in updates of at most so many slots and dropped tokens each, at least one."""
        for first in range(0, max(len(self.ids), len(self.dropped), 1), most):
            own = slice(first, first + most)
            yield RowUpdate(self.slots[own], self.ids[own], self.sources[own], self.dropped[own], self.count)

    def pack(self, numbers: np.ndarray, most: int, before: int) -> None:
        """Writes it as `evospec.kernels.rows` reads it.

        Args:
            numbers: int64 [4 + 4 * most].
            before: slots in use before it.
        """
        counts, places = numbers[:4], numbers[4:].reshape(4, most)
        counts[:] = len(self.ids), len(self.dropped), self.count, before
        for place, values in zip(places, (self.slots, self.sources, self.ids, self.dropped), strict=True):
            place[: len(values)] = values
