"""How much each position of a batch counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evospec.align.batch import TraceBatch
from evospec.align.curriculum import Curriculum
from evospec.align.loss import DraftScores, decayed, overlap
from evospec.config import AlignmentConfig


@dataclass(frozen=True, slots=True)
class PositionWeights:
    """A `Weighing` for `alignment_loss`: by draft step, times what a curriculum says.

    Attributes:
        reach: weigh a draft step by the chance that drafting gets there, not by its number.
    """

    reach: bool
    curriculum: Curriculum | None

    @classmethod
    def of(cls, config: AlignmentConfig) -> PositionWeights:
        order = config.curriculum
        curriculum = None if order == "uniform" else Curriculum(order, config.curriculum_margin)
        return cls(config.position_weights == "reach", curriculum)

    def __call__(self, scores: Sequence[DraftScores], batch: TraceBatch, candidates: Tensor) -> list[Tensor]:
        weigh = reached if self.reach else decayed
        weights = weigh(scores, batch, candidates)
        if self.curriculum is None:
            return weights
        due = self.curriculum.weights(scores, batch, candidates)
        return [mine * its for mine, its in zip(weights, due, strict=True)]


@torch.no_grad()
def reached(scores: Sequence[DraftScores], batch: TraceBatch, candidates: Tensor) -> list[Tensor]:
    """Chance that all earlier tokens of the draft from the same root are accepted, per step [n].

    A step's gain in acceptance length is in proportion to it. Steps at positions that are not scored,
    before the first generated token, count as accepted: nothing is known of them.
    """
    chance = torch.ones_like(batch.scored, dtype=torch.float32)  # [rows, width], by root
    weights = []
    for one in scores:
        roots = chance[:, : one.counted.shape[1]]
        weights.append(roots[one.counted])
        roots[one.counted] *= accepted_chance(one)
    return weights


def accepted_chance(scores: DraftScores) -> Tensor:
    """That a sampled draft token is accepted [n]; rounding does not lift it above 1."""
    return overlap(scores.logits, scores.top_columns, scores.top_logprobs).clamp(max=1)
