"""Query and key norms, rotary embedding and the cache write of one layer, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap
from evospec.models.kv_cache import Tree

_MANY = 8192  # programs that a device is busy with for long enough


@triton.jit
def _normed_halves(low, high, weight, column, half, eps, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The two halves of heads [heads, head_dim / 2] after their root-mean-square norm."""
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    square = tl.sum(wide_low * wide_low, axis=1) + tl.sum(wide_high * wide_high, axis=1)
    factor = tl.rsqrt(square / HEAD_DIM + eps)[:, None]
    scale_low = tl.load(weight + column).to(tl.float32)[None, :]
    scale_high = tl.load(weight + half + column).to(tl.float32)[None, :]
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
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_query = head < HEADS
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_value = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    row, offset = token // width, token % width
    start = tl.load(starts + row)
    cell = start + first_place + offset
    position = start + tl.load(depths + token) if IS_TREE else cell
    half: tl.constexpr = HEAD_DIM // 2
    column = tl.arange(0, half)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head[:, None]) * HEAD_DIM + column[None, :]
    known = (head < HEADS + 2 * KV_HEADS)[:, None]
    low = tl.load(source, mask=known, other=0.0)
    high = tl.load(source + half, mask=known, other=0.0)
    slot = (first_slot + row) * stride_slot + cell * HEAD_DIM
    to_value = values + slot + (head - HEADS - KV_HEADS)[:, None] * stride_head + column[None, :]
    tl.store(to_value, low, mask=is_value[:, None])
    tl.store(to_value + half, high, mask=is_value[:, None])
    if HAS_NORMS:
        query_low, query_high = _normed_halves(
            low, high, query_norm, column, half, eps, SCALES_WIDE, HEAD_DIM
        )
        key_low, key_high = _normed_halves(low, high, key_norm, column, half, eps, SCALES_WIDE, HEAD_DIM)
        low = tl.where(is_query[:, None], query_low, key_low)
        high = tl.where(is_query[:, None], query_high, key_high)
    cosines = table + position * HEAD_DIM + column
    sines = cosines + table_positions.to(tl.int64) * HEAD_DIM
    cos_low = tl.load(cosines).to(tl.float32)[None, :]
    cos_high = tl.load(cosines + half).to(tl.float32)[None, :]
    sin_low = tl.load(sines).to(tl.float32)[None, :]
    sin_high = tl.load(sines + half).to(tl.float32)[None, :]
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    # Products rounded to the model's type before the sum, as separate operations would be.
    turned_low = (wide_low * cos_low).to(low.dtype).to(tl.float32)
    turned_low += (wide_high * sin_low).to(low.dtype).to(tl.float32)
    turned_high = (wide_high * cos_high).to(low.dtype).to(tl.float32)
    turned_high += (wide_low * sin_high).to(low.dtype).to(tl.float32)
    to_query = query + ((row * HEADS + head[:, None]) * width + offset) * HEAD_DIM + column[None, :]
    tl.store(to_query, turned_low.to(low.dtype), mask=is_query[:, None])
    tl.store(to_query + half, turned_high.to(low.dtype), mask=is_query[:, None])
    to_key = keys + slot + (head - HEADS)[:, None] * stride_head + column[None, :]
    tl.store(to_key, turned_low.to(low.dtype), mask=is_key[:, None])
    tl.store(to_key + half, turned_high.to(low.dtype), mask=is_key[:, None])


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
    block = _heads_at_once(rows * width, heads + 2 * kv_heads)
    _rotate_store_kernel[(rows * width, triton.cdiv(heads + 2 * kv_heads, block))](
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
        BLOCK=block,
        num_warps=1 if block == 1 else 4,
        **overlap(qkv),
    )
    return query


def _heads_at_once(tokens: int, heads: int) -> int:
    """Heads per program: one where tokens are few and latency counts, all of a token's in prompts."""
    return 1 if tokens * heads <= _MANY else min(triton.next_power_of_2(heads), 32)
