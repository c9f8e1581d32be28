"""Which of many points belong together: those that no wide gap sets apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evospec.align.context_points import NONE, ContextPoints, merging_costs

# Squared distance of two groups' centres from which they are two, in that of the narrower one's contexts from
# its own. On contexts of real prompts it is 4 or more between most domains and up to 2 within one
# (docs/measurements.md).
APART: Final = 3.0
ENOUGH: Final = 8.0  # contexts that a group stands for, at least: fewer say little about how wide it is
FLAT: Final = 1e-3  # width of a group whose contexts hardly differ


@dataclass(slots=True)
class _Node:
    """Points that were merged.

    Attributes:
        owner: the cluster with a number that some are of, or NONE.
        owned: contexts that those stand for.
        parts: the two it was made of; None for a point.
        gap: between these, in the narrower one's width; 0 where one is too small to tell.
        widest: of all gaps in it.
    """

    points: list[int]
    mean: np.ndarray
    weight: float
    owner: int
    owned: float
    parts: tuple[_Node, _Node] | None = None
    gap: float = 0.0
    widest: float = 0.0

    @property
    def width(self) -> float:
        """Mean squared distance of its contexts from their mean."""
        return max(1.0 - float(self.mean @ self.mean), FLAT)


def group(points: ContextPoints, numbered: Collection[int], most: int) -> list[list[int]]:
    """Indexes of points by group, at most `most` or as many as there are numbered clusters.

    Points are merged two by two, those first that widen what they become the least (Ward's tree), but never
    points of two clusters with a number. From the top, the trees are then taken apart where there is a gap
    of APART or more, the widest first. What is too small to be a group goes to the nearest.
    """
    enough = max(ENOUGH, float(points.weights.sum()) / (4 * most))
    groups = _trees(points, numbered, enough)
    while True:
        split = max(groups, key=lambda one: one.widest)
        if split.parts is None or split.widest < APART or len(_large(groups, enough)) >= most:
            return _without_small(groups, _large(groups, enough))
        # By identity: nodes hold arrays, which have no single answer to whether they are equal.
        groups = [one for one in groups if one is not split] + list(split.parts)


def _large(groups: Sequence[_Node], enough: float) -> list[_Node]:
    """Those that are large enough, and of each numbered cluster what holds most of it."""
    kept: dict[int, _Node] = {}
    for one in sorted(groups, key=lambda one: (one.owned, one.weight)):
        kept[one.owner] = one
    return [one for one in groups if one.weight >= enough or one is kept[one.owner]]


def _without_small(groups: Sequence[_Node], large: Sequence[_Node]) -> list[list[int]]:
    found = [list(one.points) for one in large]
    centres = np.stack([one.mean for one in large])
    for small in groups:
        if not any(small is one for one in large):
            found[int(((centres - small.mean) ** 2).sum(axis=1).argmin())] += small.points
    return found


def _trees(points: ContextPoints, numbered: Collection[int], enough: float) -> list[_Node]:
    """One tree for each numbered cluster, or one of all."""
    count = len(points)
    owners = np.array([place if place in numbered else NONE for place in points.places.tolist()])
    weights = points.weights.copy()
    nodes = [
        _Node([index], points.means[index], weight, owner, 0.0 if owner == NONE else weight)
        for index, (weight, owner) in enumerate(zip(weights.tolist(), owners.tolist(), strict=True))
    ]
    costs = merging_costs(points.means, weights)
    costs[(owners[:, None] != owners) & (owners[:, None] != NONE) & (owners != NONE)] = np.inf
    alive = np.ones(count, dtype=bool)
    while True:
        first, second = np.unravel_index(costs.argmin(), costs.shape)
        cost = costs[first, second]
        if not np.isfinite(cost):
            return [nodes[index] for index in np.flatnonzero(alive)]
        nodes[first] = _merged(nodes[first], nodes[second], enough)
        # Costs of merging others with what was merged, from those with its parts (Lance & Williams 1967);
        # infinite where one was.
        left, right = weights + weights[first], weights + weights[second]
        fresh = (left * costs[first] + right * costs[second] - weights * cost) / (left + weights[second])
        weights[first] += weights[second]
        costs[first] = costs[:, first] = fresh
        costs[second] = costs[:, second] = np.inf
        alive[second] = False


def _merged(left: _Node, right: _Node, enough: float) -> _Node:
    weight = left.weight + right.weight
    mean = left.mean + (right.mean - left.mean) * (right.weight / weight)
    gap = 0.0
    if min(left.weight, right.weight) >= enough:
        gap = float(((left.mean - right.mean) ** 2).sum()) / min(left.width, right.width)
    widest = max(gap, left.widest, right.widest)
    owner, owned = max(left.owner, right.owner), left.owned + right.owned
    return _Node(left.points + right.points, mean, weight, owner, owned, (left, right), gap, widest)
