"""The active rows: a fixed buffer of LM head rows, changed in place between cycles."""

from __future__ import annotations

import numpy as np

from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadRows, HeadView, RowUpdate

_INACTIVE = -1


class ActiveRows:
    """Up to `capacity` rows of the head of `tables`, dense in slots [0, count).

    A slot has a token id, a score that halves every `half_life` ticks without use,
    and a pin count. A full buffer evicts the lowest scores first, pinned slots never.
    Tokens without a head row are never active. Changes are collected on the host until `write`
    brings them to the device. Not thread-safe: used by the engine's thread alone.

    Args:
        padded: see `HeadRows`.

    Attributes:
        epoch: grows by one at each `activate` that changed a row.
        refused: tokens not activated because every other slot was pinned.
    """

    def __init__(
        self, tables: TokenTables, capacity: int, half_life: int, *, padded: bool | None = None
    ) -> None:
        head = tables.head
        self.capacity = min(capacity, head.shape[0])
        self.count = 0
        self.epoch = 0
        self.refused = 0
        index = tables.head_index()
        self._head_row = None if index is None else index.cpu().numpy()
        self._decay = 0.5 ** (1.0 / half_life)
        self._tick = 0
        self._device = HeadRows(tables, self.capacity, padded=padded)
        self._changed: list[np.ndarray] = []  # slots
        self._written = np.full(self.capacity, _INACTIVE, dtype=np.int64)  # ids on the device
        self._ids = np.full(self.capacity, _INACTIVE, dtype=np.int64)
        self._slot_of = np.full(tables.vocab_size, _INACTIVE, dtype=np.int32)
        self._scores = np.zeros(self.capacity, dtype=np.float64)
        self._touched = np.zeros(self.capacity, dtype=np.int64)
        self._pins = np.zeros(self.capacity, dtype=np.int32)

    def view(self) -> HeadView:
        """Rows and ids as of the last `write`; later ones go into the same memory."""
        return self._device.view()

    def write(self) -> None:
        """Brings all changes to the device, behind what it was asked to do before."""
        if not self._changed:
            return
        slots = np.unique(np.concatenate(self._changed))
        self._changed.clear()
        ids, before = self._ids[slots], self._written[slots]
        dropped = before[before != _INACTIVE]
        dropped = dropped[self._slot_of[dropped] == _INACTIVE]
        self._written[slots] = ids
        sources = ids if self._head_row is None else self._head_row[ids]
        self._device.write(RowUpdate(slots, ids, sources, dropped, self.count))

    def tick(self) -> None:
        """Advances the clock that scores decay by: once per cycle."""
        self._tick += 1

    def contains(self, token_ids: np.ndarray) -> np.ndarray:
        """Whether each id is active, bool, same shape."""
        return self._slot_of[token_ids] != _INACTIVE

    def activate(self, token_ids: np.ndarray, scores: np.ndarray | float) -> int:
        """Raises the score of active ids and brings in the others, best first.

        Returns:
            Number of rows written.
        """
        ids, first = np.unique(np.asarray(token_ids, dtype=np.int64), return_index=True)
        values = np.broadcast_to(np.asarray(scores, dtype=np.float64), np.shape(token_ids))[first]
        return self.activate_distinct(ids, values)

    def activate_distinct(self, ids: np.ndarray, values: np.ndarray) -> int:
        """The same for distinct ids, int64 [n], with a score each, float64 [n]."""
        if self._head_row is not None:
            drafted = self._head_row[ids] != _INACTIVE
            ids, values = ids[drafted], values[drafted]
        slots = self._slot_of[ids]
        here = slots != _INACTIVE
        self._refresh(slots[here], values[here])
        if here.all():
            return 0
        ids, values = ids[~here], values[~here]
        order = np.argsort(-values, kind="stable")
        return self._insert(ids[order], values[order])

    def pin(self, token_ids: np.ndarray) -> None:
        """Adds one pin per id; every id must be active. An id may come more than once."""
        np.add.at(self._pins, self._slots(token_ids), 1)

    def unpin(self, token_ids: np.ndarray) -> None:
        """Takes one pin back per id. An id may come more than once."""
        slots = self._slots(token_ids)
        np.subtract.at(self._pins, slots, 1)
        if (self._pins[slots] < 0).any():
            np.add.at(self._pins, slots, 1)
            raise ValueError("unpin without a pin")

    def _slots(self, token_ids: np.ndarray) -> np.ndarray:
        slots = self._slot_of[token_ids]
        if (slots == _INACTIVE).any():
            raise ValueError("token is not active")
        return slots

    def _refresh(self, slots: np.ndarray, scores: np.ndarray) -> None:
        self._scores[slots] = np.maximum(self._decayed(slots), scores)
        self._touched[slots] = self._tick

    def _decayed(self, slots: np.ndarray | slice) -> np.ndarray:
        age = self._tick - self._touched[slots]
        decayed: np.ndarray = self._scores[slots] * self._decay**age
        return decayed

    def _insert(self, ids: np.ndarray, scores: np.ndarray) -> int:
        free = min(self.capacity - self.count, len(ids))
        slots = np.arange(self.count, self.count + free)
        if len(ids) > free:
            slots = np.concatenate((slots, self._victims(scores[free:])))
        self.refused += len(ids) - len(slots)
        ids, scores = ids[: len(slots)], scores[: len(slots)]
        if not len(ids):
            return 0
        self.count += free
        old = self._ids[slots]
        self._slot_of[old[old != _INACTIVE]] = _INACTIVE
        self._slot_of[ids] = slots
        self._ids[slots] = ids
        self._scores[slots] = scores
        self._touched[slots] = self._tick
        self._changed.append(slots)
        self.epoch += 1
        return len(ids)

    def _victims(self, scores: np.ndarray) -> np.ndarray:
        """Slots to evict for newcomers with these falling scores: each must beat the one it replaces."""
        slots = np.flatnonzero(self._pins[: self.count] == 0)
        decayed = self._decayed(slots)
        order = np.argsort(decayed, kind="stable")[: len(scores)]
        worse = decayed[order] < scores[: len(order)]
        # Victims rise and newcomers fall, so the exchanges that pay form a prefix.
        return slots[order][: int(worse.sum())]
