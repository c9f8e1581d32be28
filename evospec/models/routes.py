"""Which kind of traffic a request is of, by what its context looks like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

GENERAL = 0  # the choice of requests of no kind; kind i is choice i + 1
MOST_CENTRES = 64  # that routes may have


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """Kinds of traffic as directions in which contexts lie from what is common to all.

    Attributes:
        centres: contexts that others lie around, float32 [centres, dim].
        kinds: which kind each is of, from 0, every one at least once, int64 [centres].
        common: what all contexts have in common, float32 [dim].
        spread: how far contexts lie apart, float32 [dim], above 0.
        least: cosine with each centre below which a context does not belong there, float32 [centres].
    """

    centres: Tensor
    kinds: Tensor
    common: Tensor
    spread: Tensor
    least: Tensor

    @property
    def units(self) -> Tensor:
        """The centres as `nearest` compares them [centres, dim]."""
        return direction(self.centres, self.common, self.spread)

    def choose(self, contexts: Tensor) -> Tensor:
        """Contexts [rows, dim] to choices, int64 [rows]: 0, or kind + 1."""
        return nearest(direction(contexts, self.common, self.spread), self.units, self.least, self.kinds)


def direction(contexts: Tensor, common: Tensor, spread: Tensor) -> Tensor:
    """Where contexts [..., dim] lie from `common`, of unit length, in units of `spread`."""
    return normalize((contexts.float() - common) / spread, dim=-1)


def nearest(directions: Tensor, centres: Tensor, least: Tensor, kinds: Tensor) -> Tensor:
    """Choices of directions [rows, dim] among unit vectors [centres, dim], int64 [rows]: by the nearest of
    those that they belong to.

    Args:
        least: cosine below which a direction does not belong to a centre [centres]. NaN is below any.
        kinds: of the centres, int64 [centres].
    """
    cosines = directions @ centres.T  # [rows, centres]
    cosines = torch.where(cosines >= least, cosines, -torch.inf)
    best, found = cosines.max(dim=-1)
    return torch.where(best > -torch.inf, kinds[found] + 1, GENERAL)
