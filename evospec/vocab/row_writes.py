"""Updates of head rows on their way to a CUDA device: always the same launch, so that it is captured once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from evospec.models.graphs import Graphs
from evospec.vocab.row_update import RowUpdate

_AT_ONCE = 256  # rows that one launch writes: cycles bring a few, prompts some hundreds


@dataclass(frozen=True, slots=True)
class RowBuffers:
    """What an update changes.

    Attributes:
        rows, ids, padding: see `HeadView`.
        active: int64 [vocab].
    """

    rows: Tensor
    ids: Tensor
    active: Tensor
    padding: Tensor


class RowWrites:
    """Enqueues updates without waiting for the device.

    Two pinned buffers take turns: one is written again only when the copy out of it is done. Launching a
    kernel by itself would take the host longer than all else that a cycle teaches it takes.
    """

    __slots__ = ("_buffers", "_graphs", "_head", "_numbers", "_pinned", "_read", "_turn")

    def __init__(self, head: Tensor, buffers: RowBuffers) -> None:
        from evospec.kernels.rows import COUNTS  # Triton comes with CUDA builds of PyTorch only

        size = COUNTS + 4 * _AT_ONCE
        self._head, self._buffers = head, buffers
        self._numbers = torch.zeros(size, dtype=torch.int64, device=head.device)
        self._pinned = [torch.zeros(size, dtype=torch.int64, pin_memory=True) for _ in range(2)]
        self._read = [torch.cuda.Event() for _ in range(2)]
        self._graphs: Graphs[None] = Graphs(head.device)
        self._turn = 0
        for turn in range(2):  # of no rows
            self._graphs.run(turn, partial(self._write, turn))

    def send(self, update: RowUpdate, before: int) -> None:
        """Args: before: slots in use before it."""
        for part in update.parts(_AT_ONCE):
            self._turn = 1 - self._turn
            self._read[self._turn].synchronize()
            numbers: np.ndarray = self._pinned[self._turn].numpy()
            part.pack(numbers, _AT_ONCE, before)
            self._graphs.run(self._turn, partial(self._write, self._turn))
            self._read[self._turn].record()

    def _write(self, turn: int) -> None:
        from evospec.kernels.rows import write_rows

        self._numbers.copy_(self._pinned[turn], non_blocking=True)
        buffers = self._buffers
        write_rows(
            self._head,
            self._numbers,
            rows=buffers.rows,
            ids=buffers.ids,
            active=buffers.active,
            padding=buffers.padding,
        )
