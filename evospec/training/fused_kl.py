"""Forward KL from target to drafter over the whole vocabulary, without keeping logits.

The head is frozen, so the gradient with respect to the drafter's hidden state h is
known in closed form: KL(p || softmax(W h)) has gradient W^T (softmax(W h) - p).
Loss and gradient are computed document by document in the forward pass; only
tensors as wide as the hidden state outlive it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# (target logits, drafter logits, weights) -> (weighted losses, logit gradients, matches)
Terms = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class KLResult(NamedTuple):
    """`losses`: weighted sum per draft step, float32 [steps]; `matches`: whether the drafter's best
    token is the target's, bool [steps, rows, width]."""

    losses: Tensor
    matches: Tensor


def kl_terms(target_logits: Tensor, drafter_logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p || q) per position, its gradient to the drafter's logits, and whether the argmaxes agree.

    Args:
        target_logits, drafter_logits: [..., vocab].
        weights: of each position in the loss, float32 [...].

    Returns:
        Weighted losses [...], weighted gradients [..., vocab] in the logits' type, matches [...].
    """
    log_p = torch.log_softmax(target_logits.float(), dim=-1)
    log_q = torch.log_softmax(drafter_logits.float(), dim=-1)
    p = log_p.exp()
    losses = (p * (log_p - log_q)).sum(dim=-1) * weights
    gradients = ((log_q.exp() - p) * weights[..., None]).to(drafter_logits.dtype)
    matches = target_logits.argmax(dim=-1) == drafter_logits.argmax(dim=-1)
    return losses, gradients, matches


class _FusedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        drafts: Tensor,
        target: Tensor,
        head: Tensor,
        weights: Tensor,
        rows_at_once: int,
        terms: Terms,
    ) -> tuple[Tensor, Tensor]:
        steps, rows, width, _ = drafts.shape
        losses = torch.zeros(steps, dtype=torch.float32, device=drafts.device)
        matches = torch.zeros(steps, rows, width, dtype=torch.bool, device=drafts.device)
        gradients = torch.empty_like(drafts)
        for first in range(0, rows, rows_at_once):
            part = slice(first, first + rows_at_once)
            target_logits = target[part] @ head.T  # [rows, width + steps, vocab]
            for step in range(steps):
                drafter_logits = drafts[step, part] @ head.T  # [rows, width, vocab]
                decided = target_logits[:, step + 1 : step + 1 + width]
                loss, gradient, match = terms(decided, drafter_logits, weights[step, part])
                losses[step] += loss.sum()
                matches[step, part] = match
                gradients[step, part] = gradient @ head
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(matches)
        return losses, matches

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (
            gradients * loss_gradient[:, None, None, None].to(gradients.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def fused_kl(
    drafts: Tensor,
    target: Tensor,
    head: Tensor,
    weights: Tensor,
    *,
    rows_at_once: int,
    terms: Terms = kl_terms,
) -> KLResult:
    """Weighted forward KL of all draft steps.

    Args:
        drafts: the drafter's normed hidden states, step j at root s predicting token
            s + 2 + j [steps, rows, width, hidden].
        target: the target's last hidden states [rows, width + steps, hidden]; position
            s + 1 + j decides token s + 2 + j.
        head: LM head rows [vocab, hidden], frozen.
        weights: of each root and step, float32 [steps, rows, width]; 0 leaves it out.
        rows_at_once: documents whose logits exist at one time.
        terms: `kl_terms`, or a compiled form of it.
    """
    losses, matches = _FusedKL.apply(drafts, target, head, weights, rows_at_once, terms)
    return KLResult(losses, matches)
