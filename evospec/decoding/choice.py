"""A draft step's token, and what the next step reads of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evospec.models.draft_body import DraftBody
from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadView

# Rows by states: with more, cuBLAS is faster than a kernel of ours (docs/measurements.md).
_MOST_SCORES = 1 << 18


@dataclass(frozen=True, slots=True)
class Choice:
    """One token per row of a batch.

    Attributes:
        places: index among the rows of the head [rows].
        tokens: [rows].
        embeddings: [rows, 1, hidden].
    """

    places: Tensor
    tokens: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, places: Tensor, head: HeadView, tables: TokenTables) -> Choice:
        """Args: places: chosen rows of the head [rows]."""
        tokens = head.to_token_ids(places)
        return cls(places, tokens, tables.embed(tokens[:, None]))


def best_choice(hidden: Tensor, body: DraftBody, head: HeadView, tables: TokenTables) -> Choice:
    """The best row of the head for each of the drafter's outputs, before its final norm [rows, hidden]."""
    scores = len(hidden) * head.rows.shape[0]
    if not head.plain or scores > _MOST_SCORES or not body.fuses(hidden):
        return Choice.of(head.score(body.norm(hidden)).argmax(dim=-1), head, tables)
    from evospec.kernels.head import choose  # Triton comes with CUDA builds of PyTorch only

    norm = body.output_norm
    chosen = choose(
        hidden,
        norm.weight,
        norm.eps,
        head.rows,
        padding=head.padding,
        ids=head.ids,
        embedding=tables.embedding,
        scale=tables.embedding_scale,
    )
    return Choice(chosen.rows, chosen.words, chosen.embeddings[:, None])
