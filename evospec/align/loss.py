"""What alignment minimises: KL from the target's top-k, its tail as one bucket, to the drafter.

Nothing here is as wide as the vocabulary: the drafter is scored over candidate rows
of the head alone, which is where the memory of online training goes otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def overlap(logits: Tensor, top_columns: Tensor, top_logprobs: Tensor) -> Tensor:
    """sum_x min(p(x), q(x)): the chance that a sampled draft token is accepted (Leviathan et al.,
    2211.17192).

    p is known by its top-k; what lies outside is one event, which bounds the sum from above,
    for every drafter alike. Arguments as of `topk_tail_kl`, with any leading dimensions; so is what returns.
    """
    p = top_logprobs.exp()  # [..., k]
    q = logits.softmax(dim=-1).gather(-1, top_columns)
    tail = torch.minimum(1 - p.sum(dim=-1), 1 - q.sum(dim=-1)).clamp(min=0)
    return torch.minimum(p, q).sum(dim=-1) + tail


@dataclass(frozen=True, slots=True)
class DraftScores:
    """One draft step at the n positions of a batch that count.

    Attributes:
        counted: which roots these are, bool [rows, roots]; root s is scored at position s + 1 + step.
        states: normed hidden states there [n, hidden].
        head: LM head rows of the candidates [candidates, hidden].
        top_columns: columns of the target's top-k in `logits`, int64 [n, k].
        top_logprobs: theirs [n, k].
    """

    step: int
    counted: Tensor
    states: Tensor
    head: Tensor
    top_columns: Tensor
    top_logprobs: Tensor

    @property
    def logits(self) -> Tensor:
        """Over the candidates [n, candidates]; computed anew each time, since they are what is large."""
        return self.states @ self.head.T

    def kl(self) -> Tensor:
        """In nats [n]."""
        return topk_tail_kl(self.logits, self.top_columns, self.top_logprobs)

    def at(self, values: Tensor) -> Tensor:
        """What stands at the scored positions [n, ...] of values by position [rows, width, ...]."""
        first = self.step + 1
        return values[:, first : first + self.counted.shape[1]][self.counted]


Weighing = Callable[[Sequence[DraftScores], TraceBatch, Tensor], list[Tensor]]
"""Weights of the positions of each draft step, [n] each, from scores, batch and candidates."""


def decayed(scores: Sequence[DraftScores], batch: TraceBatch, candidates: Tensor) -> list[Tensor]:
    """STEP_DECAY^j for all positions of step j."""
    return [torch.full_like(one.top_logprobs[:, 0], STEP_DECAY**one.step) for one in scores]


def draft_scores(
    states: Sequence[Tensor], batch: TraceBatch, head: Tensor, candidates: Tensor, counted: Tensor
) -> list[DraftScores]:
    """Scores of each draft step that has a position to count; arguments as of `alignment_loss`."""
    columns = torch.searchsorted(candidates, batch.top_ids)  # [rows, width, k]
    scores = []
    for step, hidden in enumerate(states):
        here = counted[:, step + 1 :]  # [rows, roots]
        if here.any():
            roots = here.shape[1]
            top_columns, top_logprobs = columns[:, step + 1 :], batch.top_logprobs[:, step + 1 :]
            at_roots = hidden[:, :roots]
            scores.append(
                DraftScores(step, here, at_roots[here], head, top_columns[here], top_logprobs[here])
            )
    return scores


def alignment_loss(
    states: Sequence[Tensor],
    batch: TraceBatch,
    head: Tensor,
    candidates: Tensor,
    weighing: Weighing = decayed,
    counted: Tensor | None = None,
    *,
    frugal: bool = True,
) -> Tensor:
    """Weighted KL: the mean over a step's positions of weight * KL, summed over draft steps, by the same
    sum of the weights alone.

    Step j of root s predicts token s + 2 + j, whose distribution stands at position
    s + 1 + j. It counts when that position is scored (its token was generated) and inside
    the window, as then are all tokens and features that the draft has read.

    Args:
        states: normed hidden states of each draft step, as `unroll` yields them, [rows, width, hidden].
        head: LM head rows of the candidates [candidates, hidden].
        candidates: their token ids, rising, among them all top ids of the batch [candidates].
        counted: scored positions that count, bool [rows, width]; None: all.
        frugal: compute logits again in the backward pass, so that those of one draft step at a time are
            held.

    Returns:
        Scalar, in nats.

    Raises:
        ValueError: no position of the batch counts.
    """
    scores = draft_scores(states, batch, head, candidates, batch.scored if counted is None else counted)
    if not scores:
        raise ValueError("no scored position in this batch: admission should have refused its traces")
    weights = weighing(scores, batch, candidates)
    losses = []
    for one, weight in zip(scores, weights, strict=True):
        kl: Tensor = checkpoint(one.kl, use_reentrant=False, preserve_rng_state=False) if frugal else one.kl()
        losses.append((weight * kl).mean())
    return torch.stack(losses).sum() / torch.stack([weight.mean() for weight in weights]).sum()
