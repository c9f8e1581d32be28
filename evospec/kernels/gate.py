"""The gated activation of an MLP: act(gate) * up, from the merged projection's output."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap


@triton.jit
def _gate_kernel(gate_up, out, columns, GELU: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    await_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    gate = tl.load(gate_up + row * 2 * columns + column, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * columns + columns + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)
        active = wide * tl.sigmoid(2.0 * inner)  # 0.5 * (1 + tanh(x)) is sigmoid(2x)
    else:
        active = wide * tl.sigmoid(wide)
    # Rounded between the two operations, as separate ones would be.
    product = active.to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * columns + column, product.to(gate.dtype), mask=inside)


def gate(gate_up: Tensor, *, gelu: bool) -> Tensor:
    """[..., 2 * columns] to [..., columns]; SiLU, or GELU's tanh form."""
    columns = gate_up.shape[-1] // 2
    out = torch.empty(*gate_up.shape[:-1], columns, dtype=gate_up.dtype, device=gate_up.device)
    block = min(triton.next_power_of_2(columns), 1024)
    _gate_kernel[(out.numel() // columns, triton.cdiv(columns, block))](
        gate_up, out, columns, GELU=gelu, BLOCK=block, num_warps=4, **overlap(gate_up)
    )
    return out
