"""A matrix product whose weight seldom changes, laid out for the processor once."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from torch.nn.functional import linear

from evospec.models.row_choice import RowChoice

_PACKED_FOR = 8  # rows that the packed layout is chosen for; others are right, too


class Projection:
    """states @ weight.T + bias. Whoever writes into the weight calls `refresh`.

    On CPUs that compute in bfloat16, PyTorch's own `linear` brings the weight into oneDNN's
    layout at every call, which at few rows costs more than the product; in float32 it goes by another
    library, which takes twice as long for the rows of a draft. Here the weight is laid out once, as
    `torch.compile` does it, for a second copy of it.

    Attributes:
        stack: all variants of the weight [variants, outputs, inputs].
        weight: the first of them.
        choice: which variant each row of the states goes through; None: all the first.
    """

    __slots__ = ("_packed", "bias", "choice", "stack", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` [outputs, inputs], or a stack of variants; `bias` [outputs]."""
        self.stack = weight if weight.dim() == 3 else weight[None]
        self.weight = self.stack[0]
        self.bias = bias
        self.choice: RowChoice | None = None
        self._packed = [_pack(variant) for variant in self.stack]

    def refresh(self) -> None:
        """Takes over what was written into the weight."""
        self._packed = [_pack(variant) for variant in self.stack]

    def by(self, choice: RowChoice | None) -> Projection:
        """The same weights for states [rows, ..., inputs] that go through the variants chosen."""
        if choice is None or len(self.stack) == 1:
            return self
        chosen = copy(self)
        chosen.choice = choice
        return chosen

    def __call__(self, states: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if self.choice is None:
            return self._product(0, states)
        if states.device.type != "cpu":
            product = chosen_product(states, self.stack, self.choice.variants)
            return product if self.bias is None else product + self.bias
        groups = self.choice.groups
        if len(groups) == 1:
            return self._product(groups[0][0], states)
        out = states.new_empty(*states.shape[:-1], self.weight.shape[0])
        for variant, rows in groups:
            out[rows] = self._product(variant, states[rows])
        return out

    def _product(self, variant: int, states: Tensor) -> Tensor:
        packed = self._packed[variant]
        if packed is None:
            return linear(states, self.stack[variant], self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), packed, self.bias, "none", [], ""
        )
        return product


def chosen_product(states: Tensor, stack: Tensor, choice: Tensor) -> Tensor:
    """states [rows, ..., inputs] times a variant of the weight for each row, without asking the host which.

    One row copies its variant: the weight is moved three times instead of once. More rows go through all
    variants, which costs as many products; `project_many` is a kernel that does not.
    """
    if len(choice) == 1:
        return linear(states, stack.index_select(0, choice)[0])
    products = torch.matmul(states.flatten(0, -2), stack.mT)  # [variants, tokens, outputs]
    by_row = products.unflatten(1, states.shape[:-1])  # [variants, rows, ..., outputs]
    chosen: Tensor = by_row[choice, torch.arange(len(choice), device=choice.device)]
    return chosen


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout; None where that is not to be had, or gains nothing."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    supported = weight.dtype is torch.float32
    if weight.dtype is torch.bfloat16:
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not supported:
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    return packed
