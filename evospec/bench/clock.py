"""Time of one turn: on the wall, and on the device's own clock where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Seconds since a clock was started; `device` is None without CUDA events."""

    wall: float
    device: float | None


class Clock:
    """Started once; read when all work handed to the device is done."""

    __slots__ = ("_began", "_event", "_on_gpu")

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._event: torch.cuda.Event | None = None
        self._began = 0.0

    def start(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        self._began = perf_counter()

    def read(self) -> Elapsed:
        """Waits for the device."""
        if self._event is None:
            return Elapsed(perf_counter() - self._began, None)
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return Elapsed(perf_counter() - self._began, self._event.elapsed_time(now) / 1000)

    def glance(self) -> float:
        """Wall seconds so far; waits for nothing."""
        return perf_counter() - self._began
