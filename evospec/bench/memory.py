"""Peak memory of the process while something runs."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch

_MEBIBYTE = 1 << 20
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak since `restart`, in MiB: PyTorch's allocator on CUDA, resident memory on the CPU.

    Both are of the whole process: what other engines hold counts too. Where the
    system can't restart its own peak (not Linux), the CPU's is that since the start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):  # see the class's docstring
            _CLEAR.write_text("5")  # proc(5): resets VmHWM

    def read_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / _MEBIBYTE
        if _STATUS.is_file():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024  # kB
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes there, kB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEBIBYTE
