"""A token index in this process's memory: exact search, nothing stored, nothing shared."""

from __future__ import annotations

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
        self._points: list[IndexPoint] = []
        self._vectors: np.ndarray | None = None  # [points, dim], stacked on the first search after a write

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
        """Raises TokenIndexError when the vectors have another length than the points'."""
        owned = np.flatnonzero([point.tenant == tenant for point in self._points])
        if not owned.size:
            return [TokenHits((), ()) for _ in vectors]
        stored = self._stacked()[owned]
        if vectors.shape[1] != stored.shape[1]:
            raise TokenIndexError(
                f"the index holds vectors of {stored.shape[1]} numbers, the query has {vectors.shape[1]}"
            )
        similarities = vectors @ stored.T  # [queries, points]
        return [self._hits(row, owned, limit) for row in similarities]

    def write(self, points: Sequence[IndexPoint]) -> None:
        self._points = [*self._points, *points][-self._max_points :]
        self._vectors = None

    def count(self) -> int:
        return len(self._points)

    def close(self) -> None:
        self._points = []
        self._vectors = None

    def _stacked(self) -> np.ndarray:
        if self._vectors is None:
            self._vectors = np.stack([point.vector for point in self._points])
        return self._vectors

    def _hits(self, similarities: np.ndarray, owned: np.ndarray, limit: int) -> TokenHits:
        """Sums weights over the nearest points, scaled by cosine; contexts that point away don't count."""
        scores: dict[int, float] = {}
        for place in np.argsort(-similarities, kind="stable")[:limit]:
            similarity, point = float(similarities[place]), self._points[owned[place]]
            if similarity <= 0:
                break
            for token, weight in zip(point.token_ids, point.weights, strict=True):
                scores[token] = scores.get(token, 0.0) + similarity * weight
        ranked = sorted(scores, key=lambda token: (-scores[token], token))[: self._max_tokens]
        return TokenHits(tuple(ranked), tuple(scores[token] for token in ranked))
