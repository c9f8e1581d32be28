"""Chain drafting: one draft token after the other, each from the drafter's own output."""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.decoding.sampling import Purpose, SamplingBatch, draw, uniforms
from evospec.decoding.verify import Draft
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import KVCache, Window
from evospec.models.tables import TokenTables
from evospec.vocab.active import HeadView


class ChainDrafter:
    """Drafts chains over active rows.

    Before drafting, the pairs that the last cycle confirmed are written to the
    drafter's cache from the target's features, over what the draft had left there.
    """

    __slots__ = ("drafter", "tables")

    def __init__(self, drafter: Drafter, tables: TokenTables) -> None:
        self.drafter = drafter
        self.tables = tables

    @torch.inference_mode()
    def absorb(self, features: Tensor, tokens: Tensor, window: Window, cache: KVCache) -> Tensor:
        """Writes pairs of features [rows, width, taps * hidden] and tokens; returns their output."""
        return self.drafter(self.drafter.fuse(features), self.tables.embed(tokens), window, cache)

    @torch.inference_mode()
    def draft(
        self,
        hidden: Tensor,
        starts: Tensor,
        lengths: Tensor,
        longest_draft: int,
        head: HeadView,
        sampling: SamplingBatch,
        drawn: Tensor,
        cache: KVCache,
        longest_context: int,
    ) -> Draft:
        """Drafts `longest_draft` tokens per row, of which `lengths` count.

        Args:
            hidden: output of each row's last confirmed pair [rows, 1, hidden].
            starts: position in the drafter's cache of each row's next pair [rows].
            drawn: draft tokens each request has drawn so far [rows]. Random numbers are keyed
                by this count, not by position: a position drafted again must not see the
                number that a rejected draft, which may have shaped the vocabulary, has used.
            lengths: draft tokens each row can use [rows]; longest_draft is the largest, on the host.
            longest_context: the largest of `starts`, on the host.
        """
        snapshot = head.ids.clone() if head.ids is not None and sampling.sampled_rows else head.ids
        tokens: list[Tensor] = []
        proposals: list[Tensor] = []
        choices: list[Tensor] = []
        for step in range(longest_draft):
            logits = (self.drafter.norm(hidden[:, 0]) @ head.rows.T).float()  # [rows, active]
            choice = logits.argmax(dim=-1)  # [rows]
            if sampling.sampled_rows:
                proposal = _proposal(logits, choice, sampling)
                proposals.append(proposal)
                number = uniforms(sampling.seeds, (drawn + step)[:, None], Purpose.DRAFT)[:, 0]
                choice = draw(proposal, number)
            choices.append(choice)
            token = head.to_token_ids(choice)
            tokens.append(token)
            if step + 1 < longest_draft:
                window = Window(0, starts + step, 1, longest_context + step + 1)
                hidden = self.drafter(hidden, self.tables.embed(token[:, None]), window, cache)
        return Draft(
            tokens=torch.stack(tokens, dim=1),
            lengths=lengths,
            choices=torch.stack(choices, dim=1),
            probabilities=torch.stack(proposals, dim=1) if proposals else None,
            row_ids=snapshot,
        )


def _proposal(logits: Tensor, choice: Tensor, sampling: SamplingBatch) -> Tensor:
    """q over active rows [rows, active]: softmax at the request's temperature, one-hot when greedy."""
    greedy = sampling.temperature == 0
    heat = torch.where(greedy, 1.0, sampling.temperature)[:, None]
    sampled = torch.softmax(logits / heat, dim=-1)
    certain = torch.zeros_like(sampled).scatter_(-1, choice[:, None], 1.0)
    return torch.where(greedy[:, None], certain, sampled)
