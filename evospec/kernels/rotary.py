"""Query and key norms, rotary embedding and the cache write of one layer, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.models.kv_cache import Tree


@triton.jit
def _normed_half(low, high, weight, column, half, eps, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """A head's two halves after its root-mean-square norm."""
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    square = tl.sum(wide_low * wide_low) + tl.sum(wide_high * wide_high)
    factor = tl.rsqrt(square / HEAD_DIM + eps)
    scale_low = tl.load(weight + column).to(tl.float32)
    scale_high = tl.load(weight + half + column).to(tl.float32)
    wide_low, wide_high = wide_low * factor, wide_high * factor
    if not WIDE:
        wide_low = wide_low.to(low.dtype).to(tl.float32)
        wide_high = wide_high.to(low.dtype).to(tl.float32)
    return (wide_low * scale_low).to(low.dtype), (wide_high * scale_high).to(low.dtype)


@triton.jit
def _rotate_store_kernel(
    qkv,
    table,
    starts,
    depths,
    query_norm,
    key_norm,
    query,
    keys,
    values,
    first_slot,
    first_place,
    width,
    table_positions,
    stride_slot,
    stride_head,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    SCALES_WIDE: tl.constexpr,
    IS_TREE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row, offset = token // width, token % width
    start = tl.load(starts + row)
    cell = start + first_place + offset
    position = start + tl.load(depths + token) if IS_TREE else cell
    half: tl.constexpr = HEAD_DIM // 2
    column = tl.arange(0, half)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM
    low = tl.load(source + column)
    high = tl.load(source + half + column)
    slot = (first_slot + row) * stride_slot + cell * HEAD_DIM
    if head >= HEADS + KV_HEADS:
        target = values + slot + (head - HEADS - KV_HEADS) * stride_head
        tl.store(target + column, low)
        tl.store(target + half + column, high)
    else:
        if HAS_NORMS:
            if head < HEADS:
                low, high = _normed_half(low, high, query_norm, column, half, eps, SCALES_WIDE, HEAD_DIM)
            else:
                low, high = _normed_half(low, high, key_norm, column, half, eps, SCALES_WIDE, HEAD_DIM)
        cos_low = tl.load(table + position * HEAD_DIM + column).to(tl.float32)
        cos_high = tl.load(table + position * HEAD_DIM + half + column).to(tl.float32)
        sines = table + table_positions.to(tl.int64) * HEAD_DIM + position * HEAD_DIM
        sin_low = tl.load(sines + column).to(tl.float32)
        sin_high = tl.load(sines + half + column).to(tl.float32)
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        # Products rounded to the model's type before the sum, as separate operations would be.
        turned_low = (wide_low * cos_low).to(low.dtype).to(tl.float32)
        turned_low += (wide_high * sin_low).to(low.dtype).to(tl.float32)
        turned_high = (wide_high * cos_high).to(low.dtype).to(tl.float32)
        turned_high += (wide_low * sin_high).to(low.dtype).to(tl.float32)
        if head < HEADS:
            target = query + ((row * HEADS + head) * width + offset) * HEAD_DIM
        else:
            target = keys + slot + (head - HEADS) * stride_head
        tl.store(target + column, turned_low.to(low.dtype))
        tl.store(target + half + column, turned_high.to(low.dtype))


def rotate_store(
    qkv: Tensor,
    table: Tensor,
    starts: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    tree: Tree | None,
    first_slot: int,
    heads: int,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    scales_wide: bool,
) -> Tensor:
    """Writes rotated keys and values into the cache; returns the rotated queries.

    Args:
        qkv: merged projections [rows, width, (heads + 2 * kv_heads) * head_dim], contiguous.
        table: cosines and signed sines [2, positions, head_dim].
        starts: first position of each row [rows].
        tree: how the places hang together; None is a chain.
        keys, values: one layer's cache [slots, kv_heads, positions, head_dim].
        norms: weights of the query and key norms [head_dim] each, where the family has them.

    Returns:
        Queries [rows, heads, width, head_dim].
    """
    rows, width, _ = qkv.shape
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    query = torch.empty(rows, heads, width, head_dim, dtype=qkv.dtype, device=qkv.device)
    query_norm, key_norm = norms if norms is not None else (qkv, qkv)
    _rotate_store_kernel[(rows * width, heads + 2 * kv_heads)](
        qkv,
        table,
        starts,
        starts if tree is None else tree.depths,
        query_norm,
        key_norm,
        query,
        keys,
        values,
        first_slot,
        0 if tree is None else tree.first,
        width,
        table.shape[1],
        keys.stride(0),
        keys.stride(1),
        eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        HAS_NORMS=norms is not None,
        SCALES_WIDE=scales_wide,
        IS_TREE=tree is not None,
        num_warps=1,
    )
    return query
