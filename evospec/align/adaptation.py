"""Ways to adapt a drafter: what a trainer needs of any, and the one that a config names."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from evospec.align.full_parameter import FullParameters
from evospec.align.lora import Lora, LoraShape
from evospec.config import AlignmentConfig
from evospec.models.adapter import AdapterWeights
from evospec.models.drafter import Drafter


class Adaptation(Protocol):
    """The trained part of a drafter whose own weights are frozen."""

    @property
    def exports_all(self) -> bool:
        """Whether an exported adapter holds all that was learned, not only what of it some rank holds."""
        ...

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What an optimiser moves, by the name of the exported tensor, in an order that never changes."""
        ...

    def pull(self, share: float) -> None:
        """Moves what is trained so far of the way back to the base: the proximal term."""
        ...

    def merged(self) -> dict[str, Tensor]:
        """Changed weights by parameter name, differentiable in what is trained."""
        ...

    def export(self, version: int) -> AdapterWeights:
        """As others are to use it; independent of later steps."""
        ...

    def load(self, adapter: AdapterWeights) -> None:
        """Continues from an exported adapter; raises WireError, with nothing changed, if it can't."""
        ...


def adaptation_of(config: AlignmentConfig, drafter: Drafter) -> Adaptation:
    """`drafter` is the frozen base, float32."""
    if config.method == "full-parameter":
        return FullParameters(drafter, config.publish_rank, norms=not config.adapters)
    return Lora(drafter, lora_shape(config), config.seed)


def lora_shape(config: AlignmentConfig) -> LoraShape:
    return LoraShape(
        rank=config.rank,
        alpha=config.alpha,
        rank_stabilised=config.scaling == "rslora",
        targets=config.targets,
        norms=config.norms,
    )
