"""What alignment minimises: KL from the target's top-k, its tail as one bucket, to the drafter.

Nothing here is as wide as the vocabulary: the drafter is scored over candidate rows
of the head alone, which is where the memory of online training goes otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evospec.align.batch import TraceBatch

STEP_DECAY = 0.8  # weight of draft step j is 0.8^j (EAGLE-3, 2503.01840)


def candidate_ids(core_ids: Tensor, batch: TraceBatch) -> Tensor:
    """Rows of the head to score: the core, the batch's top tokens and its own tokens.

    Args:
        core_ids: int64 [core].

    Returns:
        Distinct ids in rising order, int64 [candidates].
    """
    return torch.unique(torch.cat((core_ids, batch.top_ids.flatten(), batch.token_ids.flatten())))


def topk_tail_kl(logits: Tensor, top_columns: Tensor, top_logprobs: Tensor) -> Tensor:
    """Forward KL(p || q) over the k + 1 events "top token 1, ..., top token k, any other".

        KL = sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail)
        log q_k    = z_k - logsumexp(z)
        log q_tail = logsumexp(z without the top-k) - logsumexp(z)

    Up to the entropy of p, which no weight changes, that is
    -sum_k p_k log q_k - p_tail log q_tail. Merging events never raises a KL
    divergence, so it bounds the one over all candidates from below; when the top-k are
    all candidates, it is that one. p is scaled to sum to 1, which its rounding broke;
    without candidates beyond the top-k, the tail has no mass.

    Args:
        logits: z, the drafter's logits over the candidates [positions, candidates].
        top_columns: columns of the target's top-k in `logits`, distinct, int64 [positions, k].
        top_logprobs: log p_k, finite [positions, k].

    Returns:
        KL in nats [positions], non-negative.
    """
    normaliser = logits.logsumexp(dim=-1)  # [positions]
    top_mass = top_logprobs.exp().sum(dim=-1)
    has_tail = logits.shape[-1] > top_columns.shape[-1]
    tail_mass = (1 - top_mass).clamp(min=0) if has_tail else torch.zeros_like(top_mass)
    # Only a target whose whole mass lies outside the candidates reaches the bound; it teaches nothing.
    total = (top_mass + tail_mass).clamp(min=torch.finfo(top_mass.dtype).tiny)
    log_p = top_logprobs - total.log()[:, None]
    log_q = logits.gather(-1, top_columns) - normaliser[:, None]
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    if has_tail:
        others = logits.scatter(-1, top_columns, -torch.inf).logsumexp(dim=-1)
        tail = tail_mass / total
        kl = kl + torch.xlogy(tail, tail) - tail * (others - normaliser)
    return kl


def alignment_loss(
    states: Sequence[Tensor],
    batch: TraceBatch,
    head: Tensor,
    candidates: Tensor,
    decay: float = STEP_DECAY,
) -> Tensor:
    """Mean KL per draft step, averaged over the steps with weights decay^j.

    Step j of root s predicts token s + 2 + j, whose distribution stands at position
    s + 1 + j. It counts when that position is scored (its token was generated) and inside
    the window, as then are all tokens and features that the draft has read.

    Args:
        states: normed hidden states of each draft step, as `unroll` yields them, [rows, width, hidden].
        head: LM head rows of the candidates [candidates, hidden].
        candidates: their token ids, rising, among them all top ids of the batch [candidates].

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: no position of the batch counts.
    """
    columns = torch.searchsorted(candidates, batch.top_ids)  # [rows, width, k]
    losses: list[Tensor] = []
    weights: list[float] = []
    for step, hidden in enumerate(states):
        counted = batch.scored[:, step + 1 :]  # [rows, roots]
        if not counted.any():
            break
        roots = batch.width - 1 - step
        logits = hidden[:, :roots][counted] @ head.T  # [positions, candidates]
        kl = topk_tail_kl(logits, columns[:, step + 1 :][counted], batch.top_logprobs[:, step + 1 :][counted])
        losses.append(decay**step * kl.mean())
        weights.append(decay**step)
    if not losses:
        raise ValueError("no scored position in this batch: admission should have refused its traces")
    return torch.stack(losses).sum() / sum(weights)
