"""Head rows on the device: what the drafter scores, changed in stream order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.models.tables import TokenTables
from evospec.vocab.row_update import RowUpdate
from evospec.vocab.row_writes import RowBuffers, RowWrites


@dataclass(frozen=True, slots=True)
class HeadView:
    """The rows a draft step scores, and which tokens they stand for.

    Attributes:
        rows: [rows, hidden].
        ids: token id of each row, int64 [rows]; None means row i is token i (full head).
        padding: 0 for rows that count and -inf for the others, float32 [rows]; None: all count.
        active: 1 for tokens that have a row and 0 for the others, int64 [vocab]; None: all have.
        used: rows that count, on the host; None: all.
    """

    rows: Tensor
    ids: Tensor | None
    padding: Tensor | None = None
    active: Tensor | None = None
    used: int | None = None

    @property
    def count(self) -> int:
        return self.rows.shape[0] if self.used is None else self.used

    @property
    def plain(self) -> bool:
        """Whether scores are those of all rows, plus the padding, and nothing else."""
        return True

    def score(self, states: Tensor) -> Tensor:
        """Logits, float32 [..., rows], of states [..., hidden]; padding never wins."""
        logits = states @ self.rows.T
        return logits.float() if self.padding is None else logits + self.padding

    def to_token_ids(self, row_indices: Tensor) -> Tensor:
        return row_indices if self.ids is None else self.ids[row_indices]


class HeadRows:
    """A buffer of head rows of fixed size, written behind whatever the device was asked to do before.

    Args:
        padded: views are the whole buffer, so that a captured graph outlives every change; False
            leaves the unused end out. None: as the device needs it.
    """

    def __init__(self, tables: TokenTables, capacity: int, *, padded: bool | None = None) -> None:
        head = tables.head
        self._head = head
        self._rows = torch.zeros(capacity, head.shape[1], dtype=head.dtype, device=head.device)
        self._ids = torch.zeros(capacity, dtype=torch.int64, device=head.device)
        self._active = torch.zeros(tables.vocab_size, dtype=torch.int64, device=head.device)
        if padded is None:
            padded = head.device.type == "cuda"
        self._padding = torch.full((capacity,), -torch.inf, device=head.device) if padded else None
        self._writes: RowWrites | None = None
        self._staging: Staging | None = None
        if self._padding is not None and head.is_cuda:
            self._writes = RowWrites(head, RowBuffers(self._rows, self._ids, self._active, self._padding))
        else:  # slots, sources and ids; tokens that left; a flag for each token
            self._staging = Staging(6 * capacity, head.device)
        self._view = self._make_view(0)

    def view(self) -> HeadView:
        """Rows and ids as the device will see them next; later writes go into the same memory."""
        return self._view

    @torch.inference_mode()
    def write(self, update: RowUpdate) -> None:
        """Enqueues an update: cycles launched before it see none of it, later ones all of it."""
        if self._writes is not None:
            self._writes.send(update, self._view.count)
        elif self._staging is not None:
            self._write(update, self._staging.upload(update.packed()))
        if update.count != self._view.count:
            self._view = self._make_view(update.count)

    def _write(self, update: RowUpdate, packed: Tensor) -> None:
        n, m = len(update.ids), len(update.dropped)
        slots, sources, ids = packed[:n], packed[n : 2 * n], packed[2 * n : 3 * n]
        changed, flags = packed[2 * n : 3 * n + m], packed[3 * n + m :]
        self._rows.index_copy_(0, slots, self._head.index_select(0, sources))
        self._ids.index_copy_(0, slots, ids)
        self._active.index_copy_(0, changed, flags)
        if self._padding is not None:
            self._padding.index_fill_(0, slots, 0.0)
            if update.count < self._view.count:
                self._padding[update.count :].fill_(-torch.inf)

    def _make_view(self, count: int) -> HeadView:
        if self._padding is None:
            return HeadView(self._rows[:count], self._ids[:count], active=self._active)
        return HeadView(self._rows, self._ids, self._padding, self._active, count)


class Staging:
    """Carries integers to the device without waiting for it.

    On a CUDA device two pinned buffers take turns: one is written again only when the copy out of
    it is done. What `upload` returns holds until the next call, in stream order.
    """

    __slots__ = ("_copied", "_device", "_pinned", "_turn")

    def __init__(self, size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._turn = 0
        self._device = torch.zeros(size, dtype=torch.int64, device=device) if on_gpu else None
        self._pinned = [torch.zeros(size, dtype=torch.int64, pin_memory=True) for _ in range(2 * on_gpu)]
        self._copied = [torch.cuda.Event() for _ in self._pinned]

    def upload(self, values: np.ndarray) -> Tensor:
        """int64 [n] on the device; n may not exceed the size."""
        fresh = torch.from_numpy(values)
        if self._device is None:
            return fresh
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        pinned, target = self._pinned[self._turn][: len(values)], self._device[: len(values)]
        pinned.copy_(fresh)
        target.copy_(pinned, non_blocking=True)
        self._copied[self._turn].record()
        return target
