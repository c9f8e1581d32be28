"""The target's best tokens at each place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 128  # tokens whose best one is found before the best blocks are searched


@dataclass(frozen=True, slots=True)
class BestTokens:
    """The k best tokens of each place, best first.

    Attributes:
        choices: the best token; the lowest id among equals, int64 [rows, places].
        ids: int64 [rows, places, k].
        scores: their logits, float32 [rows, places, k].
        totals: log of the sum of all exponentials, float32 [rows, places]; None when nobody asked.
    """

    choices: Tensor
    ids: Tensor
    scores: Tensor
    totals: Tensor | None

    def at(self, places: Tensor) -> BestTokens:
        """Those at some places of each row [rows, n]."""
        wide = places[..., None].expand(-1, -1, self.ids.shape[-1])
        totals = None if self.totals is None else self.totals.gather(1, places)
        choices = self.choices.gather(1, places)
        return BestTokens(choices, self.ids.gather(1, wide), self.scores.gather(1, wide), totals)


def best_tokens(scores: Tensor, k: int, *, totals: bool = False) -> BestTokens:
    """Finds them.

    Args:
        scores: logits of any floating type [rows, places, vocab].
        k: may be 0, which leaves the choices.
        totals: whether they are wanted.
    """
    if scores.is_cuda:
        from evospec.kernels.best import best_scores  # Triton comes with CUDA builds of PyTorch only

        found, ids = best_scores(scores.flatten(0, 1), max(k, 1))
        found, ids = found.unflatten(0, scores.shape[:2]), ids.unflatten(0, scores.shape[:2])
        return BestTokens(ids[..., 0], ids[..., :k], found[..., :k], found[..., -1])
    scores = scores.float()
    ids = _largest(scores, k)
    return BestTokens(
        choices=scores.argmax(dim=-1),
        ids=ids,
        scores=scores.gather(-1, ids),
        totals=scores.logsumexp(dim=-1) if totals else None,
    )


def _largest(scores: Tensor, k: int) -> Tensor:
    """Tokens of the k largest scores [..., k], largest first.

    They lie in the k blocks with the largest maxima, so a large vocabulary is read once and only a
    few blocks are sorted.
    """
    vocab = scores.shape[-1]
    blocks = vocab // _BLOCK
    if blocks <= 2 * k:
        return scores.topk(k, dim=-1).indices
    blocked = scores[..., : blocks * _BLOCK].unflatten(-1, (blocks, _BLOCK))
    chosen = blocked.amax(dim=-1).topk(k, dim=-1).indices  # [..., k]
    tokens = chosen[..., None] * _BLOCK + torch.arange(_BLOCK, device=scores.device)
    tokens = tokens.flatten(-2)  # [..., k * _BLOCK]
    rest = torch.arange(blocks * _BLOCK, vocab, device=scores.device)
    if len(rest):
        tokens = torch.cat((tokens, rest.expand(*tokens.shape[:-1], -1)), dim=-1)
    return tokens.gather(-1, scores.gather(-1, tokens).topk(k, dim=-1).indices)
