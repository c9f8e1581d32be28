"""Kinds of traffic, found as it comes: traces carry no domain labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evospec.align.context_points import NONE, ContextPoints
from evospec.align.grouping import ENOUGH, FLAT, group
from evospec.align.trace import Trace, floats_of
from evospec.models.routes import Routes

_POINTS: Final = 48  # that stand for all contexts, at least
_LATEST: Final = 64  # contexts remembered as they are: windows of one request bring the same
_TRUST: Final = 32  # contexts that a published centre counts as
# Of a cluster's mean of 1 - cosine with its centre, up to which a request is of it: 95 in 100 of a domain's
# are within 2.2, other domains' begin beyond 4 (docs/measurements.md).
REACH: Final = 3.0


class OnlineClusters:
    """Groups contexts by the gaps between them, see `group`, into at most so many clusters.

    Clusters keep their places, from 0. Some get a number as well, their kind, by which others know them, and
    keep it for good; where numbers are used up, others may join a kind. Bounded, see `ContextPoints`.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._points = _points(most)
        self._kinds: dict[int, int] = {}  # by place
        self._latest: deque[bytes] = deque(maxlen=_LATEST)

    @property
    def count(self) -> int:
        return max(1, len(self._places))

    @property
    def kinds(self) -> int:
        """Numbers that were given to clusters: from 0, in the order in which they got them."""
        return len(set(self._kinds.values()))

    @property
    def _places(self) -> list[int]:
        places: list[int] = np.unique(self._points.places).tolist()
        return places

    def learn(self, trace: Trace) -> None:
        """Takes in a trace; there may be other clusters then."""
        bits = trace.context.tobytes()
        if bits in self._latest:
            return
        self._latest.append(bits)
        context = floats_of(trace.context).astype(np.float64)
        self._points.add(context / max(float(np.linalg.norm(context)), 1e-12))
        self._regroup()
        self._points.thin()

    def place(self, trace: Trace) -> int:
        """Of the cluster nearest to a trace, from 0; some were learned."""
        places = self._places
        gaps = (self._points.centres(places) - floats_of(trace.context)) ** 2
        return places[int(gaps.sum(axis=1).argmin())]

    def unnumbered(self, share: float) -> list[int]:
        """Places of clusters without a number that such a share of all requests of late are in, and so many
        that a gap between two halves would have shown."""
        points = self._points
        fewest = max(2 * ENOUGH, share * float(points.weights.sum()))
        return [
            place for place in self._places if place not in self._kinds and points.weight(place) >= fewest
        ]

    def number(self, place: int) -> int:
        """Gives a cluster the next number, for good; returns it."""
        self._kinds[place] = self.kinds
        return self._kinds[place]

    @property
    def full(self) -> bool:
        """Whether no place would be left for what is new if one more cluster got a number."""
        return len(self._kinds) + 1 >= self._most

    def join(self, place: int) -> int:
        """Makes a cluster part of the nearest kind, for good; returns its number."""
        numbered = sorted(self._kinds)
        gaps = ((self._points.centres(numbered) - self._points.centres([place])) ** 2).sum(axis=1)
        self._kinds[place] = self._kinds[numbered[int(gaps.argmin())]]
        return self._kinds[place]

    def begin_with(self, routes: Routes | None) -> None:
        """Goes on with kinds that were published; None: no cluster has a number any more."""
        self._kinds = {}
        if routes is None:
            return
        self._kinds = dict(enumerate(routes.kinds.tolist()))
        self._most = max(self._most, len(self._kinds) + 1)
        self._points = _points(self._most)
        for place, centre in enumerate(routes.centres.double().numpy()):
            self._points.add(centre, _TRUST, place)

    def routes(self) -> Routes | None:
        """Leads to the kinds; None while there is none."""
        numbered = sorted(self._kinds, key=lambda place: (self._kinds[place], place))
        return self._routes(numbered, [self._kinds[place] for place in numbered]) if numbered else None

    def places_of(self, traces: Sequence[Trace]) -> np.ndarray:
        """Places that traces belong to now, NONE for those of no cluster, int64 [traces]."""
        places = self._places
        if not places or not traces:
            return np.full(len(traces), NONE)
        chosen: np.ndarray = np.array([NONE, *places])[
            self._chosen(self._routes(places, range(len(places))), traces)
        ]
        return chosen

    def kinds_of(self, traces: Sequence[Trace]) -> np.ndarray:
        """Kinds that traces are of now, NONE for those of no kind, int64 [traces]: as replicas tell."""
        routes = self.routes()
        if routes is None or not traces:
            return np.full(len(traces), NONE)
        return self._chosen(routes, traces) - 1

    @staticmethod
    def _chosen(routes: Routes, traces: Sequence[Trace]) -> np.ndarray:
        contexts = torch.from_numpy(np.stack([floats_of(trace.context) for trace in traces]))
        chosen: np.ndarray = routes.choose(contexts).numpy()
        return chosen

    def _routes(self, places: Sequence[int], kinds: Sequence[int]) -> Routes:
        centres = torch.from_numpy(self._points.centres(places)).float()
        dim = centres.shape[1]
        return Routes(centres, torch.tensor(kinds), torch.zeros(dim), torch.ones(dim), _least(centres))

    def _regroup(self) -> None:
        """Clusters anew; each keeps the place that most of it was in, if no other has more of that."""
        points = self._points
        groups = group(points, self._kinds.keys(), self._most)
        claims = [
            (place in self._kinds, float(points.weights[own][points.places[own] == place].sum()), -place, at)
            for at, own in enumerate(groups)
            for place in set(points.places[own].tolist()) - {NONE}
        ]
        kept: dict[int, int] = {}  # place by group
        for _, _, negated, at in sorted(claims, reverse=True):
            if at not in kept and -negated not in kept.values():
                kept[at] = -negated
        free = (place for place in range(len(points)) if place not in kept.values())
        for at, own in enumerate(groups):
            points.places[own] = kept[at] if at in kept else next(free)


def _points(clusters: int) -> ContextPoints:
    return ContextPoints(max(_POINTS, 2 * clusters))


def _least(centres: Tensor) -> Tensor:
    """Cosines with centres below which requests are not of them [centres].

    A mean of unit vectors is as long as their mean cosine with it. Where other centres are far away, all
    that lies half as far is taken as well: later requests of a kind may differ from the first.
    """
    units = normalize(centres, dim=-1)
    others = (1 - units @ units.T).fill_diagonal_(torch.inf).amin(dim=-1)
    halfway = torch.where(others.isinf(), 0.0, others / 4)  # half a distance is a quarter of its square
    return 1 - torch.maximum(REACH * (1 - centres.norm(dim=-1)).clamp(min=FLAT), halfway)
