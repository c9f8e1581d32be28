"""Tree drafting: the drafter's best continuations, as many as pay, verified in one pass.

EAGLE-2's dynamic trees (Li et al., 2406.16858, section 4): level by level the best
`beam` tokens are expanded by their cumulative log-probability, and the best `nodes`
of all candidates are kept. Tokens are chosen, not drawn: verification needs no
proposal probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.decoding.chain import DraftRoot
from evospec.decoding.draft import Draft, DraftTree
from evospec.models.draft_body import DraftBody
from evospec.models.kv_cache import MOST_PLACES, KVCache, Tree, Window
from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadView

# A child must score below its parent, or it could be kept without it.
_LEAST_COST = 1e-4


@dataclass(frozen=True, slots=True)
class TreeShape:
    """`depth` levels, `beam` tokens expanded on each, `nodes` kept in all."""

    depth: int
    beam: int
    nodes: int

    def __post_init__(self) -> None:
        if self.nodes + 1 > MOST_PLACES or self.depth * self.beam > MOST_PLACES:
            raise ValueError(f"{self} has more places than an ancestor mask has bits ({MOST_PLACES})")
        if self.nodes > self.candidates:
            raise ValueError(f"{self} keeps more nodes than there are candidates ({self.candidates})")

    @property
    def candidates(self) -> int:
        return self.beam + (self.depth - 1) * self.beam**2


@dataclass(slots=True)
class _Pool:
    """All candidates so far: tokens, scores, and the candidate each continues (-1: the root)
    [rows, candidates]."""

    tokens: list[Tensor]
    scores: list[Tensor]
    parents: list[Tensor]
    size: int = 0

    def add(self, tokens: Tensor, scores: Tensor, parents: Tensor) -> int:
        """Adds candidates [rows, n]; returns the index of the first."""
        first, self.size = self.size, self.size + tokens.shape[1]
        self.tokens.append(tokens)
        self.scores.append(scores)
        self.parents.append(parents)
        return first


class TreeDrafter:
    """Drafts trees with an EAGLE-3 drafter."""

    __slots__ = ("body", "tables")

    def __init__(self, body: DraftBody, tables: TokenTables) -> None:
        self.body = body
        self.tables = tables

    @torch.inference_mode()
    def draft(self, root: DraftRoot, shape: TreeShape, head: HeadView, cache: KVCache) -> Draft:
        """Drafts one tree per row."""
        rows, beam = root.hidden.shape[0], shape.beam
        place = torch.arange(beam, device=root.hidden.device)
        best = self._best(root.hidden, head, beam)
        tokens, scores = best.tokens[:, 0], best.costs[:, 0]  # [rows, beam]
        pool = _Pool([], [], [])
        first = pool.add(tokens, scores, torch.full_like(tokens, -1))
        candidates = (first + place).expand(rows, -1)
        hidden = root.hidden.expand(-1, beam, -1)  # what each token of the level reads
        bits = (1 << place).expand(rows, -1)
        for level in range(shape.depth - 1):
            window = Window(
                0,
                root.starts,
                beam,
                root.longest_context + (level + 1) * beam,
                tree=Tree(torch.full_like(tokens, level), bits, level * beam),
            )
            embeddings = self.tables.embed(tokens)
            hidden = self.body(self.body.carry(hidden), embeddings, window, cache, root.choice)
            best = self._best(hidden, head, beam)
            grown = (scores[..., None] + best.costs).flatten(1)  # [rows, beam * beam]
            words = best.tokens.flatten(1)
            first = pool.add(words, grown, candidates.repeat_interleave(beam, dim=1))
            scores, chosen = grown.topk(beam, dim=1)
            tokens, candidates, parent = words.gather(1, chosen), first + chosen, chosen // beam
            hidden = hidden.gather(1, parent[..., None].expand(-1, -1, hidden.shape[-1]))
            bits = bits.gather(1, parent) | (1 << ((level + 1) * beam + place))
        return _assemble(pool, shape, root.lengths)

    def _best(self, hidden: Tensor, head: HeadView, beam: int) -> _Best:
        """The best `beam` tokens after each place [rows, places, beam]."""
        logits = head.score(self.body.norm(hidden))  # [rows, places, active]
        values, choices = logits.topk(beam, dim=-1)
        costs = (values - logits.logsumexp(dim=-1, keepdim=True)).clamp(max=-_LEAST_COST)
        return _Best(head.to_token_ids(choices), costs)


@dataclass(frozen=True, slots=True)
class _Best:
    """Tokens and their log-probabilities [rows, places, beam]."""

    tokens: Tensor
    costs: Tensor


def _assemble(pool: _Pool, shape: TreeShape, lengths: Tensor) -> Draft:
    """Keeps the best candidates; their ancestors are among them, since scores only fall."""
    tokens, scores, parents = (torch.cat(parts, dim=1) for parts in (pool.tokens, pool.scores, pool.parents))
    kept = scores.topk(shape.nodes, dim=1).indices.sort(dim=1).values  # parents before children
    rows, nodes = kept.shape
    place = torch.arange(nodes + 1, device=kept.device)
    # Place of each candidate, shifted by one so that the root's -1 is 0.
    place_of = torch.zeros(rows, pool.size + 1, dtype=torch.int64, device=kept.device)
    place_of.scatter_(1, kept + 1, place[1:].expand(rows, -1))
    above = place_of.gather(1, parents.gather(1, kept) + 1)  # [rows, nodes]

    own = (1 << place).expand(rows, -1)
    lineage = torch.cat((torch.zeros_like(above[:, :1]), above), dim=1)  # the root continues itself
    ancestors = own
    for _ in range(shape.depth):
        ancestors = own | ancestors.gather(1, lineage)
    depths = ((ancestors[..., None] >> place) & 1).sum(dim=-1) - 1
    chosen = tokens.gather(1, kept)
    tree = DraftTree(parents=above, depths=depths, ancestors=ancestors, deepest=shape.depth)
    return Draft(chosen, lengths, tree=tree)
