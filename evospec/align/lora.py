"""The trained part: LoRA matrices on the linear layers of a drafter's decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evospec.errors import WireError
from evospec.models.adapter import LORA_A, LORA_B, AdapterWeights, adapted_linears, delta_limits
from evospec.models.drafter import Drafter


def _trained_linears(drafter: Drafter) -> dict[str, nn.Linear]:
    """All linear layers but the fusion of target features.

    Its inputs are raw hidden states, in which a few dimensions are orders of magnitude
    above the rest: a random A would see little but those.
    """
    return {name: linear for name, linear in adapted_linears(drafter).items() if name != "fc"}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A [rank, in] and B [out, rank]; the delta is scale * B @ A."""

    a: nn.Parameter
    b: nn.Parameter


class Lora:
    """Trainable deltas of a frozen drafter (Hu et al., 2106.09685).

    A starts random and B zero, so training starts at the base. The scale alpha / rank
    is folded into B wherever weights leave this class.

    This is one way to adapt; what a trainer needs of any is `named_parameters`,
    `merged`, `export` and `load`.
    """

    def __init__(self, drafter: Drafter, rank: int, alpha: float, seed: int) -> None:
        self._base = drafter
        self._scale = alpha / rank
        self._seed = seed
        self._pairs: dict[str, LoraPair] = {}
        for name, linear in _trained_linears(drafter).items():
            outputs, inputs = linear.weight.shape
            self._pairs[name] = LoraPair(
                a=nn.Parameter(linear.weight.new_empty(rank, inputs)),
                b=nn.Parameter(linear.weight.new_empty(outputs, rank)),
            )
        self.reset()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """By the name of the exported tensor, in an order that never changes."""
        parameters: dict[str, nn.Parameter] = {}
        for name, pair in self._pairs.items():
            parameters[name + LORA_A] = pair.a
            parameters[name + LORA_B] = pair.b
        return parameters

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the base: A as the seed gives it, uniform in ±1/sqrt(in), and B zero."""
        generator = torch.Generator().manual_seed(self._seed)
        for pair in self._pairs.values():
            bound = pair.a.shape[1] ** -0.5
            pair.a.copy_(torch.empty(pair.a.shape).uniform_(-bound, bound, generator=generator))
            pair.b.zero_()

    def merged(self) -> dict[str, Tensor]:
        """Weights `<linear>.weight` with the deltas added, differentiable in A and B."""
        linears = _trained_linears(self._base)
        return {
            f"{name}.weight": linears[name].weight + (self._scale * pair.b) @ pair.a
            for name, pair in self._pairs.items()
        }

    def export(self, version: int) -> AdapterWeights:
        tensors: dict[str, Tensor] = {}
        for name, pair in self._pairs.items():
            tensors[name + LORA_A] = pair.a.detach().cpu().clone()
            tensors[name + LORA_B] = (self._scale * pair.b.detach()).cpu()
        return AdapterWeights(version, tensors)

    @torch.no_grad()
    def load(self, adapter: AdapterWeights) -> None:
        """Continues from an exported adapter; linears it does not name start at the base.

        Raises:
            WireError: it does not fit the drafter, is absurdly large, has another rank or adapts a
                layer that is not trained here. Nothing is changed then.
        """
        adapter.check(self._base)
        adapter.check_norms(delta_limits(self._base))
        names = adapter.linear_names()
        if untrained := sorted(set(names) - self._pairs.keys()):
            raise WireError(
                f"adapter version {adapter.version} adapts {untrained[0]}, which this aligner does not "
                "train: start from version 0"
            )
        for name in names:
            rank, expected = adapter.tensors[name + LORA_A].shape[0], self._pairs[name].a.shape[0]
            if rank != expected:
                raise WireError(
                    f"adapter version {adapter.version} has rank {rank}, this aligner trains "
                    f"rank {expected}: set alignment.rank to {rank}, or start from version 0"
                )
        self.reset()
        for name in names:
            self._pairs[name].a.copy_(adapter.tensors[name + LORA_A])
            self._pairs[name].b.copy_(adapter.tensors[name + LORA_B] / self._scale)


def merge_adapter(drafter: Drafter, adapter: AdapterWeights) -> dict[str, Tensor]:
    """Weights `<linear>.weight` of the drafter's base with an adapter's deltas added."""
    linears = adapted_linears(drafter)
    merged: dict[str, Tensor] = {}
    for name in adapter.linear_names():
        weight = linears[name].weight
        a, b = (adapter.tensors[name + suffix].to(weight.device) for suffix in (LORA_A, LORA_B))
        merged[f"{name}.weight"] = weight + (b @ a).to(weight.dtype)
    return merged
