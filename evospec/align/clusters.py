"""Kinds of traffic, found as it comes: traces carry no domain labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from evospec.align.trace import Trace, floats_of
from evospec.models.routes import Routes

WARM_UP: Final = 8  # contexts after which it is known how far apart those of one kind lie
# Squared distances from a centre, in those that are usual within clusters. Found on contexts of real prompts
# of four domains (docs/measurements.md).
_FAR: Final = 4.0  # from which a context is of another kind
_ONE: Final = 1.5  # of two centres, up to which both are of one kind
_PART: Final = 0.1  # of the largest squared distance between two centres, up to which nothing is far
_FEW: Final = 4  # members of a cluster that gives way to a new one when there is no room
_RATE: Final = 0.05  # of a centre towards a new context, at least
LEAST: Final = 0.3  # cosine from which a request is of a kind: 95 in 100 prompts of unseen domains stay below
ANY: Final = -2.0  # below every cosine
_FLAT: Final = 1e-3  # spread of a number that hardly varies, in parts of the usual one
_TRUST: Final = 64  # contexts that a published spread counts as
NONE: Final = -1  # the place of what is of no cluster, and the kind of what is of no kind


@dataclass(slots=True)
class _Cluster:
    """Attributes: variance: mean squared distance of its members, None before any but the first; kind: None
    for a cluster without a number."""

    centre: np.ndarray
    members: int = 1
    variance: float | None = None
    kind: int | None = None

    def take(self, context: np.ndarray, gap: float) -> None:
        """A member at this squared distance."""
        self.members += 1
        before = gap if self.variance is None else self.variance
        self.variance = before + max(_RATE, 1 / (self.members - 1)) * (gap - before)
        self.centre = self.centre + max(_RATE, 1 / self.members) * (context - self.centre)

    def absorb(self, other: _Cluster, gap: float) -> None:
        """All members of another one, whose centre is at this squared distance."""
        share = other.members / (self.members + other.members)
        mine, its = self.variance or 0.0, other.variance or 0.0
        self.variance = (1 - share) * mine + share * its + share * (1 - share) * gap
        self.centre = self.centre + share * (other.centre - self.centre)
        self.members += other.members


class OnlineClusters:
    """Puts each trace to the cluster whose centre is nearest to its context, or opens one for it where all
    are far, while there are fewer than `most`.

    What is far is told by how far apart contexts of one cluster are: in all models that is a few times less
    than between domains, however close contexts lie together as a whole. Clusters keep their places,
    from 0; some get a number of their own as well, their kind, by which others know them. Bounded: nothing
    is kept of a context but what it adds to centres and sums.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._clusters: dict[int, _Cluster] = {}  # by place
        self._first: list[np.ndarray] = []  # distinct contexts, until it is known what is far
        self._usual: float | None = None  # squared distance from a centre, of the first ones
        self._seen = 0
        self._mean = np.zeros(0)
        self._squares = np.zeros(0)  # sum of squared deviations (Welford)
        self._anchor: np.ndarray | None = None  # what kinds have been told apart from

    @property
    def count(self) -> int:
        return max(1, len(self._clusters))

    @property
    def kinds(self) -> int:
        """Clusters with a number: from 0, in the order in which they got it."""
        return sum(cluster.kind is not None for cluster in self._clusters.values())

    def assign(self, trace: Trace) -> int:
        """Takes in a trace; returns the place of its cluster, which may be a new one."""
        context = floats_of(trace.context).astype(np.float64)
        self._learn(context)
        if self._usual is None:
            return self._gather(context)
        return self._put(context)

    def unnumbered(self, members: int) -> list[int]:
        """Places of clusters without a number that have had so many members."""
        return [
            place
            for place, one in sorted(self._clusters.items())
            if one.kind is None and one.members >= members
        ]

    def number(self, place: int) -> int:
        """Gives a cluster the next number, for good; returns it."""
        kind = self.kinds
        self._clusters[place].kind = kind
        return kind

    def begin_with(self, routes: Routes | None) -> None:
        """Goes on with kinds that were published; None: no cluster has a number any more."""
        if routes is None:
            for cluster in self._clusters.values():
                cluster.kind = None
            return
        centres = routes.centres.double().numpy()
        self._clusters = {
            kind: _Cluster(centre, int(1 / _RATE), None, kind) for kind, centre in enumerate(centres)
        }
        self._most = max(self._most, len(centres))
        self._seen, self._mean = _TRUST, routes.common.double().numpy()
        self._squares = routes.spread.double().numpy() ** 2 * _TRUST
        self._anchor = self._mean if routes.least > ANY else None

    def routes(self) -> Routes | None:
        """Leads to the kinds; None while there is none.

        While nothing but one kind has ever been seen, everything is of that kind.
        """
        numbered = [place for place, cluster in self._clusters.items() if cluster.kind is not None]
        return self._routes(sorted(numbered, key=self._kind)) if numbered else None

    def places_of(self, traces: Sequence[Trace]) -> np.ndarray:
        """Places that traces belong to now, NONE for those of no cluster, int64 [traces]."""
        places = sorted(self._clusters)
        if not places or not traces:
            return np.full(len(traces), NONE)
        contexts = torch.from_numpy(np.stack([floats_of(trace.context) for trace in traces]))
        chosen: np.ndarray = np.array([NONE, *places])[self._routes(places).choose(contexts).numpy()]
        return chosen

    def kinds_of(self, traces: Sequence[Trace]) -> np.ndarray:
        """Kinds that traces are of now, NONE for those of no kind, int64 [traces]."""
        found = np.full(max(self._clusters, default=0) + 2, NONE)  # the last is that of no place
        for place, cluster in self._clusters.items():
            if cluster.kind is not None:
                found[place] = cluster.kind
        kinds: np.ndarray = found[self.places_of(traces)]
        return kinds

    def _routes(self, places: Sequence[int]) -> Routes:
        deviation = np.sqrt(self._squares / max(self._seen, 1))
        spread = np.maximum(deviation, max(_FLAT * float(deviation.mean()), 1e-6))
        common, least = self._mean, ANY
        if len(self._clusters) > 1:
            # Of clusters, not of contexts: where one kind prevails, it would be the mean.
            common, least = np.mean([cluster.centre for cluster in self._clusters.values()], axis=0), LEAST
        elif self._anchor is not None:
            common, least = self._anchor, LEAST
        return Routes(
            centres=torch.from_numpy(np.stack([self._clusters[place].centre for place in places])).float(),
            common=torch.from_numpy(common).float(),
            spread=torch.from_numpy(spread).float(),
            least=least,
        )

    def _kind(self, place: int) -> int:
        kind = self._clusters[place].kind
        return NONE if kind is None else kind

    def _learn(self, context: np.ndarray) -> None:
        if not self._seen:
            self._mean, self._squares = np.zeros_like(context), np.zeros_like(context)
        self._seen += 1
        change = context - self._mean
        self._mean = self._mean + change / self._seen
        self._squares = self._squares + change * (context - self._mean)

    def _gather(self, context: np.ndarray) -> int:
        """Windows of one request bring the same context, which says nothing of how far apart others are."""
        if not any(np.array_equal(context, earlier) for earlier in self._first):
            self._first.append(context)
        if len(self._first) < WARM_UP:
            return 0
        gaps = ((np.stack(self._first)[:, None] - np.stack(self._first)) ** 2).sum(axis=-1)
        np.fill_diagonal(gaps, np.inf)
        # Two of one kind are twice as far apart as each is from the centre; of these most have another.
        self._usual = float(np.median(gaps.min(axis=1))) / 2
        first, self._first = self._first, []
        return [self._put(earlier) for earlier in first][-1]

    def _put(self, context: np.ndarray) -> int:
        place, gap = self._nearest(context)
        if gap <= self._reach(_FAR):
            self._clusters[place].take(context, gap)
            return self._merged(place)
        room = self._room()
        if room is None:
            return place
        self._clusters[room] = _Cluster(context)
        return room

    def _nearest(self, context: np.ndarray, but: int = NONE) -> tuple[int, float]:
        """Place and squared distance of the nearest centre."""
        gaps = [
            (float(((cluster.centre - context) ** 2).sum()), place)
            for place, cluster in self._clusters.items()
            if place != but
        ]
        gap, place = min(gaps, default=(np.inf, NONE))
        return place, gap

    def _reach(self, factor: float) -> float:
        """So many usual squared distances from a centre, or more where other kinds are far away."""
        if len(self._clusters) < 2:
            return factor * self._within()
        centres = np.stack([cluster.centre for cluster in self._clusters.values()])
        widest = ((centres - centres[:, None]) ** 2).sum(axis=-1).max()
        return max(factor * self._within(), _PART * float(widest))

    def _within(self) -> float:
        """The usual squared distance from a centre."""
        known = [
            one.variance
            for one in self._clusters.values()
            if one.members >= WARM_UP and one.variance is not None
        ]
        return float(np.median(known)) if known else self._usual or 0.0

    def _room(self) -> int | None:
        """A place for a new cluster."""
        for place in range(self._most):
            if place not in self._clusters:
                return place
        small = [
            (one.members, place)
            for place, one in self._clusters.items()
            if one.kind is None and one.members < _FEW
        ]
        return min(small)[1] if small else None

    def _merged(self, place: int) -> int:
        """Where the cluster is, after it has become one with the nearest, if that is near enough."""
        own = self._clusters[place]
        other, gap = self._nearest(own.centre, but=place)
        if other == NONE or gap > self._reach(_ONE):
            return place
        its = self._clusters[other]
        if own.kind is not None and its.kind is not None:
            return place
        rank = {at: (one.kind is not None, one.members) for at, one in ((place, own), (other, its))}
        stays, goes = sorted((place, other), key=rank.__getitem__, reverse=True)
        self._clusters[stays].absorb(self._clusters.pop(goes), gap)
        return stays
