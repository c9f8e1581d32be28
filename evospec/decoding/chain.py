"""Chain drafting: one draft token after the other, each from the drafter's own output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.decoding.choice import Choice, best_choice
from evospec.decoding.draft import Draft, Proposal
from evospec.decoding.sampling import Purpose, SamplingBatch, draw, uniforms
from evospec.models.draft_body import DraftBody
from evospec.models.kv_cache import KVCache, Window
from evospec.models.row_choice import RowChoice
from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadView


@dataclass(frozen=True, slots=True)
class DraftRoot:
    """Where a batch's drafts begin.

    Attributes:
        hidden: output of each row's last confirmed pair [rows, 1, hidden].
        starts: position in the drafter's cache of each row's next pair [rows].
        lengths: draft tokens each row can use [rows].
        drawn: draft tokens each request has drawn so far [rows]. Random numbers are keyed
            by this count, not by position: a position drafted again must not see the
            number that a rejected draft, which may have shaped the vocabulary, has used.
        longest_context: no `starts` is larger, on the host.
        choice: see `DraftBody`.
    """

    hidden: Tensor
    starts: Tensor
    lengths: Tensor
    drawn: Tensor
    longest_context: int
    choice: RowChoice | None = None


class ChainDrafter:
    """Drafts chains over active rows.

    Before drafting, the pairs that the last cycle confirmed are written to the
    drafter's cache from the target's features, over what the draft had left there.
    """

    __slots__ = ("body", "tables")

    def __init__(self, body: DraftBody, tables: TokenTables) -> None:
        self.body = body
        self.tables = tables

    @torch.inference_mode()
    def absorb(
        self,
        features: Tensor,
        tokens: Tensor,
        window: Window,
        cache: KVCache,
        choice: RowChoice | None = None,
    ) -> Tensor:
        """Writes pairs of features [rows, width, taps * hidden] and tokens; returns their output."""
        hidden = self.body.fuse(features, choice)
        return self.body(hidden, self.tables.embed(tokens), window, cache, choice)

    @torch.inference_mode()
    def draft(
        self,
        root: DraftRoot,
        length: int,
        head: HeadView,
        cache: KVCache,
        drawing: SamplingBatch | None = None,
    ) -> Draft:
        """Drafts `length` tokens per row.

        Args:
            drawing: draw the tokens of sampled rows from the drafter's distribution; None takes
                its best tokens.
        """
        # Verification subtracts the proposal token by token: it needs the map as it is now.
        row_ids = head.ids.clone() if head.ids is not None and drawing is not None else None
        starts = root.starts + torch.arange(length, device=root.starts.device)[:, None]  # [length, rows]
        hidden = root.hidden
        chosen: list[Choice] = []
        proposals: list[Tensor] = []
        for step in range(length):
            if drawing is None:
                choice = best_choice(hidden[:, 0], self.body, head, self.tables)
            else:
                logits = head.score(self.body.norm(hidden[:, 0]))  # [rows, active]
                proposals.append(_proposal(logits, drawing))
                number = uniforms(drawing.seeds, (root.drawn + step)[:, None], Purpose.DRAFT)[:, 0]
                choice = Choice.of(draw(proposals[-1], number), head, self.tables)
            chosen.append(choice)
            if step + 1 < length:
                window = Window(0, starts[step], 1, root.longest_context + step + 1)
                hidden = self.body(self.body.carry(hidden), choice.embeddings, window, cache, root.choice)
        tokens = torch.stack([choice.tokens for choice in chosen], dim=1)
        if not proposals:
            return Draft(tokens, root.lengths)
        places = torch.stack([choice.places for choice in chosen], dim=1)
        return Draft(tokens, root.lengths, Proposal(places, torch.stack(proposals, dim=1), row_ids))


def _proposal(logits: Tensor, sampling: SamplingBatch) -> Tensor:
    """q over active rows [rows, active]: softmax at the request's temperature, one-hot when greedy."""
    sampled = torch.softmax(logits / sampling.divisor[:, None], dim=-1)
    certain = torch.zeros_like(sampled).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where(sampling.greedy[:, None], certain, sampled)
