"""The semantic token index on Qdrant: which long-tail tokens similar contexts used.

Collections. Points of different targets, dimensions or layouts never meet: the name is
`{semantic.collection}-{dim}-{hash of layout and target fingerprint}`. On a server, tenants
share it and every query filters by the indexed payload fields `tenant` and `target`. The
embedded index has no payload indexes and tests a filter point by point in Python, which
made a query six to ten times slower; there each tenant has a collection of its own, named
by a hash, and queries need no filter. Vectors are of unit length and compared by dot
product, because the embedded index divides by all lengths again for each cosine query.

Processor time of an embedded look-up of 32 neighbours with 96 tokens each, 576 dimensions,
one core of a busy machine (AMD EPYC), median and 95th percentile:

    points   one query       eight queries
     1,000    5 /  6 ms       38 /  48 ms
     5,000    8 /  9 ms       58 /  62 ms
    20,000   24 / 27 ms      187 / 196 ms

A batch of queries costs the embedded index their sum; on a server it is one request.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from evospec.wire import IndexPoint, TokenHits
from services.point_retention import Retention
from services.qdrant_store import PointId, QdrantStore, StoredPoint
from services.token_payload import Neighbour, TokenWeights, hits_of

# More similar contexts share one point. Measured on recorded requests (docs/measurements.md): 0.99 loses
# nothing that look-ups cover; 0.97 keeps 57 to 89 % of the points and loses up to a tenth of it.
DUPLICATE_COSINE = 0.99
WRITE_BATCH = 64
LAYOUT = "unit-mean-2"  # what vectors and payloads are; collections of another kind are left alone


@dataclass(frozen=True, slots=True)
class Entry:
    """A point about to be written: its unit vector [dim] and its tokens."""

    vector: np.ndarray
    tokens: TokenWeights


class QdrantTokenIndex:
    """`evospec.ports.TokenIndex` on a Qdrant server, or on one embedded in this process.

    Safe for threads; writes of one process take turns. `write` merges a point into the
    nearest one of its tenant when their cosine is at least `DUPLICATE_COSINE`. The points
    written longest ago are removed when `max_points` would be exceeded, and all that
    nothing was merged into for `max_age_days`.
    """

    def __init__(self, config: SemanticConfig, target_fingerprint: str, dim: int) -> None:
        """Opens the embedded index; a server is first met by the first call.

        Args:
            target_fingerprint: target whose hidden states make the vectors.
            dim: length of the vectors.

        Raises:
            TokenIndexError: see `QdrantStore`.
        """
        self._store = QdrantStore(config)
        self._collection = f"{config.collection}-{dim}-{_digest(f'{LAYOUT} {target_fingerprint}')}"
        self._target = target_fingerprint
        self._dim = dim
        self._tokens_per_point = config.tokens_per_point
        self._tokens_per_lookup = config.tokens_per_lookup
        self._batch = min(WRITE_BATCH, config.max_points)
        self._search_timeout_s = math.ceil(config.deadline_s)
        self._writes = threading.Lock()
        self._last_time_s = 0.0
        self._retention = Retention(
            self._store, self._names, max_points=config.max_points, max_age_days=config.max_age_days
        )

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
        """Tokens of the `limit` nearest points of `tenant` for each row of `vectors` [queries, dim].

        Weights are summed over the neighbours, each scaled by its cosine; the heaviest
        `semantic.tokens_per_lookup`, best first.

        Raises:
            TokenIndexError: `vectors` has another shape or is not finite; the index
                can't be reached, or answered nonsense.
        """
        queries = self._unit(vectors)
        name = self._name(tenant)
        if not len(queries):
            return []
        if not self._store.exists(name):
            return [TokenHits((), ())] * len(queries)
        found = self._store.nearest(
            name, queries, limit=limit, fields=self._fields(tenant), timeout_s=self._search_timeout_s
        )
        return [
            hits_of(
                (Neighbour(point.similarity, self._tokens_of(name, point)) for point in points),
                self._tokens_per_lookup,
            )
            for points in found
        ]

    def write(self, points: Sequence[IndexPoint]) -> None:
        """Adds what finished requests teach; points without tokens teach nothing and are left out.

        Raises:
            TokenIndexError: a point is of another target, not of `dim` finite numbers, or has
                no valid weights (then nothing is written); or the index can't be reached
                (then a part may be written).
        """
        entries: dict[str, list[Entry]] = defaultdict(list)
        for point in points:
            entry = self._entry(point)
            if entry.tokens.token_ids:
                entries[point.tenant].append(entry)
        size = self._batch
        with self._writes:
            self._retention.sweep()
            for tenant, group in entries.items():
                for start in range(0, len(group), size):
                    self._write_batch(tenant, self._folded(group[start : start + size]))

    def count(self) -> int:
        """Points of this target and dimension, of all tenants."""
        return sum(self._store.count(name) for name in self._names())

    def latest(self, limit: int) -> list[IndexPoint]:
        """Up to `limit` points of all tenants, those written last, newest first.

        Raises:
            TokenIndexError: the index can't be reached, or holds something else.
        """
        found = [
            (point, vector, name)
            for name in self._names()
            for point, vector in self._store.newest(name, limit)
        ]
        found.sort(key=lambda item: -item[0].time_s)
        return [self._point(name, point, vector) for point, vector, name in found[:limit]]

    def close(self) -> None:
        self._store.close()

    def _write_batch(self, tenant: str, entries: list[Entry]) -> None:
        name = self._name(tenant)
        self._store.ensure(name, self._dim)
        found = self._store.nearest(
            name, _stacked(entries), limit=1, fields=self._fields(tenant), above=DUPLICATE_COSINE
        )
        merged: dict[PointId, TokenWeights] = {}
        fresh: list[Entry] = []
        for entry, twins in zip(entries, found, strict=True):
            if not twins:
                fresh.append(entry)
                continue
            twin = twins[0]
            known = merged.get(twin.id) or self._tokens_of(name, twin)
            merged[twin.id] = known.merged(entry.tokens, self._tokens_per_point)
        if merged:  # before room is made: what was just renewed is not among the oldest
            self._store.overwrite(name, [self._stored(tenant, id_, merged[id_]) for id_ in merged])
        if fresh:
            self._retention.make_room(len(fresh))
            self._store.ensure(name, self._dim)  # the collection was dropped if that emptied it
            stored = [self._stored(tenant, self._retention.new_id(name), entry.tokens) for entry in fresh]
            self._store.insert(name, _stacked(fresh), stored)

    def _folded(self, entries: Sequence[Entry]) -> list[Entry]:
        """`entries` with near-duplicates among themselves merged into the earlier one."""
        kept: list[Entry] = []
        for entry in entries:
            for position, other in enumerate(kept):
                if float(other.vector @ entry.vector) >= DUPLICATE_COSINE:
                    tokens = other.tokens.merged(entry.tokens, self._tokens_per_point)
                    kept[position] = Entry(other.vector, tokens)
                    break
            else:
                kept.append(entry)
        return kept

    def _entry(self, point: IndexPoint) -> Entry:
        if point.target != self._target:
            raise TokenIndexError(
                f"a point of target {point.target!r} can't be written to the index of {self._target!r}"
            )
        (vector,) = self._unit(np.asarray(point.vector, dtype=np.float32)[None])
        return Entry(vector, TokenWeights.of(point, self._tokens_per_point))

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [n, dim] at length 1, so that their dot products are cosines."""
        if vectors.ndim != 2 or vectors.shape[1] != self._dim:
            raise TokenIndexError(
                f"vectors of shape {vectors.shape} don't fit the index, which holds size {self._dim}"
            )
        norms = np.linalg.norm(vectors, axis=1)
        if not np.all(np.isfinite(norms) & (norms > 0)):
            raise TokenIndexError("a context vector is zero or not finite: check the target's hidden states")
        unit: np.ndarray = vectors / norms[:, None]
        return unit

    def _point(self, name: str, point: StoredPoint, vector: np.ndarray) -> IndexPoint:
        tokens = self._tokens_of(name, point)
        tenant = str(point.payload.get("tenant", ""))
        return IndexPoint(vector, tokens.token_ids, tokens.weights, tenant, self._target)

    def _tokens_of(self, name: str, point: StoredPoint) -> TokenWeights:
        return TokenWeights.from_payload(point.payload, f"point {point.id} of {name}")

    def _stored(self, tenant: str, id_: PointId, tokens: TokenWeights) -> StoredPoint:
        # Strictly growing, so that there is always one oldest point.
        self._last_time_s = max(time.time(), math.nextafter(self._last_time_s, math.inf))
        payload = tokens.to_payload(tenant=tenant, target=self._target, time_s=self._last_time_s)
        return StoredPoint(id_, payload)

    def _name(self, tenant: str) -> str:
        return f"{self._collection}-{_digest(tenant)}" if self._store.embedded else self._collection

    def _names(self) -> list[str]:
        if self._store.embedded:
            return self._store.collections(f"{self._collection}-")
        return [self._collection] if self._store.exists(self._collection) else []

    def _fields(self, tenant: str) -> dict[str, str]:
        return {} if self._store.embedded else {"tenant": tenant, "target": self._target}


def open_token_index(config: SemanticConfig, target_fingerprint: str, dim: int) -> QdrantTokenIndex:
    """Opens the index that `config` describes and makes sure that it answers.

    `functools.partial(open_token_index, config, fingerprint, dim)` pickles and is a
    `TokenIndexFactory`.

    Raises:
        TokenIndexError: the server is not reachable or refuses the key; the folder is in use.
    """
    index = QdrantTokenIndex(config, target_fingerprint, dim)
    try:
        index.count()
    except TokenIndexError:
        index.close()
        raise
    return index


def _stacked(entries: Sequence[Entry]) -> np.ndarray:
    return np.stack([entry.vector for entry in entries])  # [entries, dim]


def _digest(text: str) -> str:
    """Name part that any text maps to, and that no two texts share."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
