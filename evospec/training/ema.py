"""An exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """Keeps `keep` of the average in each step; less at the beginning, when the average is young.

    The ramp (1 + step) / (10 + step) is TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, module: nn.Module, keep: float) -> None:
        self._module = module
        self._keep = keep
        self.weights = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self._keep, (1 + step) / (10 + step))
        for name, tensor in self._module.named_parameters():
            self.weights[name].lerp_(tensor, 1 - keep)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside, and its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._module.named_parameters():
            own = tensor.clone()
            tensor.copy_(self.weights[name])
            self.weights[name].copy_(own)
