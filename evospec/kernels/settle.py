"""The end of a cycle in one launch, where chains were drafted and every row is greedy.

What `verify`, `ReportLayout.pack` and `BatchState.advance` compute takes some thirty launches for a few
hundred numbers: far more time than the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from evospec.decoding.best import BestTokens
from evospec.decoding.draft import Draft
from evospec.kernels.overlap import await_inputs, overlap

_BLOCK = 1024  # numbers of the features that a program copies
_BLOCK_ALONE = 4096  # at once, where one program copies all of a row's


@triton.jit
def _keep_features(features, kept, row, first_pair, waiting, size, places, BLOCK: tl.constexpr):
    """Copies a row's features behind those that wait, a share of them by each program of the row."""
    count = places * size
    source = features + row * count
    target = kept + (row * waiting + first_pair) * size
    for first in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < count), mask=at < count)


@triton.jit
def _follow(choices, drafts, lengths, row, places, choice_step, PLACES: tl.constexpr):
    """The target's token at each place of a row, and how many draft tokens are the same from the first on."""
    place, nodes = tl.arange(0, PLACES), places - 1
    token = tl.load(choices + (row * places + place) * choice_step, mask=place < places, other=0)
    draft = tl.load(drafts + row * nodes + place, mask=place < nodes, other=0)
    within = (place < nodes) & (place < tl.load(lengths + row))
    accepted = tl.min(tl.where(within & (draft == token), PLACES, place), axis=0)
    return token, accepted.to(tl.int64)


@triton.jit
def _advance(last, cached, remaining, emitted, row, token, accepted, PLACES: tl.constexpr):
    """Counts a row's tokens, says how many it emits, and keeps the last one."""
    left, length = tl.load(remaining + row), tl.load(cached + row)
    count = tl.minimum(accepted + 1, left)
    # No warp may write what another has yet to read.
    tl.debug_barrier()
    tl.store(last + row, tl.sum(tl.where(tl.arange(0, PLACES) == accepted, token, 0), axis=0))
    tl.store(cached + row, length + count)
    tl.store(remaining + row, left - count)
    tl.store(emitted + row, count)
    return count


@triton.jit
def _write_best(
    line,
    ids,
    scores,
    totals,
    first,
    places,
    id_step,
    score_step,
    total_step,
    BEST: tl.constexpr,
    TRACED: tl.constexpr,
    PLACES: tl.constexpr,
    RANKS: tl.constexpr,
):
    """Writes the best tokens of a row's places, then log-probabilities as bits of float64."""
    place, rank = tl.arange(0, PLACES)[:, None], tl.arange(0, RANKS)[None, :]
    real = (place < places) & (rank < BEST)
    token = tl.load(ids + (first + place) * id_step + rank, mask=real)
    tl.store(line + place * BEST + rank, token, mask=real)
    if TRACED:
        real = (place < places) & (rank < TRACED)
        score = tl.load(scores + (first + place) * score_step + rank, mask=real, other=0.0)
        total = tl.load(totals + (first + place) * total_step, mask=place < places, other=0.0)
        bits = (score - total).to(tl.float64).to(tl.int64, bitcast=True)
        tl.store(line + places * BEST + place * TRACED + rank, bits, mask=real)


@triton.jit
def _settle_kernel(
    choices,
    drafts,
    lengths,
    active,
    ids,
    scores,
    totals,
    features,
    last,
    cached,
    remaining,
    pending,
    pending_tokens,
    pending_features,
    variants,
    report,
    emitted,
    places,
    choice_step,
    id_step,
    score_step,
    total_step,
    columns,
    waiting,
    size,
    HAS_ACTIVE: tl.constexpr,
    BEST: tl.constexpr,
    TRACED: tl.constexpr,
    DRAFTED: tl.constexpr,
    CHOSEN: tl.constexpr,
    HAS_FEATURES: tl.constexpr,
    ABSORBED: tl.constexpr,
    PLACES: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    await_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    first_pair = tl.zeros((), tl.int64)
    if HAS_FEATURES:
        if not ABSORBED:
            # Changed below: a row has one program then, see `settle`.
            first_pair = tl.load(pending + row)
        _keep_features(features, pending_features, row, first_pair, waiting, size, places, BLOCK)
    if tl.program_id(1) == tl.num_programs(1) - 1:
        place, inside = tl.arange(0, PLACES), tl.arange(0, PLACES) < places
        token, accepted = _follow(choices, drafts, lengths, row, places, choice_step, PLACES)
        count = _advance(last, cached, remaining, emitted, row, token, accepted, PLACES)
        if HAS_FEATURES:
            tl.store(pending + row, first_pair + count)
            tl.store(pending_tokens + row * waiting + first_pair + place, token, mask=inside)
        line = report + row * columns
        tl.store(line, accepted)
        tl.store(line + 1 + place, token, mask=inside)
        line += 1 + places
        if HAS_ACTIVE:
            tl.store(line + place, tl.load(active + token, mask=inside), mask=inside)
            line += places
        if BEST:
            _write_best(
                line,
                ids,
                scores,
                totals,
                row * places,
                places,
                id_step,
                score_step,
                total_step,
                BEST,
                TRACED,
                PLACES,
                RANKS,
            )
            line += places * (BEST + TRACED)
        if DRAFTED:
            drafted = place < places - 1
            draft = tl.load(drafts + row * (places - 1) + place, mask=drafted)
            tl.store(line + place, draft, mask=drafted)
            line += places - 1
        if CHOSEN:
            tl.store(line, tl.load(variants + row))


class RowState(Protocol):
    """What is known of each slot's request, see `BatchState`; rows are the first slots."""

    last: Tensor
    cached: Tensor
    remaining: Tensor
    pending: Tensor
    pending_tokens: Tensor
    pending_features: Tensor
    choice: Tensor


@dataclass(frozen=True, slots=True)
class Reported:
    """Where a report goes and what it holds, see `ReportLayout`.

    Attributes:
        numbers: int64 [rows, columns], contiguous.
        active: see `HeadView`, int64 [vocab]; None: no tokens are held against it.
        best: best tokens of each place.
        traced: so many come with their log-probabilities; at most `best`.
        drafted: whether it has the draft tokens.
        chosen: whether it has the rows' choices.
    """

    numbers: Tensor
    active: Tensor | None
    best: int
    traced: int
    drafted: bool
    chosen: bool


def settle(
    draft: Draft,
    best: BestTokens,
    features: Tensor | None,
    state: RowState,
    reported: Reported,
    *,
    absorbed: bool,
) -> Tensor:
    """Checks a chain, writes the report, and takes the outcome into the state.

    Args:
        draft: a chain; what it was drawn from doesn't matter.
        best: of all places of the pass, with totals if log-probabilities are reported.
        features: to be kept for the drafter [rows, nodes + 1, features]; None leaves what waits as it is.
        absorbed: whether this cycle wrote the pending pairs to the drafter's cache.

    Returns:
        Tokens that each row emits, int64 [rows].

    Raises:
        ValueError: log-probabilities are reported, and there are no totals.
    """
    if reported.traced and best.totals is None:
        raise ValueError("log-probabilities need the totals of the scores")
    rows, places = best.choices.shape
    waiting, size = state.pending_features.shape[1:]
    # Places of all rows, one behind the other: views, as `best_tokens` leaves them.
    choices, ids, scores = best.choices.flatten(), best.ids.flatten(0, 1), best.scores.flatten(0, 1)
    totals = scores if best.totals is None else best.totals.flatten()
    emitted = torch.empty(rows, dtype=torch.int64, device=choices.device)
    # Where the features go depends on what the settling program writes, unless they begin anew: so it is
    # alone then. Else it is the last of its row, and has none to copy.
    spread = absorbed and features is not None
    _settle_kernel[(rows, triton.cdiv(places * size, _BLOCK) + 1 if spread else 1)](
        choices,
        draft.tokens.contiguous(),
        draft.lengths,
        choices if reported.active is None else reported.active,
        ids,
        scores,
        totals,
        scores if features is None else features.contiguous(),
        state.last,
        state.cached,
        state.remaining,
        state.pending,
        state.pending_tokens,
        state.pending_features,
        state.choice,
        reported.numbers,
        emitted,
        places,
        choices.stride(0),
        ids.stride(0),
        scores.stride(0),
        totals.stride(0),
        reported.numbers.shape[1],
        waiting,
        size,
        HAS_ACTIVE=reported.active is not None,
        BEST=reported.best,
        TRACED=reported.traced,
        DRAFTED=reported.drafted,
        CHOSEN=reported.chosen,
        HAS_FEATURES=features is not None,
        ABSORBED=absorbed,
        PLACES=triton.next_power_of_2(places),
        RANKS=triton.next_power_of_2(max(reported.best, 1)),
        BLOCK=_BLOCK if spread else _BLOCK_ALONE,
        num_warps=4,
        **overlap(choices),
    )
    return emitted
