"""Which kind of traffic a request is of, by what its context looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

GENERAL = 0  # the choice of requests of no kind; kind i is choice i + 1


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """Kinds of traffic as directions in which contexts lie from what is common to all.

    Attributes:
        centres: a context of each kind, float32 [kinds, dim].
        common: what all contexts have in common, float32 [dim].
        spread: how far contexts lie apart, float32 [dim], above 0.
        least: cosine below which a context is of no kind.
    """

    centres: Tensor
    common: Tensor
    spread: Tensor
    least: float

    @property
    def units(self) -> Tensor:
        """The centres as `nearest` compares them [kinds, dim]."""
        return direction(self.centres, self.common, self.spread)

    def choose(self, contexts: Tensor) -> Tensor:
        """Contexts [rows, dim] to choices, int64 [rows]: 0, or kind + 1."""
        return nearest(direction(contexts, self.common, self.spread), self.units, self.least)

    def to(self, device: torch.device | str) -> Routes:
        return replace(
            self,
            centres=self.centres.to(device),
            common=self.common.to(device),
            spread=self.spread.to(device),
        )


def direction(contexts: Tensor, common: Tensor, spread: Tensor) -> Tensor:
    """Where contexts [..., dim] lie from `common`, of unit length, in units of `spread`."""
    return normalize((contexts.float() - common) / spread, dim=-1)


def nearest(directions: Tensor, centres: Tensor, least: float | Tensor) -> Tensor:
    """Choices of directions [rows, dim] among unit vectors [kinds, dim], int64 [rows].

    Args:
        least: cosine below which it is none; may differ by kind [kinds]. NaN is below any.
    """
    cosines = directions @ centres.T  # [rows, kinds]
    cosines = torch.where(cosines >= least, cosines, -torch.inf)
    best, kinds = cosines.max(dim=-1)
    return torch.where(best > -torch.inf, kinds + 1, GENERAL)
