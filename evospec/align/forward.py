"""The drafter's training-time forward pass with weights passed in, as a function of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call

from evospec.align.batch import TraceBatch
from evospec.models.drafter import Drafter
from evospec.models.tables import TokenTables
from evospec.models.unroll import Place, unroll


class _Unroller(nn.Module):
    """`unroll` as a module's forward: what `functional_call` can run with other weights."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(self, features: Tensor, embeddings: Tensor, steps: int, place: Place) -> list[Tensor]:
        return list(unroll(self.drafter, features, embeddings, steps, place=place))


def draft_states(
    drafter: Drafter, weights: Mapping[str, Tensor], tables: TokenTables, batch: TraceBatch, steps: int
) -> list[Tensor]:
    """Normed hidden states of each draft step from every position of a batch.

    Windows lie where their traces begin, behind what the drafter had for earlier positions then: that is
    not computed anew, though other weights would give other keys.

    Args:
        weights: replace the drafter's own, by parameter name; the others stay.

    Returns:
        `steps` tensors [rows, width, hidden] in the drafter's dtype, as `unroll` yields them.
    """
    dtype = drafter.fc.weight.dtype
    embeddings = tables.embed(batch.drafter_tokens(steps)).to(dtype)  # [rows, width + steps - 1, hidden]
    replaced = {f"drafter.{name}": weight for name, weight in weights.items()}
    states: list[Tensor] = functional_call(
        _Unroller(drafter),
        replaced,
        (batch.features.to(dtype), embeddings, steps, Place(batch.starts, batch.past)),
    )
    return states
