"""The active rows: a fixed buffer of LM head rows, changed in place between cycles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.models.tables import TokenTables

_INACTIVE = -1


@dataclass(frozen=True, slots=True)
class HeadView:
    """The rows a draft step scores, and which tokens they stand for.

    Attributes:
        rows: [rows, hidden].
        ids: token id of each row, int64 [rows]; None means row i is token i (full head).
        live: rows that count, on the device, int64 []; the others are padding. None: all.
        used: the same on the host.
    """

    rows: Tensor
    ids: Tensor | None
    live: Tensor | None = None
    used: int | None = None

    @property
    def count(self) -> int:
        return self.rows.shape[0] if self.used is None else self.used

    def score(self, states: Tensor) -> Tensor:
        """Logits, float32 [..., rows], of states [..., hidden]; padding never wins."""
        logits = (states @ self.rows.T).float()
        if self.live is None:
            return logits
        padding = torch.arange(self.rows.shape[0], device=logits.device) >= self.live
        return logits.masked_fill(padding, -torch.inf)

    def to_token_ids(self, row_indices: Tensor) -> Tensor:
        return row_indices if self.ids is None else self.ids[row_indices]


class ActiveRows:
    """Up to `capacity` rows of the head of `tables`, dense in slots [0, count).

    A slot has a token id, a score that halves every `half_life` ticks without use,
    and a pin count. A full buffer evicts the lowest scores first, pinned slots never.
    Tokens without a head row are never active. Not thread-safe: changed by the engine's thread
    between cycles.

    Attributes:
        epoch: grows by one at each `activate` that changed a row.
        refused: tokens not activated because every other slot was pinned.
    """

    def __init__(self, tables: TokenTables, capacity: int, half_life: int) -> None:
        head = tables.head
        self.capacity = min(capacity, head.shape[0])
        self.count = 0
        self.epoch = 0
        self.refused = 0
        self._head = head
        self._index = tables.head_index()
        self._has_row = None if self._index is None else (self._index >= 0).cpu().numpy()
        self._decay = 0.5 ** (1.0 / half_life)
        self._tick = 0
        self._rows = torch.zeros(self.capacity, head.shape[1], dtype=head.dtype, device=head.device)
        self._row_ids = torch.zeros(self.capacity, dtype=torch.int64, device=head.device)
        on_gpu = head.device.type == "cuda"
        self._live = torch.zeros((), dtype=torch.int64, device=head.device) if on_gpu else None
        self._ids = np.full(self.capacity, _INACTIVE, dtype=np.int64)
        self._slot_of = np.full(tables.vocab_size, _INACTIVE, dtype=np.int32)
        self._scores = np.zeros(self.capacity, dtype=np.float64)
        self._touched = np.zeros(self.capacity, dtype=np.int64)
        self._pins = np.zeros(self.capacity, dtype=np.int32)

    def view(self) -> HeadView:
        """Rows and ids as they are now; later activations write into the same memory.

        On a CUDA device the view is the whole buffer, so that a captured graph outlives every change.
        """
        if self._live is None:
            return HeadView(self._rows[: self.count], self._row_ids[: self.count])
        return HeadView(self._rows, self._row_ids, self._live, self.count)

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
        if self._has_row is not None:
            drafted = self._has_row[ids]
            ids, values = ids[drafted], values[drafted]
        slots = self._slot_of[ids]
        here = slots != _INACTIVE
        self._refresh(slots[here], values[here])
        order = np.argsort(-values[~here], kind="stable")
        return self._insert(ids[~here][order], values[~here][order])

    def pin(self, token_ids: np.ndarray) -> None:
        """Adds one pin per id; every id must be active. Ids must be distinct."""
        self._pins[self._slots(token_ids)] += 1

    def unpin(self, token_ids: np.ndarray) -> None:
        """Takes one pin back per id. Ids must be distinct."""
        slots = self._slots(token_ids)
        if (self._pins[slots] <= 0).any():
            raise ValueError("unpin without a pin")
        self._pins[slots] -= 1

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
        self._copy_rows(slots, ids)
        if self._live is not None:
            self._live.fill_(self.count)
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

    def _copy_rows(self, slots: np.ndarray, ids: np.ndarray) -> None:
        device = self._head.device
        where = torch.from_numpy(slots).to(device)
        tokens = torch.from_numpy(ids).to(device)
        rows = tokens if self._index is None else self._index[tokens]
        self._rows.index_copy_(0, where, self._head.index_select(0, rows))
        self._row_ids.index_copy_(0, where, tokens)
