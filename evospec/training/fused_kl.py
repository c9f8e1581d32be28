"""The distance from drafter to target over the whole vocabulary, without keeping logits.

The head is frozen, so the gradient with respect to the drafter's hidden state h is
known in closed form: KL(p || softmax(W h)) has gradient W^T (softmax(W h) - p).
Loss and gradient are computed some roots at a time in the forward pass; only
tensors as wide as the hidden state outlive it.

What speculative sampling accepts is a = sum min(p, q), one less the total variation distance. Forward KL
bounds it, but pays for all of p alike. The LK loss (2602.23881) turns from one to the other as a root is
learnt:

    loss = m KL(p || q) + (1 - m) (1 - a),   m = exp(-focus a), taken as a constant

    gradient to the logits of q:  m (q - p) + (1 - m) q (A - [q < p]),   A = the sum of q where q < p
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossShape:
    """What the loss makes of a root beside its KL.

    Attributes:
        focus: how soon a root turns from KL to acceptance (the LK loss's eta); 0: all is KL.
        unreached: weight of a draft step, relative to others, at roots where an earlier step is wrong:
            decoding never gets there.
    """

    focus: float = 0.0
    unreached: float = 1.0


PLAIN_KL = LossShape()


class KLResult(NamedTuple):
    """`losses`: weighted sum per draft step, float32 [steps]; `matches`: whether the drafter's best
    token is the target's, bool [steps, roots]."""

    losses: Tensor
    matches: Tensor


class TargetLogits(NamedTuple):
    """`logits` [positions, vocab], their log-sum-exp, float32 [positions], and argmax [positions]."""

    logits: Tensor
    lse: Tensor
    best: Tensor


class RootTerms(NamedTuple):
    """Of each root: weighted loss, float32 [roots]; its gradient to the drafter's logits, in their type
    [roots, vocab]; whether drafter and target agree on the best token, bool [roots]."""

    losses: Tensor
    gradients: Tensor
    matches: Tensor


class KLOps(Protocol):
    """The loss once there are logits."""

    def summarise(self, logits: Tensor) -> TargetLogits:
        """Of the target's logits [positions, vocab]."""
        ...

    def terms(
        self, target: TargetLogits, decided: Tensor, drafter_logits: Tensor, weights: Tensor, focus: float
    ) -> RootTerms:
        """The loss of each root, its gradient, and whether the argmaxes agree.

        Args:
            decided: the position that each root is measured by [roots].
            drafter_logits: [roots, vocab]; may be overwritten.
            weights: of each root in the loss, float32 [roots].
            focus: as in `LossShape`.
        """
        ...


class TorchKL:
    """In plain PyTorch."""

    def summarise(self, logits: Tensor) -> TargetLogits:
        return TargetLogits(logits, torch.logsumexp(logits.float(), dim=-1), logits.argmax(dim=-1))

    def terms(
        self, target: TargetLogits, decided: Tensor, drafter_logits: Tensor, weights: Tensor, focus: float
    ) -> RootTerms:
        log_p = target.logits[decided].float() - target.lse[decided, None]
        log_q = torch.log_softmax(drafter_logits.float(), dim=-1)
        p, q = log_p.exp(), log_q.exp()
        losses, gradients = (p * (log_p - log_q)).sum(dim=-1), q - p
        if focus:
            accepted = torch.minimum(p, q).sum(dim=-1)  # [roots]
            below = q < p
            drawn = (q * below).sum(dim=-1, keepdim=True)
            of_kl = (-focus * accepted).exp()
            losses = of_kl * losses + (1 - of_kl) * (1 - accepted)
            of_kl = of_kl[:, None]
            gradients = of_kl * gradients + (1 - of_kl) * q * (drawn - below.float())
        return RootTerms(
            losses * weights,
            (gradients * weights[:, None]).to(drafter_logits.dtype),
            drafter_logits.argmax(dim=-1) == target.best[decided],
        )


class KernelKL:
    """As fused kernels, for CUDA devices."""

    def summarise(self, logits: Tensor) -> TargetLogits:
        from evospec.kernels.kl import summarise  # Triton comes with CUDA builds of PyTorch only

        return TargetLogits(logits, *summarise(logits))

    def terms(
        self, target: TargetLogits, decided: Tensor, drafter_logits: Tensor, weights: Tensor, focus: float
    ) -> RootTerms:
        from evospec.kernels.kl import loss_gradients

        losses, matches = loss_gradients(
            target.logits, target.lse, target.best, decided, drafter_logits, weights, focus
        )
        return RootTerms(losses, drafter_logits, matches)


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
        shape: LossShape,
        ops: KLOps,
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
            target_logits = ops.summarise(target[shared] @ head.T)  # [positions, vocab]
            reached = torch.ones_like(weights[0, part])
            for step in range(steps):
                drafter_logits = drafts[step, part] @ head.T  # [part, vocab]
                terms = ops.terms(
                    target_logits, local[step], drafter_logits, weights[step, part] * reached, shape.focus
                )
                losses[step] += terms.losses.sum()
                matches[step, part] = terms.matches
                reached = torch.where(terms.matches, reached, shape.unreached)
                torch.mm(terms.gradients, head, out=gradients[step, part])
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(matches)
        return losses, matches

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        scaled = gradients * loss_gradient[:, None, None].to(gradients.dtype)
        return scaled, None, None, None, None, None, None, None


def fused_kl(
    drafts: Tensor,
    target: Tensor,
    decided: Tensor,
    head: Tensor,
    weights: Tensor,
    *,
    roots_at_once: int,
    shape: LossShape = PLAIN_KL,
    ops: KLOps | None = None,
) -> KLResult:
    """Weighted loss of all draft steps: forward KL, or as `shape` says.

    Args:
        drafts: the drafter's normed hidden states at the roots [steps, roots, hidden].
        target: the target's last hidden states, flat [positions, hidden].
        decided: position where the target decides what step 0 of each root drafts; step j is
            decided j positions later [roots].
        head: LM head rows [vocab, hidden], frozen.
        weights: of each root and step, float32 [steps, roots]; 0 leaves it out.
        roots_at_once: roots whose logits exist at one time.
        shape: what counts how much.
        ops: how; plain PyTorch when left out.
    """
    ops = TorchKL() if ops is None else ops
    losses, matches = _FusedKL.apply(drafts, target, decided, head, weights, roots_at_once, shape, ops)
    return KLResult(losses, matches)
