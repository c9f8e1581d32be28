"""A short window's step through attention: norms, rotary embedding, cache write and attention at once.

The window's own keys never travel through the cache: the programs of the last stretch rotate
them, attend to them and write them there, while the other programs attend to what was there
before. Where the context is short one stretch holds all, and nothing is left to combine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.attention import combine, key_block, query_tile, stages
from evospec.kernels.overlap import await_inputs, overlap
from evospec.kernels.rotation import rotated
from evospec.models.kv_cache import Tree

MOST_PLACES = 16  # of a window: its own keys make one tile
_PROGRAMS = 264  # enough to fill the largest device twice
_FEWEST_KEYS = 32  # of a program: one that reads fewer is no faster


@triton.jit
def _attended(query, key, value, seen, scale, highest, total, output):
    """One step of the softmax's running maximum, sum and output."""
    scores = tl.dot(query, tl.trans(key), input_precision="tf32x3") * scale
    scores = tl.where(seen, scores, -float("inf"))
    peak = tl.maximum(highest, tl.max(scores, axis=1))
    # A query that has seen no key yet keeps a finite reference, so that nothing becomes NaN.
    reference = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp(scores - reference[:, None])
    fade = tl.exp(highest - reference)
    output = output * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
    return peak, total * fade + tl.sum(weights, axis=1), output


@triton.jit
def _attend_kernel(
    qkv,
    table,
    starts,
    depths,
    ancestors,
    query_norm,
    key_norm,
    keys,
    values,
    partial,
    maxima,
    sums,
    out,
    first_slot,
    first_place,
    width,
    table_positions,
    stride_slot,
    stride_head,
    scale,
    eps,
    stretch,
    splits,
    sliding_window,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    SCALES_WIDE: tl.constexpr,
    SLIDES: tl.constexpr,
    IS_TREE: tl.constexpr,
    IS_ALONE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    row, kv_head = tl.program_id(0).to(tl.int64) // KV_HEADS, tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    start = tl.load(starts + row)
    fresh = start + first_place  # position of the window's first key
    heads: tl.constexpr = KV_HEADS * (GROUPS + 2)  # of a token: queries, keys, values

    index = tl.arange(0, QUERIES)  # query index = group * width + place
    real = index < GROUPS * width
    place = index % width
    token = row * width + place
    own = place.to(tl.int64)
    if IS_TREE:
        lineage = tl.load(ancestors + token, mask=real, other=0)
        own = tl.load(depths + token, mask=real, other=0)
    head = kv_head * GROUPS + index // width
    source = qkv + (token * heads + head) * HEAD_DIM
    query = rotated(
        source, real, start + own, table, table_positions, query_norm, eps, HEAD_DIM, HAS_NORMS, SCALES_WIDE
    )

    highest = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    output = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    column = tl.arange(0, HEAD_DIM)
    base = (first_slot + row) * stride_slot + kv_head * stride_head
    begin = split * stretch
    end = tl.minimum(begin + stretch, fresh)
    if SLIDES:
        begin = tl.maximum(begin, tl.maximum(start - sliding_window + 1, 0) // BLOCK * BLOCK)
    for first in range(begin, end, BLOCK):
        position = first + tl.arange(0, BLOCK)
        inside = position < end
        seen = inside[None, :]
        step = position - start  # negative: context
        if IS_TREE:
            bit = (lineage[:, None] >> tl.maximum(step, 0)[None, :].to(tl.int64)) & 1
            seen = seen & ((step < 0)[None, :] | (bit != 0))
        if SLIDES:  # such a tree is run in one pass, so everything before it is context
            seen = seen & (step[None, :] > own[:, None] - sliding_window)
        cell = base + position[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + cell, mask=inside[:, None], other=0.0)
        value = tl.load(values + cell, mask=inside[:, None], other=0.0)
        highest, total, output = _attended(query, key, value, seen, scale, highest, total, output)

    if split == splits - 1:
        here = tl.arange(0, PLACES)
        inside = here < width
        fresh_token = row * width + here
        depth = here.to(tl.int64)
        if IS_TREE:
            depth = tl.load(depths + fresh_token, mask=inside, other=0)
            seen = ((lineage[:, None] >> (first_place + here)[None, :].to(tl.int64)) & 1) != 0
        else:
            seen = here[None, :] <= place[:, None]
        seen = seen & inside[None, :]
        if SLIDES:
            seen = seen & (depth[None, :] > own[:, None] - sliding_window)
        fresh_heads = qkv + (fresh_token * heads + KV_HEADS * GROUPS + kv_head) * HEAD_DIM
        key = rotated(
            fresh_heads,
            inside,
            start + depth,
            table,
            table_positions,
            key_norm,
            eps,
            HEAD_DIM,
            HAS_NORMS,
            SCALES_WIDE,
        )
        from_row = fresh_heads[:, None] + KV_HEADS * HEAD_DIM + column[None, :]
        value = tl.load(from_row, mask=inside[:, None], other=0.0)
        cell = base + (fresh + here)[:, None] * HEAD_DIM + column[None, :]
        tl.store(keys + cell, key, mask=inside[:, None])
        tl.store(values + cell, value, mask=inside[:, None])
        highest, total, output = _attended(query, key, value, seen, scale, highest, total, output)

    if IS_ALONE:
        target = ((row * width + place) * KV_HEADS * GROUPS + head)[:, None] * HEAD_DIM + column[None, :]
        output /= tl.where(real, total, 1.0)[:, None]
        tl.store(out + target, output.to(out.dtype.element_ty), mask=real[:, None])
    else:
        where = ((row * KV_HEADS + kv_head) * GROUPS * width + index) * splits + split
        tl.store(maxima + where, highest, mask=real)
        tl.store(sums + where, total, mask=real)
        tl.store(partial + where[:, None] * HEAD_DIM + column[None, :], output, mask=real[:, None])


@dataclass(frozen=True, slots=True)
class Cut:
    """How the keys of a row are split among programs.

    Attributes:
        block: keys of a step.
        stretch: keys of a program.
        splits: programs.
    """

    block: int
    stretch: int
    splits: int


def cut(row_heads: int, span: int, head_dim: int, itemsize: int) -> Cut:
    """Splits them until the device is filled, or a program would be no faster with fewer.

    Args:
        row_heads: rows times key heads.
    """
    each = triton.cdiv(span, max(1, _PROGRAMS // row_heads))
    block = min(max(_FEWEST_KEYS, triton.next_power_of_2(each)), key_block(head_dim, itemsize))
    stretch = triton.cdiv(each, block) * block
    return Cut(block, stretch, triton.cdiv(span, stretch))


def attend(
    qkv: Tensor,
    table: Tensor,
    starts: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    first_slot: int,
    heads: int,
    span: int,
    scale: float,
    sliding_window: int | None,
    tree: Tree | None,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    scales_wide: bool,
) -> Tensor:
    """Writes rotated keys and values into the cache; returns what the window's queries attend to.

    Args:
        qkv: merged projections [rows, width, (heads + 2 * kv_heads) * head_dim], contiguous, of
            `MOST_PLACES` a row at most, and of as many queries as `attention.takes` allows.
        table: cosines and signed sines [2, positions, head_dim].
        starts: first position of each row [rows].
        keys, values: one layer's cache [slots, kv_heads, positions, head_dim].
        span: no row holds more keys; how finely they are split depends on it.
        tree: how the places hang together; None is a chain.
        norms: weights of the query and key norms [head_dim] each, where the family has them.

    Returns:
        [rows, width, heads * head_dim], ready for the output projection.
    """
    rows, width, _ = qkv.shape
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    groups = heads // kv_heads
    way = cut(rows * kv_heads, span, head_dim, qkv.element_size())
    splits = way.splits
    out = torch.empty(rows, width, heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    shape = (rows * heads * width, splits)
    partial = torch.empty(*shape, head_dim, dtype=torch.float32, device=qkv.device) if splits > 1 else starts
    maxima = torch.empty(shape, dtype=torch.float32, device=qkv.device) if splits > 1 else starts
    sums = torch.empty_like(maxima)
    query_norm, key_norm = norms if norms is not None else (qkv, qkv)
    _attend_kernel[(rows * kv_heads, splits)](
        qkv,
        table,
        starts,
        starts if tree is None else tree.depths,
        starts if tree is None else tree.ancestors,
        query_norm,
        key_norm,
        keys,
        values,
        partial,
        maxima,
        sums,
        out,
        first_slot,
        0 if tree is None else tree.first,
        width,
        table.shape[1],
        keys.stride(0),
        keys.stride(1),
        scale,
        eps,
        way.stretch,
        splits,
        sliding_window or 0,
        KV_HEADS=kv_heads,
        GROUPS=groups,
        HEAD_DIM=head_dim,
        QUERIES=query_tile(groups * width),
        PLACES=MOST_PLACES,
        BLOCK=way.block,
        HAS_NORMS=norms is not None,
        SCALES_WIDE=scales_wide,
        SLIDES=sliding_window is not None,
        IS_TREE=tree is not None,
        IS_ALONE=splits == 1,
        num_warps=4,
        num_stages=stages(groups * width, head_dim, qkv.element_size()),
        **overlap(qkv),
    )
    if splits > 1:
        combine(partial, maxima, sums, out)
    return out
