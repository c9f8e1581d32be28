"""Distance of two distributions over a vocabulary: softmax, loss and gradient of a root in two reads of its
logits for the KL divergence, three for the LK loss (the formulas: `evospec.training.fused_kl`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _summary_of_row(row, columns, BLOCK: tl.constexpr):
    """Log-sum-exp and argmax (the lowest index among equals) of one row of logits."""
    column = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, columns, BLOCK):
        inside = first + column < columns
        score = tl.load(row + first + column, mask=inside, other=-float("inf")).to(tl.float32)
        better = score > peak
        highest = tl.maximum(score, peak)
        # Lanes that have seen nothing yet keep a finite reference, so that nothing becomes NaN.
        reference = tl.where(highest == -float("inf"), 0.0, highest)
        total = total * tl.exp(peak - reference) + tl.exp(score - reference)
        where = tl.where(better, first + column, where)
        peak = highest
    best = tl.max(peak)
    total = tl.sum(total * tl.exp(peak - best))
    return best + tl.log(total), tl.min(tl.where(peak == best, where, columns))


@triton.jit
def _summary_kernel(logits, lse, best, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    row_lse, row_best = _summary_of_row(logits + row * columns, columns, BLOCK)
    tl.store(lse + row, row_lse)
    tl.store(best + row, row_best.to(tl.int64))


@triton.jit
def _losses_of_row(drafter_row, target_row, lse_q, lse_p, columns, BLOCK: tl.constexpr):
    """Of one root: KL(p || q), the sum of min(p, q), and the sum of q where it is below p."""
    column = tl.arange(0, BLOCK)
    loss = tl.zeros((BLOCK,), tl.float32)
    accepted = tl.zeros((BLOCK,), tl.float32)
    drawn = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + column < columns
        score = tl.load(drafter_row + first + column, mask=inside, other=-float("inf")).to(tl.float32)
        log_p = tl.load(target_row + first + column, mask=inside, other=-float("inf")).to(tl.float32) - lse_p
        log_q = score - lse_q
        p, q = tl.exp(log_p), tl.exp(log_q)
        loss += tl.where(p > 0.0, p * (log_p - log_q), 0.0)
        accepted += tl.minimum(p, q)
        drawn += tl.where(q < p, q, 0.0)
    return tl.sum(loss), tl.sum(accepted), tl.sum(drawn)


@triton.jit
def _loss_kernel(
    target_logits,
    target_lse,
    target_best,
    decided,
    drafter_logits,
    weights,
    losses,
    matches,
    columns,
    focus,
    FOCUSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    root = tl.program_id(0).to(tl.int64)
    position = tl.load(decided + root)
    weight = tl.load(weights + root)
    drafter_row = drafter_logits + root * columns
    target_row = target_logits + position * columns
    lse_p = tl.load(target_lse + position)
    lse_q, best = _summary_of_row(drafter_row, columns, BLOCK)
    if FOCUSED:
        divergence, accepted, drawn = _losses_of_row(drafter_row, target_row, lse_q, lse_p, columns, BLOCK)
        of_kl = tl.exp(-focus * accepted)
        tl.store(losses + root, (of_kl * divergence + (1.0 - of_kl) * (1.0 - accepted)) * weight)
    column = tl.arange(0, BLOCK)
    loss = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + column < columns
        score = tl.load(drafter_row + first + column, mask=inside, other=0.0)
        log_p = tl.load(target_row + first + column, mask=inside, other=-float("inf")).to(tl.float32) - lse_p
        log_q = score.to(tl.float32) - lse_q
        p, q = tl.exp(log_p), tl.exp(log_q)
        if FOCUSED:
            gradient = of_kl * (q - p) + (1.0 - of_kl) * q * (drawn - tl.where(q < p, 1.0, 0.0))
        else:
            gradient = q - p
            loss += tl.where(p > 0.0, p * (log_p - log_q), 0.0)
        tl.store(drafter_row + first + column, (gradient * weight).to(score.dtype), mask=inside)
    if not FOCUSED:
        tl.store(losses + root, tl.sum(loss) * weight)
    tl.store(matches + root, best == tl.load(target_best + position))


def summarise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp, float32 [rows], and argmax, int64 [rows], of logits [rows, vocab], contiguous."""
    rows, columns = logits.shape
    lse = torch.empty(rows, dtype=torch.float32, device=logits.device)
    best = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _summary_kernel[(rows,)](logits, lse, best, columns, BLOCK=_BLOCK, num_warps=16)
    return lse, best


def loss_gradients(
    target_logits: Tensor,
    target_lse: Tensor,
    target_best: Tensor,
    decided: Tensor,
    drafter_logits: Tensor,
    weights: Tensor,
    focus: float,
) -> tuple[Tensor, Tensor]:
    """Weighted loss of each root [roots], and whether the argmaxes agree, bool [roots].

    The weighted gradient to the drafter's logits takes their place.

    Args:
        target_logits: [positions, vocab], contiguous, with `summarise`'s figures of them.
        decided: the position that each root is measured by, int64 [roots].
        drafter_logits: [roots, vocab], contiguous.
        weights: float32 [roots].
        focus: as in `evospec.training.fused_kl.LossShape`.
    """
    roots, columns = drafter_logits.shape
    losses = torch.empty(roots, dtype=torch.float32, device=drafter_logits.device)
    matches = torch.empty(roots, dtype=torch.bool, device=drafter_logits.device)
    _loss_kernel[(roots,)](
        target_logits,
        target_lse,
        target_best,
        decided.contiguous(),
        drafter_logits,
        weights.contiguous(),
        losses,
        matches,
        columns,
        focus,
        FOCUSED=focus > 0,
        BLOCK=_BLOCK,
        num_warps=16,
    )
    return losses, matches
