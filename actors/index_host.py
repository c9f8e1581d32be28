"""The one owner of the semantic token index: an embedded index allows no second one."""

from __future__ import annotations

import numpy as np

from evospec.errors import TokenIndexError
from evospec.ports import TokenIndex, TokenIndexFactory
from evospec.wire import IndexPoint, TokenHits


class IndexHost:
    """Serves the token index to all replicas; run as a Ray actor, one call at a time.

    Calls open the index until one succeeds, so that the host outlives a server that is
    not there yet. All methods raise TokenIndexError.
    """

    def __init__(self, open_index: TokenIndexFactory) -> None:
        self._open_index = open_index
        self._index: TokenIndex | None = None
        self._closed = False

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
        """Nearest points of `tenant` for each row of `vectors` [queries, dim]."""
        return self._opened().search(vectors, tenant, limit)

    def write(self, points: list[IndexPoint]) -> None:
        self._opened().write(points)

    def count(self) -> int:
        """Points in the index."""
        return self._opened().count()

    def latest(self, limit: int) -> list[IndexPoint]:
        """Up to `limit` points of all tenants, newest first."""
        return self._opened().latest(limit)

    def close(self) -> None:
        """For good: replicas that drain may still write, and would open it again."""
        self._closed = True
        if self._index is not None:
            self._index.close()
            self._index = None

    def _opened(self) -> TokenIndex:
        if self._closed:
            raise TokenIndexError("the token index is closed")
        if self._index is None:
            self._index = self._open_index()
        return self._index
