"""Attention of few queries over long slot caches: keys split over programs, then combined.

Flash-decoding (Dao et al., 2023): every program attends to one stretch of keys and
leaves its softmax's running maximum, sum and output; a second kernel combines them.
The query heads of a group, and the positions of a window, share each key that is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap
from evospec.models.kv_cache import Tree

_MOST_KEYS = 64  # per step of a program
# A step's keys and a program's queries: with Triton's copies of them they fit into the shared memory
# of any device since Ampere in bfloat16 (99 KiB), of data-centre devices in float32 (163 KiB).
_KEY_BYTES = 16 << 10
_QUERY_BYTES = 32 << 10
_PROGRAMS = 264  # enough to fill the largest device twice


@triton.jit
def _partial_kernel(
    query,
    keys,
    values,
    starts,
    depths,
    ancestors,
    partial,
    maxima,
    sums,
    first_slot,
    first_place,
    width,
    stride_slot,
    stride_head,
    scale,
    stretch,
    splits,
    sliding_window,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    SLIDES: tl.constexpr,
    IS_TREE: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    row, kv_head = tl.program_id(0).to(tl.int64) // KV_HEADS, tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    start = tl.load(starts + row)
    begin = split * stretch
    end = tl.minimum(begin + stretch, start + first_place + width)

    index = tl.arange(0, QUERIES)  # query index = group * width + place
    real = index < GROUPS * width
    place = index % width
    column = tl.arange(0, HEAD_DIM)
    head_row = (row * KV_HEADS + kv_head) * GROUPS * width + index
    vectors = tl.load(query + head_row[:, None] * HEAD_DIM + column[None, :], mask=real[:, None], other=0.0)
    if IS_TREE:
        lineage = tl.load(ancestors + row * width + place, mask=real, other=0)
        own_depth = tl.load(depths + row * width + place, mask=real, other=0)

    highest = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    output = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    base = (first_slot + row) * stride_slot + kv_head * stride_head
    if SLIDES:
        oldest = tl.maximum(start - sliding_window + 1, 0)
        begin = tl.maximum(begin, oldest // BLOCK * BLOCK)
    for first in range(begin, end, BLOCK):
        position = first + tl.arange(0, BLOCK)
        inside = position < end
        cell = base + position[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + cell, mask=inside[:, None], other=0.0)
        scores = tl.dot(vectors, tl.trans(key), input_precision="tf32x3") * scale
        if IS_TREE:
            step = position - start  # negative: context
            bit = (lineage[:, None] >> tl.maximum(step, 0)[None, :].to(tl.int64)) & 1
            seen = (step < 0)[None, :] | (bit != 0)
            own = own_depth
            depth = step
            if SLIDES:  # such a tree is run in one pass, so all depths are at hand
                grown = tl.load(depths + row * width + step, mask=(step >= 0) & inside, other=0)
                depth = tl.where(step < 0, step, grown)
        else:
            depth = position - start
            own = place
            seen = depth[None, :] <= own[:, None]
        if SLIDES:
            seen = seen & (depth[None, :] > own[:, None] - sliding_window)
        scores = tl.where(seen & inside[None, :], scores, -float("inf"))
        peak = tl.maximum(highest, tl.max(scores, axis=1))
        # A query that has seen no key yet keeps a finite reference, so that nothing becomes NaN.
        reference = tl.where(peak == -float("inf"), 0.0, peak)
        weights = tl.exp(scores - reference[:, None])
        fade = tl.exp(highest - reference)
        value = tl.load(values + cell, mask=inside[:, None], other=0.0)
        output = output * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
        total = total * fade + tl.sum(weights, axis=1)
        highest = peak
    where = head_row * splits + split
    tl.store(maxima + where, highest, mask=real)
    tl.store(sums + where, total, mask=real)
    tl.store(partial + where[:, None] * HEAD_DIM + column[None, :], output, mask=real[:, None])


@triton.jit
def _combine_kernel(
    partial,
    maxima,
    sums,
    out,
    splits,
    heads,
    width,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    query = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    real = split < splits
    column = tl.arange(0, HEAD_DIM)
    highest = tl.load(maxima + query * splits + split, mask=real, other=-float("inf"))
    total = tl.load(sums + query * splits + split, mask=real, other=0.0)
    share = tl.exp(highest - tl.max(highest))
    share = tl.where(real, share, 0.0)
    cell = (query * splits + split)[:, None] * HEAD_DIM + column[None, :]
    outputs = tl.load(partial + cell, mask=real[:, None], other=0.0)
    combined = tl.sum(outputs * share[:, None], axis=0) / tl.sum(total * share)
    row, head, place = query // (heads * width), query // width % heads, query % width
    target = ((row * width + place) * heads + head) * HEAD_DIM
    tl.store(out + target + column, combined.to(out.dtype.element_ty))


def takes(queries: int, head_dim: int, itemsize: int) -> bool:
    """Whether the kernel takes so many queries per key head, of `itemsize` bytes an element."""
    return query_tile(queries) * head_dim * itemsize <= _QUERY_BYTES


def key_block(head_dim: int, itemsize: int) -> int:
    """Keys per step of a program."""
    return max(16, min(_MOST_KEYS, _KEY_BYTES // (head_dim * itemsize)))


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    *,
    first_slot: int,
    span: int,
    scale: float,
    sliding_window: int | None = None,
    tree: Tree | None = None,
) -> Tensor:
    """Causal attention of a window's queries over their slots.

    Args:
        query: [rows, heads, width, head_dim], heads / kv_heads * width of them as `takes` allows.
        keys, values: one layer's cache [slots, kv_heads, positions, head_dim].
        starts: position of each row's first query [rows].
        span: no row holds more keys; how finely keys are split depends on it.
        tree: how the window's places hang together; None is a chain.

    Returns:
        [rows, width, heads * head_dim], ready for the output projection.
    """
    rows, heads, width, head_dim = query.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    wanted = max(1, _PROGRAMS // (rows * kv_heads))
    block = key_block(head_dim, query.element_size())
    stretch = max(triton.cdiv(triton.cdiv(span, wanted), block), 1) * block
    splits = triton.cdiv(span, stretch)
    shape = (rows * heads * width, splits)
    partial = torch.empty(*shape, head_dim, dtype=torch.float32, device=query.device)
    maxima = torch.empty(shape, dtype=torch.float32, device=query.device)
    sums = torch.empty_like(maxima)
    _partial_kernel[(rows * kv_heads, splits)](
        query,
        keys,
        values,
        starts,
        starts if tree is None else tree.depths,
        starts if tree is None else tree.ancestors,
        partial,
        maxima,
        sums,
        first_slot,
        0 if tree is None else tree.first,
        width,
        keys.stride(0),
        keys.stride(1),
        scale,
        stretch,
        splits,
        sliding_window or 0,
        KV_HEADS=kv_heads,
        GROUPS=groups,
        HEAD_DIM=head_dim,
        QUERIES=query_tile(groups * width),
        BLOCK=block,
        SLIDES=sliding_window is not None,
        IS_TREE=tree is not None,
        num_warps=4,
        num_stages=stages(groups * width, head_dim, query.element_size()),
        **overlap(query),
    )
    out = torch.empty(rows, width, heads * head_dim, dtype=query.dtype, device=query.device)
    combine(partial, maxima, sums, out)
    return out


def combine(partial: Tensor, maxima: Tensor, sums: Tensor, out: Tensor) -> None:
    """Brings together what programs found in their stretches of keys.

    Args:
        partial: float32 [rows * heads * width, splits, head_dim].
        maxima, sums: of the softmax, float32 [rows * heads * width, splits].
        out: written; [rows, width, heads * head_dim].
    """
    queries, splits, head_dim = partial.shape
    width = out.shape[1]
    _combine_kernel[(queries,)](
        partial,
        maxima,
        sums,
        out,
        splits,
        out.shape[2] // head_dim,
        width,
        HEAD_DIM=head_dim,
        SPLITS=max(triton.next_power_of_2(splits), 1),
        num_warps=1,
        **overlap(out),
    )


def stages(queries: int, head_dim: int, itemsize: int) -> int:
    """Depth of the pipeline that keys come through: what the queries leave room for."""
    return 3 if query_tile(queries) * head_dim * itemsize <= _QUERY_BYTES // 4 else 2


def query_tile(queries: int) -> int:
    """Queries that a program has room for."""
    return max(16, triton.next_power_of_2(queries))
