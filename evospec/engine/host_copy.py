"""Ways from the device to the host that don't hold it up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class ReportBuffer:
    """Where a cycle's report arrives, the same place every time, so that a CUDA graph can write it.

    One report is under way at a time: `post` it, `seal` behind it, `wait`.
    """

    __slots__ = ("_arrived", "_numbers", "_view")

    def __init__(self, size: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._numbers = torch.zeros(size, dtype=torch.int64, pin_memory=on_gpu)
        self._view: np.ndarray = self._numbers.numpy()
        self._arrived = torch.cuda.Event() if on_gpu else None

    def post(self, report: Tensor) -> None:
        """Enqueues the copy of a report [rows, columns]; may be captured."""
        self._numbers[: report.numel()].view(report.shape).copy_(report, non_blocking=True)

    def seal(self) -> None:
        """Marks the place in the stream that `wait` waits for; never captured."""
        if self._arrived is not None:
            self._arrived.record()

    def wait(self, rows: int, columns: int) -> np.ndarray:
        """The first rows of the report, int64 [rows, columns], which the next one leaves alone."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._view[: rows * columns].reshape(rows, columns).copy()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A tensor on its way to the host."""

    _host: Tensor
    _arrived: torch.cuda.Event | None

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
