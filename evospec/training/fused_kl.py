"""Forward KL from target to drafter over the whole vocabulary, without keeping logits.

The head is frozen, so the gradient with respect to the drafter's hidden state h is
known in closed form: KL(p || softmax(W h)) has gradient W^T (softmax(W h) - p).
Loss and gradient are computed some roots at a time in the forward pass; only
tensors as wide as the hidden state outlive it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# (target logits, which of them, drafter logits, weights) -> (weighted losses, logit gradients, matches)
Terms = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class KLResult(NamedTuple):
    """`losses`: weighted sum per draft step, float32 [steps]; `matches`: whether the drafter's best
    token is the target's, bool [steps, roots]."""

    losses: Tensor
    matches: Tensor


def kl_terms(
    target_logits: Tensor, decided: Tensor, drafter_logits: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """KL(p || q) per root, its gradient to the drafter's logits, and whether the argmaxes agree.

    Args:
        target_logits: [positions, vocab].
        decided: the position that each root is measured by [roots].
        drafter_logits: [roots, vocab].
        weights: of each root in the loss, float32 [roots].

    Returns:
        Weighted losses [roots], weighted gradients [roots, vocab] in the logits' type, matches [roots].
    """
    target = target_logits[decided].float()
    drafter = drafter_logits.float()
    log_p = torch.log_softmax(target, dim=-1)
    log_q = torch.log_softmax(drafter, dim=-1)
    p = log_p.exp()
    losses = (p * (log_p - log_q)).sum(dim=-1) * weights
    gradients = ((log_q.exp() - p) * weights[:, None]).to(drafter_logits.dtype)
    matches = target.argmax(dim=-1) == drafter.argmax(dim=-1)
    return losses, gradients, matches


class _FusedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        drafts: Tensor,
        target: Tensor,
        decided: Tensor,
        head: Tensor,
        weights: Tensor,
        roots_at_once: int,
        terms: Terms,
    ) -> tuple[Tensor, Tensor]:
        steps, roots, _ = drafts.shape
        losses = torch.zeros(steps, dtype=torch.float32, device=drafts.device)
        matches = torch.zeros(steps, roots, dtype=torch.bool, device=drafts.device)
        gradients = torch.empty_like(drafts)
        for first in range(0, roots, roots_at_once):
            part = slice(first, min(first + roots_at_once, roots))
            # Neighbouring roots share positions: each position's logits are computed once a part.
            places = decided[part] + torch.arange(steps, device=decided.device)[:, None]  # [steps, part]
            shared, local = torch.unique(places, return_inverse=True)
            target_logits = target[shared] @ head.T  # [positions, vocab]
            for step in range(steps):
                drafter_logits = drafts[step, part] @ head.T  # [part, vocab]
                loss, gradient, match = terms(target_logits, local[step], drafter_logits, weights[step, part])
                losses[step] += loss.sum()
                matches[step, part] = match
                gradients[step, part] = gradient @ head
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(matches)
        return losses, matches

    @staticmethod
    def backward(
        ctx: Any, loss_gradient: Tensor, _: Tensor
    ) -> tuple[Tensor, None, None, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        scaled = gradients * loss_gradient[:, None, None].to(gradients.dtype)
        return scaled, None, None, None, None, None, None


def fused_kl(
    drafts: Tensor,
    target: Tensor,
    decided: Tensor,
    head: Tensor,
    weights: Tensor,
    *,
    roots_at_once: int,
    terms: Terms = kl_terms,
) -> KLResult:
    """Weighted forward KL of all draft steps.

    Args:
        drafts: the drafter's normed hidden states at the roots [steps, roots, hidden].
        target: the target's last hidden states, flat [positions, hidden].
        decided: position where the target decides what step 0 of each root drafts; step j is
            decided j positions later [roots].
        head: LM head rows [vocab, hidden], frozen.
        weights: of each root and step, float32 [steps, roots]; 0 leaves it out.
        roots_at_once: roots whose logits exist at one time.
        terms: `kl_terms`, or a compiled form of it.
    """
    losses, matches = _FusedKL.apply(drafts, target, decided, head, weights, roots_at_once, terms)
    return KLResult(losses, matches)
