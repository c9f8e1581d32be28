"""Which positions a step dwells on, by how hard they are and how good the drafter has become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evospec.align.batch import TraceBatch
from evospec.align.loss import DraftScores

REST = 0.1  # weight of positions that a curriculum leaves for later
_MEMORY = 0.9  # of the drafter's competence, per step
Order = Literal["competence", "hard-first"]


@dataclass(frozen=True, slots=True)
class Judged:
    """Positions of one draft step [n]: difficulty from 0 to 1, and whether the drafter is right there."""

    difficulty: Tensor
    right: Tensor


@torch.no_grad()
def judge_positions(scores: DraftScores, batch: TraceBatch, candidates: Tensor, deepest: int) -> Judged:
    """Difficulty of a draft step's positions: the mean of four signs, from 0 to 1 each.

    They are the depth of the draft, the entropy of the target, the rank of the target's token under
    the drafter (on a logarithmic scale), and whether drafting broke off there in service.

    Args:
        deepest: the last draft step.
    """
    logits = scores.logits
    own = torch.searchsorted(candidates, scores.at(batch.token_ids[:, 1:]))[:, None]  # [n, 1]
    rank = (logits > logits.gather(-1, own)).sum(dim=-1)
    deep = torch.full_like(logits[:, 0], scores.step / max(deepest, 1))
    far = rank.float().log1p() / torch.tensor(len(candidates)).log().item()
    broken = scores.at(batch.wrong).float()
    difficulty = (deep + target_entropy(scores.top_logprobs) + far.clamp(max=1) + broken) / 4
    return Judged(difficulty, rank == 0)


def target_entropy(top_logprobs: Tensor) -> Tensor:
    """Entropy of the target over its top-k and any other token, by its maximum log(k + 1) [n]."""
    p = top_logprobs.exp()  # [n, k]
    tail = (1 - p.sum(dim=-1)).clamp(min=0)
    nats = -(p * top_logprobs).sum(dim=-1) - torch.xlogy(tail, tail)
    return (nats / torch.tensor(p.shape[-1] + 1.0).log().item()).clamp(0, 1)


class Curriculum:
    """Weights of positions: 1 for those that are due, REST for others.

    Due are the easiest positions of a batch, in a share that follows the drafter's competence (after
    Platanios et al., 1903.09848, whose competence follows time): those that it gets right, and `margin`
    more. So what it nearly can comes before what it can't, and the long tail once little else is left.
    `hard-first` takes as many from the other end.
    """

    def __init__(self, order: Order, margin: float) -> None:
        self._order = order
        self._margin = margin
        self._competence: float | None = None

    @property
    def share(self) -> float:
        """Of positions that are due; all before the first step."""
        return 1.0 if self._competence is None else min(1.0, self._competence + self._margin)

    @torch.no_grad()
    def weights(self, scores: Sequence[DraftScores], batch: TraceBatch, candidates: Tensor) -> list[Tensor]:
        """Per draft step [n]; the steps' positions are ranked together."""
        judged = [judge_positions(one, batch, candidates, scores[-1].step) for one in scores]
        self._learn(torch.cat([one.right for one in judged]).float().mean().item())
        hard = torch.cat([one.difficulty for one in judged])  # [positions]
        order = hard.argsort(descending=self._order == "hard-first", stable=True)
        weights = torch.full_like(hard, REST)
        weights[order[: max(1, round(self.share * len(hard)))]] = 1.0
        return list(weights.split([len(one.right) for one in judged]))

    def _learn(self, right: float) -> None:
        known = right if self._competence is None else self._competence
        self._competence = _MEMORY * known + (1 - _MEMORY) * right
