"""The weights of a drafter's linear layers, merged as decoding reads them, in one or more variants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evospec.models.drafter import Drafter
from evospec.models.projection import Projection


class DraftStacks:
    """Projections of stacked variants. The first is the drafter's own: its parameters become views of it;
    the others begin as copies.

    Attributes:
        variants: how many there are.
        by_parameter: the part of each parameter by name [variants, outputs, inputs], to be written to.
    """

    __slots__ = ("by_parameter", "down", "fc", "gate_up", "output", "qkv", "variants")

    def __init__(self, drafter: Drafter, variants: int = 1) -> None:
        self.variants = variants
        self.by_parameter: dict[str, Tensor] = {}
        attention, mlp = drafter.layer.self_attn, drafter.layer.mlp
        names = {module: name for name, module in drafter.named_modules()}

        def stacked(*linears: nn.Linear) -> Projection:
            stack = _stack(linears, variants)
            first = 0
            for linear in linears:
                part = stack[:, first : first + linear.out_features]
                linear.weight.data = part[0]
                self.by_parameter[f"{names[linear]}.weight"] = part
                first += linear.out_features
            return Projection(stack)

        self.fc = stacked(drafter.fc)
        self.qkv = stacked(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = stacked(attention.o_proj)
        self.gate_up = stacked(mlp.gate_proj, mlp.up_proj)
        self.down = stacked(mlp.down_proj)

    def refresh(self) -> None:
        """Takes over what was written into the weights."""
        for projection in (self.fc, self.qkv, self.output, self.gate_up, self.down):
            projection.refresh()


def _stack(linears: tuple[nn.Linear, ...], variants: int) -> Tensor:
    """Their weights merged by rows, so often [variants, outputs, inputs]; one alone stays where it is."""
    weights = [linear.weight.detach() for linear in linears]
    merged = weights[0] if len(weights) == 1 else torch.cat(weights)
    return merged[None] if variants == 1 else merged.repeat(variants, 1, 1)
