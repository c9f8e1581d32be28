"""Points in Qdrant: the few operations that the token index needs, on a server or in process.

Every error of the client becomes a TokenIndexError of one line.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from qdrant_client import models

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.qdrant_connection import REQUEST_TIMEOUT_S, address_of, connect
from services.qdrant_errors import CLIENT_ERRORS, REFUSALS, explain

PointId = int | str


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """A point as found: `similarity` is the dot product with the query, `time_s` when it was last written."""

    id: PointId
    payload: dict[str, object]
    similarity: float = 0.0

    @property
    def time_s(self) -> float:
        time_s = self.payload.get("time")
        return float(time_s) if isinstance(time_s, int | float) else 0.0


class QdrantStore:
    """The Qdrant that a config names: a server, or one embedded in this process.

    Safe for threads. The embedded client is not, so its calls take turns.
    """

    def __init__(self, config: SemanticConfig) -> None:
        """Opens the embedded index; a server is first met by the first call.

        Raises:
            TokenIndexError: the URL or the certificates can't be read; the folder is in use by
                another process, can't be written, or can be written by everyone.
        """
        self.embedded = config.url is None
        self._turns: AbstractContextManager[object] = threading.Lock() if self.embedded else nullcontext()
        self._known: set[str] = set()
        self.address = address_of(config)
        with self._errors("open the token index"):
            self._client = connect(config)

    def collections(self, prefix: str) -> list[str]:
        with self._errors("list the collections"):
            found = self._client.get_collections().collections
            return sorted(item.name for item in found if item.name.startswith(prefix))

    def exists(self, name: str) -> bool:
        if name not in self._known:
            with self._errors(f"look for collection {name}"):
                return self._client.collection_exists(name)
        return True

    def ensure(self, name: str, dim: int) -> None:
        """Creates the collection where there is none.

        Raises:
            TokenIndexError: it exists with another dimension or distance.
        """
        if name in self._known:
            return
        with self._errors(f"prepare collection {name}"):
            if not self._client.collection_exists(name):
                self._create(name, dim)
            vectors = self._client.get_collection(name).config.params.vectors
        if (
            not isinstance(vectors, models.VectorParams)
            or vectors.size != dim
            or vectors.distance != models.Distance.DOT
        ):
            raise TokenIndexError(
                f"collection {name} in {self.address} does not hold vectors of size {dim} compared by "
                "dot product: delete it, or set another semantic.collection"
            )
        self._known.add(name)

    def nearest(
        self,
        name: str,
        vectors: np.ndarray,
        *,
        limit: int,
        fields: dict[str, str],
        above: float | None = None,
        timeout_s: int = REQUEST_TIMEOUT_S,
    ) -> list[list[StoredPoint]]:
        """Points most similar to each row of `vectors` [queries, dim], best first, in one request.

        Args:
            fields: payload values that a point must have; empty scans without a filter.
            above: dot product that a point must reach.
        """
        conditions: list[models.Condition] = [
            models.FieldCondition(key=key, match=models.MatchValue(value=value))
            for key, value in fields.items()
        ]
        requests = [
            models.QueryRequest(
                query=vector,
                filter=models.Filter(must=conditions) if conditions else None,
                limit=limit,
                with_payload=True,
                score_threshold=above,
            )
            for vector in vectors.tolist()
        ]
        with self._errors("search the token index", name):
            answers = self._client.query_batch_points(name, requests=requests, timeout=timeout_s)
            return [
                [StoredPoint(_id(hit.id), hit.payload or {}, hit.score) for hit in answer.points]
                for answer in answers
            ]

    def insert(self, name: str, vectors: np.ndarray, points: Sequence[StoredPoint]) -> None:
        """Adds `points` at the rows of `vectors`; a point of the same id is replaced."""
        structs = [
            models.PointStruct(id=point.id, vector=vector, payload=point.payload)
            for vector, point in zip(vectors.tolist(), points, strict=True)
        ]
        with self._errors("write to the token index", name):
            self._client.upsert(name, points=structs, wait=True)

    def overwrite(self, name: str, points: Sequence[StoredPoint]) -> None:
        """Replaces the payloads of points that exist, in one request."""
        operations: list[models.UpdateOperation] = [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload=point.payload, points=[point.id])
            )
            for point in points
        ]
        with self._errors("update points of the token index", name):
            self._client.batch_update_points(name, update_operations=operations, wait=True)

    def count(self, name: str) -> int:
        with self._errors("count the points of the token index", name):
            return self._client.count(name, exact=True).count

    def oldest(self, name: str, limit: int) -> list[StoredPoint]:
        with self._errors("find the oldest points of the token index", name):
            records, _ = self._client.scroll(name, limit=limit, order_by="time", with_payload=["time"])
            return [StoredPoint(_id(record.id), record.payload or {}) for record in records]

    def newest(self, name: str, limit: int) -> list[tuple[StoredPoint, np.ndarray]]:
        """Points written last and their vectors [dim], newest first."""
        order = models.OrderBy(key="time", direction=models.Direction.DESC)
        with self._errors("find the newest points of the token index", name):
            records, _ = self._client.scroll(
                name, limit=limit, order_by=order, with_payload=True, with_vectors=True
            )
            return [
                (StoredPoint(_id(record.id), record.payload or {}), np.asarray(record.vector, np.float32))
                for record in records
            ]

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        with self._errors("remove old points from the token index", name):
            self._client.delete(name, points_selector=models.PointIdsList(points=list(ids)), wait=True)

    def drop(self, name: str) -> None:
        self._known.discard(name)
        with self._errors(f"drop collection {name}"):
            self._client.delete_collection(name)

    def close(self) -> None:
        with self._errors("close the token index"):
            self._client.close()

    def _create(self, name: str, dim: int) -> None:
        config = models.VectorParams(size=dim, distance=models.Distance.DOT)
        try:
            self._client.create_collection(name, vectors_config=config)
        except REFUSALS:
            if not self._client.collection_exists(name):
                raise  # otherwise another process was faster
        if self.embedded:
            return  # has no payload indexes
        tenant = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
        self._client.create_payload_index(name, "tenant", tenant)
        self._client.create_payload_index(name, "target", models.PayloadSchemaType.KEYWORD)
        self._client.create_payload_index(name, "time", models.PayloadSchemaType.FLOAT)

    @contextmanager
    def _errors(self, action: str, collection: str | None = None) -> Iterator[None]:
        """Runs client calls one at a time where they must be, and translates their errors."""
        with self._turns:
            try:
                yield
            except CLIENT_ERRORS as error:
                if collection is not None:
                    self._known.discard(collection)  # it may be gone: look again next time
                raise TokenIndexError(f"cannot {action}: {self.address} {explain(error)}") from error


def _id(raw: object) -> PointId:
    return raw if isinstance(raw, int) else str(raw)
