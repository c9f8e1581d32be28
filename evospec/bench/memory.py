"""Memory of the process and of the device while something runs."""

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
        self._start_mb = 0.0

    def restart(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start_mb = allocated_mb(self.device)
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

    def transient_mb(self) -> float | None:
        """What was allocated at the peak and not at its restart; None without a CUDA device."""
        return self.read_mb() - self._start_mb if self.device.type == "cuda" else None


def allocated_mb(device: torch.device) -> float:
    """MiB that tensors of this process hold on a CUDA device; 0 elsewhere."""
    return torch.cuda.memory_allocated(device) / _MEBIBYTE if device.type == "cuda" else 0.0


def occupied_mb(device: torch.device) -> float:
    """MiB of a CUDA device that are not free, by its driver; 0 elsewhere.

    Graphs and kernels count too, whatever PyTorch only holds in reserve does not.
    """
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / _MEBIBYTE
