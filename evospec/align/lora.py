"""Low-rank deltas of a drafter's linear layers, and optionally whole ones of its norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from evospec.align.fusion import column_scale
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import (
    DELTA,
    LORA_A,
    LORA_B,
    Deltas,
    adapted_linears,
    adapted_parameters,
    delta_limits,
)
from evospec.models.drafter import Drafter

FUSION = "fc"
LoraTargets = Literal["layer", "mlp", "fusion-mlp", "all"]
_PREFIXES: Final[Mapping[LoraTargets, tuple[str, ...]]] = {
    "layer": ("layers.",),
    "mlp": ("layers.0.mlp.",),
    "fusion-mlp": (FUSION, "layers.0.mlp."),
    "all": ("",),
}


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What is trained.

    Attributes:
        alpha: the scale is alpha / rank; with `rank_stabilised` alpha / sqrt(rank) (rsLoRA, 2312.03732),
            which keeps gradients as large at high ranks.
        targets: linear layers: the decoder layer's, its MLP's, these and the fusion's, or all.
        norms: weights of norms as well, whole.
    """

    rank: int
    alpha: float
    rank_stabilised: bool = False
    targets: LoraTargets = "layer"
    norms: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    def linears(self, drafter: Drafter) -> dict[str, nn.Linear]:
        prefixes = _PREFIXES[self.targets]
        return {name: one for name, one in adapted_linears(drafter).items() if name.startswith(prefixes)}

    def norm_weights(self, drafter: Drafter) -> dict[str, nn.Parameter]:
        """By parameter name; none unless `norms`."""
        if not self.norms:
            return {}
        return {name: one for name, one in adapted_parameters(drafter).items() if one.dim() == 1}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A [rank, in] and B [out, rank]; the delta is scale * B @ (A * columns).

    `columns` [in] is None where inputs are normed; see `column_scale`.
    """

    a: nn.Parameter
    b: nn.Parameter
    columns: Tensor | None

    @property
    def scaled_a(self) -> Tensor:
        return self.a if self.columns is None else self.a * self.columns


class Lora:
    """Trainable deltas of a frozen drafter (Hu et al., 2106.09685); one of the ways to adapt that
    `evospec.align.adaptation` knows.

    A starts random and B zero, so training starts at the base. All scales are folded into
    A and B wherever weights leave this class.
    """

    def __init__(self, drafter: Drafter, shape: LoraShape, seed: int) -> None:
        self._base = drafter
        self._shape = shape
        self._scale = shape.scale
        self._seed = seed
        self._pairs: dict[str, LoraPair] = {}
        for name, linear in shape.linears(drafter).items():
            outputs, inputs = linear.weight.shape
            self._pairs[name] = LoraPair(
                a=nn.Parameter(linear.weight.new_empty(shape.rank, inputs)),
                b=nn.Parameter(linear.weight.new_empty(outputs, shape.rank)),
                columns=column_scale(linear.weight) if name == FUSION else None,
            )
        self._norms = {
            name: nn.Parameter(torch.zeros_like(weight))
            for name, weight in shape.norm_weights(drafter).items()
        }
        self.reset()

    @property
    def exports_all(self) -> bool:
        return True

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """By the name of the exported tensor, in an order that never changes."""
        parameters: dict[str, nn.Parameter] = {}
        for name, pair in self._pairs.items():
            parameters[name + LORA_A] = pair.a
            parameters[name + LORA_B] = pair.b
        return parameters | {name + DELTA: delta for name, delta in self._norms.items()}

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the base: A as the seed gives it, uniform in ±1/sqrt(in), and B zero."""
        generator = torch.Generator().manual_seed(self._seed)
        for pair in self._pairs.values():
            bound = pair.a.shape[1] ** -0.5
            pair.a.copy_(torch.empty(pair.a.shape).uniform_(-bound, bound, generator=generator))
            pair.b.zero_()
        for delta in self._norms.values():
            delta.zero_()

    @torch.no_grad()
    def pull(self, share: float) -> None:
        """Moves all parameters so far of the way to 0, which is the base."""
        torch._foreach_mul_(list(self.named_parameters().values()), 1 - share)

    def merged(self) -> dict[str, Tensor]:
        """Changed weights by parameter name, differentiable in what is trained."""
        linears = adapted_linears(self._base)
        weights = {
            f"{name}.weight": linears[name].weight + (self._scale * pair.b) @ pair.scaled_a
            for name, pair in self._pairs.items()
        }
        return weights | {name: self._base.get_parameter(name) + delta for name, delta in self._norms.items()}

    @torch.no_grad()
    def export(self, version: int) -> AdapterWeights:
        tensors: dict[str, Tensor] = {}
        for name, pair in self._pairs.items():
            tensors[name + LORA_A] = pair.scaled_a.detach().to("cpu", copy=True)
            tensors[name + LORA_B] = (self._scale * pair.b.detach()).cpu()
        for name, delta in self._norms.items():
            tensors[name + DELTA] = delta.detach().to("cpu", copy=True)
        return AdapterWeights(version, tensors)

    @torch.no_grad()
    def load(self, adapter: AdapterWeights) -> None:
        """Continues from an exported adapter; weights it does not name start at the base.

        Raises:
            WireError: it does not fit the drafter, is absurdly large, has another rank or adapts a
                weight that is not trained here. Nothing is changed then.
        """
        adapter.check(self._base)
        adapter.check_norms(delta_limits(self._base))
        names, whole = adapter.general.linear_names(), adapter.general.whole_deltas()
        if untrained := sorted({*names, *whole} - self._pairs.keys() - self._norms.keys()):
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
            pair = self._pairs[name]
            pair.a.copy_(adapter.tensors[name + LORA_A])
            if pair.columns is not None:
                pair.a.div_(pair.columns)
            pair.b.copy_(adapter.tensors[name + LORA_B] / self._scale)
        for name, delta in whole.items():
            self._norms[name].copy_(delta)


def merge_adapter(drafter: Drafter, adapter: AdapterWeights) -> dict[str, Tensor]:
    """Weights by parameter name, as requests of no kind draft with them: the base with deltas added."""
    return merge_deltas(drafter, adapter.general)


def merge_deltas(drafter: Drafter, deltas: Deltas) -> dict[str, Tensor]:
    """Weights by parameter name: the drafter's base with deltas added."""
    merged: dict[str, Tensor] = {}
    for name, delta in deltas.deltas().items():
        weight = drafter.get_parameter(name)
        merged[name] = weight + delta.to(weight.device).to(weight.dtype)
    return merged
