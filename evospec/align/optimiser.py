"""AdamW as online training needs it: warmed up from new moments, and handed on to a successor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from evospec.align.training_state import Moments, read_moments, write_moments
from evospec.config import AlignmentConfig


class Optimiser:
    """Moves parameters [by name]; decay is left to the caller (see `Adaptation.pull`).

    The learning rate rises over the first steps: Adam's move every number as far as it lets them, however
    little they know yet.
    """

    __slots__ = ("_adamw", "_config", "_parameters")

    def __init__(self, config: AlignmentConfig, parameters: Mapping[str, nn.Parameter]) -> None:
        self._config = config
        self._parameters = parameters
        self._adamw = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        seen = self._adamw.state.get(next(iter(self._parameters.values())), {})
        made = int(seen["step"]) if seen else 0
        return self._config.learning_rate * min((made + 1) / self._config.warmup_steps, 1.0)

    def clear(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Bounds the gradients' norm; returns what it was."""
        return clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm).item()

    def step(self) -> None:
        """Gradients are let go of: between two steps of one, others of a bank make theirs."""
        self._adamw.param_groups[0]["lr"] = self.rate
        self._adamw.step()
        self.clear()

    def moments(self) -> dict[str, Moments]:
        return read_moments(self._adamw, self._parameters)

    def resume(self, moments: Mapping[str, Moments]) -> None:
        """Goes on with what another one remembered."""
        write_moments(self._adamw, moments, list(self._parameters))
