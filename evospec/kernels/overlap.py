"""Kernels that begin while the one before them ends (programmatic dependent launch; Hopper and later).

A short kernel spends as long on being launched, and on its first reads, as on its work. One that
overlaps takes its place on the device while the kernels before still run, and reads weights into
registers; then it waits until all that came before is done and visible. Ahead of `await_inputs` a
kernel writes nothing, and reads only what no kernel of the same graph writes: a graph begins when
everything before it is done. So kernels overlap in captured graphs only.

https://docs.nvidia.com/cuda/cuda-c-programming-guide/#programmatic-dependent-launch-and-synchronization
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from evospec.models.graphs import is_captured

_LEAST_CAPABILITY = (9, 0)
_MOST_SHARED_BYTES = 160 << 10  # so that another program finds room beside it
_LEAST_SHARED_BYTES = 99 << 10  # any device since Ampere has them
_OWN_SHARED_BYTES = 7 << 10  # what a program needs besides its steps


@triton.jit
def await_inputs(OVERLAPS: tl.constexpr):
    """Lets the next kernel begin, and waits for those before."""
    if OVERLAPS:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch_rows(weight, row, rows, columns, first, LINES: tl.constexpr, LINE: tl.constexpr):
    """Brings rows [N] of a row-major matrix into the level-2 cache, from column `first` to their end:
    `LINES` lines of `LINE` numbers, or fewer.

    Later reads see what they would have seen anyway: the whole device shares that cache.
    """
    column = tl.minimum(first + tl.arange(0, LINES) * LINE, columns - 1)
    cells = weight + tl.minimum(row, rows - 1)[:, None].to(tl.int64) * columns + column[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [cells.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def overlap(tensor: Tensor) -> dict[str, Any]:
    """How to launch a kernel that calls `await_inputs`, on the device of a tensor that it takes."""
    if is_captured() and tensor.device.type == "cuda" and _overlaps(tensor.device.index):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}


@cache
def _overlaps(device: int) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def step_bytes(tensor: Tensor) -> int:
    """Shared memory for the steps of one program's pipeline, on the device of a tensor."""
    most = _LEAST_SHARED_BYTES
    if tensor.device.type == "cuda":
        most = min(_program_bytes(tensor.device.index), _MOST_SHARED_BYTES)
    return most - _OWN_SHARED_BYTES


@cache
def _program_bytes(device: int) -> int:
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED_BYTES))
