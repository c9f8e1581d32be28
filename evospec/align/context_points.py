"""A few weighted means that stand for the contexts of all requests of late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

NONE: Final = -1  # the place of what is of no cluster
_MEMORY: Final = 1024  # contexts after which one counts for a third


class ContextPoints:
    """Each new context is a point; while there are too many, two of one cluster that lie close become their
    mean.

    Contexts are unit vectors, so a mean of some says by its length how far they lie apart: their mean
    squared distance from it is 1 minus its squared length. Bounded: nothing else is kept of a context.

    Attributes:
        means: float64 [points, dim].
        weights: how many contexts each stands for, old ones for less, at least 1 [points].
        places: of the cluster each is in [points].
    """

    __slots__ = ("_most", "means", "places", "weights")

    def __init__(self, most: int) -> None:
        self._most = most
        self.means = np.zeros((0, 0))
        self.weights = np.zeros(0)
        self.places = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.weights)

    def add(self, mean: np.ndarray, weight: float = 1.0, place: int = NONE) -> None:
        """The last point from now on; others count for a little less."""
        self.means = np.vstack((self.means.reshape(-1, len(mean)), mean))
        self.weights = np.append(np.maximum(self.weights * (1 - 1 / _MEMORY), 1.0), weight)
        self.places = np.append(self.places, place)

    def thin(self) -> None:
        """Merges points until there are as few as there may be; all have places, of which there are fewer."""
        while len(self) > self._most:
            costs = merging_costs(self.means, self.weights)
            costs[self.places[:, None] != self.places] = np.inf
            first, second = sorted(np.unravel_index(costs.argmin(), costs.shape))
            pair = [first, second]
            self.means[first] = np.average(self.means[pair], axis=0, weights=self.weights[pair])
            self.weights[first] = self.weights[pair].sum()
            kept = np.arange(len(self)) != second
            self.means, self.weights, self.places = self.means[kept], self.weights[kept], self.places[kept]

    def weight(self, place: int) -> float:
        """Of all points of a cluster."""
        return float(self.weights[self.places == place].sum())

    def centres(self, places: Sequence[int]) -> np.ndarray:
        """Means of all contexts of clusters, float64 [places, dim]."""
        own = [self.places == place for place in places]
        return np.stack([np.average(self.means[one], axis=0, weights=self.weights[one]) for one in own])


def merging_costs(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """By how much merging two raises the sum of squared distances from means (Ward 1963), infinite for one
    with itself [points, points]."""
    squares = (means**2).sum(axis=1)
    gaps = np.maximum(squares[:, None] + squares - 2 * means @ means.T, 0.0)
    costs: np.ndarray = gaps * weights[:, None] * weights / (weights[:, None] + weights)
    np.fill_diagonal(costs, np.inf)
    return costs
