"""All of a drafter's weights as the trained part: the dear way to adapt, kept to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evospec.align.fusion import column_scale
from evospec.align.lora import FUSION
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.deltas import DELTA, adapted_parameters, delta_limits
from evospec.models.drafter import Drafter

_FUSION_WEIGHT = f"{FUSION}.weight"


class FullParameters:
    """Linear layers and norms of a drafter, trained whole; what is exported are their deltas.

    As in online speculative decoding (Liu et al., 2310.07177). Only the fusion is not trained as it is,
    but in units of `column_scale`.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._base = adapted_parameters(drafter)
        self._drafter = drafter
        self._columns = column_scale(drafter.fc.weight)
        self._weights = {name: nn.Parameter(weight.detach().clone()) for name, weight in self._base.items()}
        self.reset()

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
        merged = self.merged()
        deltas = {name + DELTA: (merged[name] - base).cpu() for name, base in self._base.items()}
        return AdapterWeights(version, deltas)

    @torch.no_grad()
    def load(self, adapter: AdapterWeights) -> None:
        """Continues from an exported adapter.

        Raises:
            WireError: it does not fit the drafter, is absurdly large or is a low-rank one. Nothing is
                changed then.
        """
        adapter.check(self._drafter)
        adapter.check_norms(delta_limits(self._drafter))
        if adapter.general.linear_names():
            raise WireError(
                f"adapter version {adapter.version} is low-rank, this aligner trains all parameters: set "
                "alignment.method to lora, or start from version 0"
            )
        self.reset()
        for name, delta in adapter.general.whole_deltas().items():
            changed = self._base[name] + delta.to(self._base[name].device)
            self._weights[name].copy_(self._in_units(name, changed))

    def _in_units(self, name: str, weight: Tensor) -> Tensor:
        return weight / self._columns if name == _FUSION_WEIGHT else weight
