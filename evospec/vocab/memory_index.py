"""A token index in this process's memory: exact search, nothing stored, nothing shared."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from evospec.errors import TokenIndexError
from evospec.wire import IndexPoint, TokenHits


class MemoryIndex:
    """Implements `evospec.ports.TokenIndex` by brute force, for benches and single-process decoding.

    Holds up to `max_points`; the oldest leave first. A query yields `max_tokens`, the heaviest.
    """

    def __init__(self, max_points: int, max_tokens: int = 512) -> None:
        self._max_points = max_points
        self._max_tokens = max_tokens
        self._shelves: dict[str, _Shelf] = {}
        self._order: deque[str] = deque()  # whose each point is, oldest first

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
        """Raises TokenIndexError when the vectors have another length than the points'."""
        shelf = self._shelves.get(tenant)
        if shelf is None or not len(shelf):
            return [TokenHits((), ()) for _ in vectors]
        if vectors.shape[1] != shelf.vectors.shape[1]:
            raise TokenIndexError(
                f"the index holds vectors of {shelf.vectors.shape[1]} numbers, "
                f"the query has {vectors.shape[1]}"
            )
        similarities = vectors @ shelf.vectors.T  # [queries, points]
        return [self._hits(row, shelf, limit) for row in similarities]

    def write(self, points: Sequence[IndexPoint]) -> None:
        for point in points:
            self._shelves.setdefault(point.tenant, _Shelf(len(point.vector))).add(point)
            self._order.append(point.tenant)
        while len(self._order) > self._max_points:
            self._shelves[self._order.popleft()].drop_oldest()

    def count(self) -> int:
        return len(self._order)

    def latest(self, limit: int) -> list[IndexPoint]:
        taken: dict[str, int] = {}
        found = []
        for tenant in list(reversed(self._order))[:limit]:
            taken[tenant] = taken.get(tenant, 0) + 1
            found.append(self._shelves[tenant].point(-taken[tenant], tenant))
        return found

    def close(self) -> None:
        self._shelves = {}
        self._order.clear()

    def _hits(self, similarities: np.ndarray, shelf: _Shelf, limit: int) -> TokenHits:
        """Sums weights over the nearest points, scaled by cosine; contexts that point away don't count."""
        nearest = np.argsort(-similarities, kind="stable")[:limit]
        nearest = nearest[similarities[nearest] > 0]
        if not len(nearest):
            return TokenHits((), ())
        found = [shelf.payloads[place] for place in nearest.tolist()]
        tokens, places = np.unique(np.concatenate([tokens for tokens, _ in found]), return_inverse=True)
        shares = [
            similarity * weights
            for similarity, (_, weights) in zip(similarities[nearest].tolist(), found, strict=True)
        ]
        scores = np.bincount(places, np.concatenate(shares))
        best = np.argsort(-scores, kind="stable")[: self._max_tokens]  # tokens rise: equals come in order
        return TokenHits(tuple(tokens[best].tolist()), tuple(scores[best].tolist()))


class _Shelf:
    """One tenant's points, oldest first.

    Attributes:
        payloads: token ids and weights of each.
    """

    __slots__ = ("_first", "_rows", "payloads")

    def __init__(self, dim: int) -> None:
        self._rows = np.zeros((64, dim), dtype=np.float32)
        self._first = 0
        self.payloads: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def vectors(self) -> np.ndarray:
        """[points, dim]."""
        return self._rows[self._first : self._first + len(self)]

    def add(self, point: IndexPoint) -> None:
        """Raises TokenIndexError when its vector has another length than the others'."""
        if len(point.vector) != self._rows.shape[1]:
            raise TokenIndexError(
                f"the index holds vectors of {self._rows.shape[1]} numbers, the point has {len(point.vector)}"
            )
        end = self._first + len(self)
        if end == len(self._rows):
            rows = np.zeros((max(64, 2 * len(self)), self._rows.shape[1]), dtype=np.float32)
            rows[: len(self)] = self.vectors
            self._rows, self._first, end = rows, 0, len(self)
        self._rows[end] = point.vector
        self.payloads.append((np.array(point.token_ids, dtype=np.int64), np.array(point.weights)))

    def point(self, place: int, tenant: str) -> IndexPoint:
        """The point at a place, which may count from the end; of which target it is, nobody wrote down."""
        tokens, weights = self.payloads[place]
        return IndexPoint(self.vectors[place], tuple(tokens.tolist()), tuple(weights.tolist()), tenant, "")

    def drop_oldest(self) -> None:
        self.payloads.popleft()
        self._first += 1
