"""Ways from the device to the host that don't hold it up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class ReportBuffer:
    """Where a cycle leaves its report: the same place every time, so that a CUDA graph can write it.

    `post` it, then `send` it; the next one may be posted before the last has been read.
    """

    __slots__ = ("_numbers", "_places", "_turn")

    def __init__(self, size: int, device: torch.device) -> None:
        self._numbers = torch.zeros(size, dtype=torch.int64, device=device)
        self._places = [SentReport.prepare(size, device) for _ in range(2)]
        self._turn = 0

    def post(self, report: Tensor) -> None:
        """Writes a report [rows, columns]; may be captured."""
        self.room(*report.shape).copy_(report)

    def room(self, rows: int, columns: int) -> Tensor:
        """Where a report goes, int64 [rows, columns]: for what posts it by writing it there."""
        return self._numbers[: rows * columns].view(rows, columns)

    def send(self, size: int) -> SentReport:
        """Enqueues the copy of so many numbers to the host; never captured. The report sent before the
        last one must have been read."""
        self._turn = 1 - self._turn
        sent = self._places[self._turn]
        sent.copy(self._numbers[:size])
        return sent


@dataclass(frozen=True, slots=True)
class SentReport:
    """A report on its way to the host."""

    _host: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def prepare(cls, size: int, device: torch.device) -> SentReport:
        on_gpu = device.type == "cuda"
        host = torch.zeros(size, dtype=torch.int64, pin_memory=on_gpu)
        return cls(host, torch.cuda.Event() if on_gpu else None)

    def copy(self, numbers: Tensor) -> None:
        self._host[: len(numbers)].copy_(numbers, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    @property
    def late(self) -> bool:
        """Whether it is there already: then the device waits for the host, unless it has been given more to
        do. Never so where nothing runs beside the host."""
        return self._arrived is not None and self._arrived.query()

    def wait(self, rows: int, columns: int) -> np.ndarray:
        """Its first rows, int64 [rows, columns]."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: np.ndarray = self._host[: rows * columns].numpy().reshape(rows, columns).copy()
        return numbers


@dataclass(frozen=True, slots=True)
class Fetched:
    """A tensor on its way to the host."""

    _host: Tensor
    _arrived: torch.cuda.Event | None

    @property
    def arrived(self) -> bool:
        return self._arrived is None or self._arrived.query()

    def tensor(self) -> Tensor:
        """It, on the host; waits if it is not there yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


@torch.inference_mode()
def fetch(tensor: Tensor) -> Fetched:
    """Enqueues a copy to the host behind what the device does now, and doesn't wait for it."""
    if tensor.device.type != "cuda":
        return Fetched(tensor.clone(), None)
    # The pinned allocator hands memory out again only when copies into it are done.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Fetched(host, arrived)
