"""A draft step's token: a norm, the product with the head's rows, the best of them, and its embedding.

Logits never reach global memory: a program scores a few rows of the head and leaves its best one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.kernels.overlap import await_inputs, overlap, step_bytes
from evospec.kernels.products import held_tiles, multiplied, norm_factor, scaled, tile
from evospec.kernels.tiling import tiling


@triton.jit
def _add_scores(total, squares, states, norm, weights, token, tokens, inputs, at):
    """Adds one step's products and squares to the sums."""
    state = tile(states, token, tokens, inputs, at, inputs)
    wide = state.to(tl.float32)
    squares += wide * wide
    return multiplied(scaled(state, norm, at, inputs), weights, total), squares


@triton.jit
def _score_kernel(
    states,
    norm,
    head,
    padding,
    tops,
    places,
    tokens,
    rows,
    inputs,
    tiles,
    eps,
    HAS_PADDING: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    HELD: tl.constexpr,
    STEPS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    step_inputs: tl.constexpr = PARTS * PART
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    column = (tl.arange(0, PARTS)[:, None] * PART + tl.arange(0, PART)[None, :])[:, None, :]
    held = held_tiles(head, row, rows, inputs, column, inputs, HELD, step_inputs)
    await_inputs(OVERLAPS)
    total = tl.zeros((PARTS, TOKENS, ROWS), tl.float32)
    squares = tl.zeros((PARTS, TOKENS, PART), tl.float32)
    for step in tl.static_range(HELD):
        total, squares = _add_scores(
            total, squares, states, norm, held[step], token, tokens, inputs, step * step_inputs + column
        )
    if HELD < STEPS:
        for first in range(HELD * step_inputs, inputs, step_inputs):
            at = first + column
            weights = tile(head, row, rows, inputs, at, inputs)
            total, squares = _add_scores(total, squares, states, norm, weights, token, tokens, inputs, at)
    score = tl.sum(total, axis=0) * norm_factor(squares, inputs, eps)  # [TOKENS, ROWS]
    offset = tl.where(row < rows, 0.0, -float("inf"))
    if HAS_PADDING:
        offset += tl.load(padding + row, mask=row < rows, other=0.0)
    score += offset[None, :]
    top = tl.max(score, axis=1)
    place = tl.min(tl.where(score == top[:, None], row[None, :], rows), axis=1)
    cell = token * tiles + tl.program_id(0)
    tl.store(tops + cell, top, mask=token < tokens)
    tl.store(places + cell, place, mask=token < tokens)


@triton.jit
def _choose_kernel(
    tops,
    places,
    ids,
    embedding,
    chosen,
    embedded,
    tokens,
    rows,
    tiles,
    columns,
    scale,
    HAS_IDS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    token = tl.program_id(0)
    cell = tl.arange(0, TILES)
    top = tl.load(tops + token * tiles + cell, mask=cell < tiles, other=-float("inf"))
    place = tl.load(places + token * tiles + cell, mask=cell < tiles, other=rows)
    # The lowest row among equals, as argmax gives.
    row = tl.min(tl.where(top == tl.max(top, axis=0), place, rows), axis=0).to(tl.int64)
    word = row
    if HAS_IDS:
        word = tl.load(ids + row)
    tl.store(chosen + token, row)
    tl.store(chosen + tokens + token, word)
    column = tl.arange(0, BLOCK)
    vector = tl.load(embedding + word * columns + column, mask=column < columns, other=0.0)
    scaled_up = (vector.to(tl.float32) * scale).to(vector.dtype)
    tl.store(embedded + token * columns + column, scaled_up, mask=column < columns)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The best row of the head for each token's state.

    Attributes:
        rows: its index, int64 [tokens].
        words: the token that it stands for, int64 [tokens].
        embeddings: of those [tokens, embedding columns].
    """

    rows: Tensor
    words: Tensor
    embeddings: Tensor


def choose(
    states: Tensor,
    norm: Tensor,
    eps: float,
    head: Tensor,
    *,
    padding: Tensor | None,
    ids: Tensor | None,
    embedding: Tensor,
    scale: float = 1.0,
) -> Chosen:
    """The rows with the largest scores norm(states) @ head.T + padding, the first among equals.

    Args:
        states: [tokens, inputs], `MOST_TOKENS` at most; norm: of a root-mean-square norm [inputs].
        head: [rows, inputs], contiguous.
        padding: added to the rows' scores, float32 [rows].
        ids: token of each row, int64 [rows]; None: row i is token i.
        embedding: [vocab, columns], contiguous; rows of it are multiplied by `scale`.
    """
    states = states.contiguous()
    tokens, inputs = states.shape
    rows, device = head.shape[0], states.device
    tiles = tiling(rows, inputs, tokens=tokens, itemsize=states.element_size(), shared=step_bytes(states))
    count = triton.cdiv(rows, tiles.rows)
    tops = torch.empty(tokens, count, dtype=torch.float32, device=device)
    places = torch.empty(tokens, count, dtype=torch.int32, device=device)
    _score_kernel[(count,)](
        states,
        norm,
        head,
        tops if padding is None else padding,
        tops,
        places,
        tokens,
        rows,
        inputs,
        count,
        eps,
        HAS_PADDING=padding is not None,
        TOKENS=triton.next_power_of_2(tokens),
        ROWS=tiles.rows,
        PARTS=tiles.parts,
        PART=tiles.part,
        num_warps=tiles.parts,
        HELD=tiles.held,
        STEPS=tiles.steps,
        num_stages=tiles.steps_ahead + 1,
        **overlap(states),
    )
    chosen = torch.empty(2, tokens, dtype=torch.int64, device=device)
    columns = embedding.shape[1]
    embedded = torch.empty(tokens, columns, dtype=embedding.dtype, device=device)
    _choose_kernel[(tokens,)](
        tops,
        places,
        chosen if ids is None else ids,
        embedding,
        chosen,
        embedded,
        tokens,
        rows,
        count,
        columns,
        scale,
        HAS_IDS=ids is not None,
        TILES=triton.next_power_of_2(count),
        BLOCK=triton.next_power_of_2(columns),
        num_warps=4,
        **overlap(states),
    )
    return Chosen(chosen[0], chosen[1], embedded)
