"""A matrix product whose weight seldom changes, laid out for the processor once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

_PACKED_FOR = 8  # rows that the packed layout is chosen for; others are right, too


class Projection:
    """states @ weight.T + bias. Whoever writes into the weight calls `refresh`.

    On CPUs that compute in bfloat16, PyTorch's own `linear` brings the weight into oneDNN's
    layout at every call, which at few rows costs more than the product. Here it is done once,
    as `torch.compile` does it, for a second copy of the weight. The results are the same.
    """

    __slots__ = ("_packed", "bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` [outputs, inputs], `bias` [outputs]."""
        self.weight = weight
        self.bias = bias
        self._packed = _pack(weight)

    def refresh(self) -> None:
        """Takes over what was written into the weight."""
        self._packed = _pack(self.weight)

    def __call__(self, states: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        if self._packed is None:
            return linear(states, self.weight, self.bias)
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), self._packed, self.bias, "none", [], ""
        )
        return packed


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout; None where that is not to be had, or gains nothing."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return None
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    return packed
