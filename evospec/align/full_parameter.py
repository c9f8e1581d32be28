"""All of a drafter's weights as the trained part, and what of it versions carry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evospec.align.fusion import column_scale
from evospec.align.lora import FUSION
from evospec.align.low_rank import nearest_of_rank
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import DELTA, LORA_A, LORA_B, adapted_parameters, delta_limits
from evospec.models.drafter import Drafter

_FUSION_WEIGHT = f"{FUSION}.weight"


class FullParameters:
    """Linear layers and norms of a drafter, trained whole; what is exported are their deltas, or what of them
    has some rank at most.

    As in online speculative decoding (Liu et al., 2310.07177). Only the fusion is not trained as it is,
    but in units of `column_scale`.

    Args:
        publish_rank: of the deltas of linear layers that are exported; 0: they are whole. Norms always are.
        norms: whether they are trained as well.
    """

    def __init__(self, drafter: Drafter, publish_rank: int = 0, *, norms: bool = True) -> None:
        self._base = {
            name: weight for name, weight in adapted_parameters(drafter).items() if norms or weight.dim() == 2
        }
        self._drafter = drafter
        self._rank = publish_rank
        self._columns = column_scale(drafter.fc.weight)
        self._weights = {name: nn.Parameter(weight.detach().clone()) for name, weight in self._base.items()}
        self.reset()

    @property
    def exports_all(self) -> bool:
        return not self._rank

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {name + DELTA: weight for name, weight in self._weights.items()}

    @torch.no_grad()
    def reset(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._in_units(name, self._base[name]))

    @torch.no_grad()
    def pull(self, share: float) -> None:
        """Moves all weights so far of the way to the base."""
        if not share:
            return
        for name, weight in self._weights.items():
            weight.lerp_(self._in_units(name, self._base[name]), share)

    def merged(self) -> dict[str, Tensor]:
        fusion = {_FUSION_WEIGHT: self._weights[_FUSION_WEIGHT] * self._columns}
        return {**self._weights, **fusion}

    @torch.no_grad()
    def export(self, version: int) -> AdapterWeights:
        merged, tensors = self.merged(), dict[str, Tensor]()
        for name, base in self._base.items():
            delta = merged[name] - base
            cut = self._rank and delta.dim() == 2
            tensors |= self._cut(name, delta) if cut else {name + DELTA: delta.cpu()}
        return AdapterWeights(version, tensors)

    @torch.no_grad()
    def load(self, adapter: AdapterWeights) -> None:
        """Continues from an exported adapter, whatever rank its deltas have.

        Raises:
            WireError: it does not fit the drafter, is absurdly large or adapts a weight that is not trained
                here. Nothing is changed then.
        """
        adapter.check(self._drafter)
        adapter.check_norms(delta_limits(self._drafter))
        deltas = adapter.general.deltas()
        if untrained := sorted(deltas.keys() - self._base.keys()):
            raise WireError(
                f"adapter version {adapter.version} adapts {untrained[0]}, which this aligner does not "
                "train: start from version 0"
            )
        self.reset()
        for name, delta in deltas.items():
            changed = self._base[name] + delta.to(self._base[name].device)
            self._weights[name].copy_(self._in_units(name, changed))

    def _cut(self, name: str, delta: Tensor) -> dict[str, Tensor]:
        """Cut in the units that it was trained in: there inputs are about as loud as each other, so that what
        is lost of the delta is what the layer's output loses."""
        layer = name.removesuffix(".weight")
        nearest = nearest_of_rank(self._in_units(name, delta), self._rank)
        a = nearest.a * self._columns if name == _FUSION_WEIGHT else nearest.a
        return {layer + LORA_A: a.cpu(), layer + LORA_B: nearest.b.cpu()}

    def _in_units(self, name: str, weight: Tensor) -> Tensor:
        return weight / self._columns if name == _FUSION_WEIGHT else weight
