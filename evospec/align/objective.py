"""What a step of alignment minimises, over a batch of traces."""

from __future__ import annotations

import torch
from torch import Tensor

from evospec.align.batch import TraceBatch
from evospec.align.forward import draft_states
from evospec.align.loss import alignment_loss, candidate_ids
from evospec.align.weighing import PositionWeights
from evospec.config import AlignmentConfig
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables


class Objective:
    """The loss that a config describes.

    Args:
        drafter: gives every weight that is not trained, float32.
        core_ids: token ids scored in every batch [core].
    """

    __slots__ = ("_config", "_core_ids", "_drafter", "_tables", "_weighing")

    def __init__(
        self, config: AlignmentConfig, drafter: Drafter, tables: TokenTables, core_ids: Tensor
    ) -> None:
        self._config = config
        self._drafter = drafter
        self._tables = tables
        self._core_ids = core_ids
        self._weighing = PositionWeights.of(config)

    def loss(self, weights: dict[str, Tensor], batch: TraceBatch) -> Tensor:
        """In nats, a scalar; differentiable in the weights, which are given by parameter name.

        Raises:
            ValueError: no position of the batch counts.
        """
        states = draft_states(self._drafter, weights, self._tables, batch, self._config.test_time_steps)
        candidates, head = self._scored_rows(batch)
        counted = batch.scored
        # The first position of a window is never drafted inside it.
        if self._config.positions == "wrong" and batch.wrong[:, 1:].any():
            counted = batch.wrong
        # Logits over all rows are what makes that baseline dear: there it stays as it is usually done.
        frugal = self._config.loss_rows == "active"
        return alignment_loss(states, batch, head, candidates, self._weighing, counted, frugal=frugal)

    def _scored_rows(self, batch: TraceBatch) -> tuple[Tensor, Tensor]:
        """Token ids, rising, and head rows [candidates, hidden] of what the loss scores."""
        head = self._tables.head
        if self._config.loss_rows == "vocabulary":
            return torch.arange(len(head), device=head.device), head.float()
        candidates = candidate_ids(self._core_ids, batch)
        return candidates, head[candidates].float()
