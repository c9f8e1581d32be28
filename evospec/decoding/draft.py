"""What a drafter proposes: a chain of tokens, or a tree of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DraftTree:
    """How draft tokens hang together. Place 0 is the token before the draft, node i is place i + 1.

    Attributes:
        parents: place that each node continues [rows, nodes].
        depths: distance of each place from place 0 [rows, nodes + 1].
        ancestors: bit b says that place b is an ancestor of this one, or itself [rows, nodes + 1].
        deepest: on the host.
    """

    parents: Tensor
    depths: Tensor
    ancestors: Tensor
    deepest: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the tokens of a chain were drawn from.

    Attributes:
        choices: index of each token among the active rows [rows, nodes].
        probabilities: q over the active rows at each step, float32 [rows, nodes, active].
        row_ids: token id of each active row [active] AS IT WAS when the draft was made; None when rows are
            token ids.
    """

    choices: Tensor
    probabilities: Tensor
    row_ids: Tensor | None


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens of a batch and how they were proposed.

    Attributes:
        tokens: token ids [rows, nodes].
        lengths: how deep a row may accept [rows]; what lies deeper is padding.
        proposal: None when the drafter's best tokens were taken.
        tree: None for a chain.
    """

    tokens: Tensor
    lengths: Tensor
    proposal: Proposal | None = None
    tree: DraftTree | None = None

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Draft:
        """No draft tokens: plain decoding."""
        tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return cls(tokens, torch.zeros(rows, dtype=torch.int64, device=device))

    def clone(self) -> Draft:
        proposal, tree = self.proposal, self.tree
        return Draft(
            self.tokens.clone(),
            self.lengths.clone(),
            None
            if proposal is None
            else Proposal(
                proposal.choices.clone(),
                proposal.probabilities.clone(),
                None if proposal.row_ids is None else proposal.row_ids.clone(),
            ),
            None
            if tree is None
            else DraftTree(tree.parents.clone(), tree.depths.clone(), tree.ancestors.clone(), tree.deepest),
        )

    def copied_to(self, other: Draft) -> Draft:
        """Overwrites another draft of the same form, and returns that."""
        torch._foreach_copy_(other._tensors(), self._tensors())
        return other

    def _tensors(self) -> list[Tensor]:
        found = [self.tokens, self.lengths]
        if self.proposal is not None:
            found += [self.proposal.choices, self.proposal.probabilities]
            found += [] if self.proposal.row_ids is None else [self.proposal.row_ids]
        if self.tree is not None:
            found += [self.tree.parents, self.tree.depths, self.tree.ancestors]
        return found

    @property
    def depth(self) -> int:
        """Most tokens that can be accepted."""
        return self.tokens.shape[1] if self.tree is None else self.tree.deepest
