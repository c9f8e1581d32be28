"""Verification: which draft tokens stand, and which token follows them.

Pure functions over tensors. Their output follows the target's distribution exactly,
whatever the drafter proposed. Usually the target decides its own token at each place,
by argmax or by a draw of its own, and a draft token stands when it is that token: the
same seed then gives the same text with any drafter, or none. Chains that were drawn
from the drafter's distribution are checked by rejection sampling instead (Leviathan et
al., 2211.17192, theorem 3.5; Chen et al., 2302.01318).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.decoding.draft import Draft, DraftTree, Proposal
from evospec.decoding.sampling import Purpose, SamplingBatch, draw, target_probabilities, uniforms


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a cycle emits.

    Attributes:
        accepted: accepted draft tokens per row [rows].
        tokens: accepted draft tokens, then the token the target adds, then padding
            [rows, depth + 1]; row r emits tokens[r, : accepted[r] + 1].
        places: places of the target's pass that decided them [rows, depth + 1]; None for
            chains, where token j was decided at place j.
    """

    accepted: Tensor
    tokens: Tensor
    places: Tensor | None = None


def verify(
    draft: Draft,
    logits: Tensor,
    sampling: SamplingBatch,
    first_position: Tensor,
    best: Tensor | None = None,
) -> Verdict:
    """Checks a draft against the target's logits.

    Args:
        logits: the target's, of any floating type [rows, nodes + 1, vocab]; entry 0 decides the first
            draft token, entry i + 1 what follows node i.
        first_position: position in the request of each row's first draft token [rows].
        best: the largest logits' tokens [rows, nodes + 1], where they are known already.

    Example, greedy: draft (b c d), target's choices (b c x y): accepted 2, tokens (b c x -).
    """
    best = logits.argmax(dim=-1) if best is None else best
    if draft.proposal is not None and sampling.any_sampled:
        greedy = _follow_chain(draft, best)
        drawn = _reject(draft, draft.proposal, logits.float(), sampling, first_position)
        return Verdict(
            accepted=torch.where(sampling.greedy, greedy.accepted, drawn.accepted),
            tokens=torch.where(sampling.greedy[:, None], greedy.tokens, drawn.tokens),
        )
    depths = torch.arange(logits.shape[1], device=logits.device) if draft.tree is None else draft.tree.depths
    choices = _own_tokens(best, logits, sampling, first_position[:, None] + depths)
    if draft.tree is None:
        return _follow_chain(draft, choices)
    return _follow_tree(draft, draft.tree, choices)


def _own_tokens(best: Tensor, logits: Tensor, sampling: SamplingBatch, positions: Tensor) -> Tensor:
    """What the target decides at each place, whatever was drafted [rows, places]."""
    if not sampling.any_sampled:
        return best
    numbers = uniforms(sampling.seeds, positions, Purpose.EMIT)
    drawn = draw(target_probabilities(logits.float(), sampling), numbers)
    return torch.where(sampling.greedy[:, None], best, drawn)


def _follow_chain(draft: Draft, choices: Tensor) -> Verdict:
    """Longest prefix of the draft that equals the target's choices [rows, length + 1]; choices follow."""
    matches = (draft.tokens == choices[:, :-1]) & _within(draft)
    accepted = matches.long().cumprod(dim=1).sum(dim=1)
    return Verdict(accepted=accepted, tokens=choices)


def _reject(
    draft: Draft, proposal: Proposal, logits: Tensor, sampling: SamplingBatch, first_position: Tensor
) -> Verdict:
    """Speculative rejection sampling; every row is taken to be sampled.

    Place i accepts its token d with probability min(1, p_i(d) / q_i(d)). At the first
    rejection the token is drawn from max(0, p_i - q_i), with the WHOLE of q_i
    subtracted; with no rejection, from p after the last draft token.
    """
    rows, length = draft.tokens.shape
    target = target_probabilities(logits, sampling)  # [rows, length + 1, vocab]
    place = torch.arange(length + 1, device=logits.device)
    positions = first_position[:, None] + place  # [rows, length + 1]

    p = target[:, :length].gather(-1, draft.tokens[..., None]).squeeze(-1)  # [rows, length]
    q = proposal.probabilities.gather(-1, proposal.choices[..., None]).squeeze(-1)
    threshold = uniforms(sampling.seeds, positions[:, :length], Purpose.ACCEPT)
    stands = (threshold * q.double() < p.double()) & _within(draft)
    accepted = stands.long().cumprod(dim=1).sum(dim=1)  # [rows]

    row = torch.arange(rows, device=logits.device)
    residual = target[row, accepted]  # [rows, vocab]
    if length:
        rejected_at = accepted.clamp(max=length - 1)
        rejected = _scatter(proposal.probabilities[row, rejected_at], proposal.row_ids, target.shape[-1])
        # With every draft token accepted nothing was rejected: the token comes from p itself.
        rejected = rejected * (accepted < draft.lengths)[:, None]
        positive = (residual - rejected).clamp(min=0)
        # Rounding can leave no mass when p equals q; then p itself is the residual's limit.
        residual = torch.where(positive.sum(-1, keepdim=True) > 0, positive, residual)
    extra = draw(residual, uniforms(sampling.seeds, positions[row, accepted][:, None], Purpose.EMIT)[:, 0])

    tokens = torch.cat((draft.tokens, extra[:, None]), dim=1)  # [rows, length + 1]
    tokens[row, accepted] = extra
    return Verdict(accepted=accepted, tokens=tokens)


def _follow_tree(draft: Draft, tree: DraftTree, choices: Tensor) -> Verdict:
    """Follows the target's choices [rows, places] down the tree as far as it has them."""
    place = torch.arange(choices.shape[1], device=choices.device)
    borne = draft.tokens == choices.gather(1, tree.parents)  # [rows, nodes]
    borne &= tree.depths[:, 1:] <= draft.lengths[:, None]
    borne_bits = (borne.long() << place[1:]).sum(dim=1) + 1  # place 0 always stands
    stands = (tree.ancestors & ~borne_bits[:, None]) == 0  # [rows, places]
    accepted = (tree.depths * stands).amax(dim=1)

    # Siblings bear different tokens: no two places of one depth stand.
    depth = torch.arange(tree.deepest + 1, device=choices.device)
    at_depth = stands[:, None] & (tree.depths[:, None] == depth[:, None])  # [rows, depth + 1, places]
    places = (at_depth * place).sum(dim=-1)
    return Verdict(accepted=accepted, tokens=choices.gather(1, places), places=places)


def _within(draft: Draft) -> Tensor:
    places = torch.arange(draft.tokens.shape[1], device=draft.tokens.device)
    return places < draft.lengths[:, None]


def _scatter(probabilities: Tensor, row_ids: Tensor | None, vocab: int) -> Tensor:
    """Proposal over active rows [..., active] to one over the vocabulary [..., vocab]."""
    if row_ids is None:
        return probabilities
    full = probabilities.new_zeros(*probabilities.shape[:-1], vocab)
    return full.index_copy_(-1, row_ids, probabilities)
