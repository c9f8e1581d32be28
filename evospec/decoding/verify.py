"""Verification: which draft tokens stand, and which token follows them.

One pure function over tensors. Its output follows the target's distribution
exactly, whatever the drafter proposed (Leviathan et al., 2211.17192, theorem 3.5;
Chen et al., 2302.01318).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.decoding.sampling import Purpose, SamplingBatch, draw, target_probabilities, uniforms


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens of a batch and how they were proposed.

    Attributes:
        tokens: token ids [rows, length].
        lengths: draft tokens that count per row [rows]; the rest is padding.
        choices: index of each draft token among the active rows [rows, length].
        probabilities: the proposal q over the active rows at each step, float32
            [rows, length, active]; None when every row is greedy.
        row_ids: token id of each active row [active] AS IT WAS when the draft was
            made; None when rows are token ids.
    """

    tokens: Tensor
    lengths: Tensor
    choices: Tensor
    probabilities: Tensor | None = None
    row_ids: Tensor | None = None

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Draft:
        """No draft tokens: plain decoding."""
        tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(tokens, lengths, tokens, torch.zeros(rows, 0, 1, device=device))

    def select(self, rows: Tensor) -> Draft:
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Draft(self.tokens[rows], self.lengths[rows], self.choices[rows], probabilities, self.row_ids)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a cycle emits.

    Attributes:
        accepted: accepted draft tokens per row [rows].
        tokens: accepted draft tokens, then the token the target adds, then padding
            [rows, length + 1]; row r emits tokens[r, : accepted[r] + 1].
    """

    accepted: Tensor
    tokens: Tensor


def verify(draft: Draft, logits: Tensor, sampling: SamplingBatch, first_position: Tensor) -> Verdict:
    """Checks a draft against the target's logits.

    Args:
        logits: the target's, float32 [rows, length + 1, vocab]; entry i decides the
            token at draft place i.
        first_position: position in the request of each row's first draft place [rows].

    Example, greedy: draft (b c d), target's choices (b c x y): accepted 2, tokens (b c x -).
    """
    choices = logits.argmax(dim=-1)  # [rows, length + 1]
    verdict = _verify_greedy(draft, choices)
    if not sampling.sampled_rows:
        return verdict
    rows = torch.tensor(sampling.sampled_rows, device=logits.device)
    sampled = _verify_sampled(draft.select(rows), logits[rows], sampling.select(rows), first_position[rows])
    verdict.accepted[rows] = sampled.accepted
    verdict.tokens[rows] = sampled.tokens
    return verdict


def _verify_greedy(draft: Draft, choices: Tensor) -> Verdict:
    """Longest prefix of the draft that equals the target's choices; choices follow."""
    matches = (draft.tokens == choices[:, :-1]) & _within(draft)
    accepted = matches.long().cumprod(dim=1).sum(dim=1)
    return Verdict(accepted=accepted, tokens=choices.clone())


def _verify_sampled(draft: Draft, logits: Tensor, sampling: SamplingBatch, first_position: Tensor) -> Verdict:
    """Speculative rejection sampling.

    Place i accepts its token d with probability min(1, p_i(d) / q_i(d)). At the first
    rejection the token is drawn from max(0, p_i - q_i), with the WHOLE of q_i
    subtracted; with no rejection, from p after the last draft token.
    """
    rows, length = draft.tokens.shape
    target = target_probabilities(logits, sampling)  # [rows, length + 1, vocab]
    proposal = draft.probabilities
    if proposal is None:
        raise ValueError("sampled rows need the drafter's proposal probabilities")
    place = torch.arange(length + 1, device=logits.device)
    positions = first_position[:, None] + place  # [rows, length + 1]

    p = target[:, :length].gather(-1, draft.tokens[..., None]).squeeze(-1)  # [rows, length]
    q = proposal.gather(-1, draft.choices[..., None]).squeeze(-1)
    threshold = uniforms(sampling.seeds, positions[:, :length], Purpose.ACCEPT)
    stands = (threshold * q.double() < p.double()) & _within(draft)
    accepted = stands.long().cumprod(dim=1).sum(dim=1)  # [rows]

    row = torch.arange(rows, device=logits.device)
    residual = target[row, accepted]  # [rows, vocab]
    if length:
        rejected_at = accepted.clamp(max=length - 1)
        rejected = _scatter(proposal[row, rejected_at], draft.row_ids, target.shape[-1])
        # With every draft token accepted nothing was rejected: the token comes from p itself.
        rejected = rejected * (accepted < draft.lengths)[:, None]
        positive = (residual - rejected).clamp(min=0)
        # Rounding can leave no mass when p equals q; then p itself is the residual's limit.
        residual = torch.where(positive.sum(-1, keepdim=True) > 0, positive, residual)
    extra = draw(residual, uniforms(sampling.seeds, positions[row, accepted][:, None], Purpose.EMIT)[:, 0])

    tokens = torch.cat((draft.tokens, extra[:, None]), dim=1)  # [rows, length + 1]
    tokens[row, accepted] = extra
    return Verdict(accepted=accepted, tokens=tokens)


def _within(draft: Draft) -> Tensor:
    places = torch.arange(draft.tokens.shape[1], device=draft.tokens.device)
    return places < draft.lengths[:, None]


def _scatter(probabilities: Tensor, row_ids: Tensor | None, vocab: int) -> Tensor:
    """Proposal over active rows [..., active] to one over the vocabulary [..., vocab]."""
    if row_ids is None:
        return probabilities
    full = probabilities.new_zeros(*probabilities.shape[:-1], vocab)
    return full.index_copy_(-1, row_ids, probabilities)
