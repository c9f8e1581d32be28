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
class Draft:
    """Draft tokens of a batch and how they were proposed.

    Attributes:
        tokens: token ids [rows, nodes].
        lengths: how deep a row may accept [rows]; what lies deeper is padding.
        choices: index of each token of a chain among the active rows [rows, nodes].
        probabilities: the proposal q over the active rows at each step of a chain whose tokens
            were drawn from it, float32 [rows, nodes, active]; None when the drafter's best
            tokens were taken.
        row_ids: token id of each active row [active] AS IT WAS when the draft was
            made; None when rows are token ids.
        tree: None for a chain.
    """

    tokens: Tensor
    lengths: Tensor
    choices: Tensor
    probabilities: Tensor | None = None
    row_ids: Tensor | None = None
    tree: DraftTree | None = None

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Draft:
        """No draft tokens: plain decoding."""
        tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(tokens, lengths, tokens)

    @property
    def depth(self) -> int:
        """Most tokens that can be accepted."""
        return self.tokens.shape[1] if self.tree is None else self.tree.deepest
