"""Vectors and points for the tests of the token index."""

from __future__ import annotations

import numpy as np
import pytest

from evospec.errors import TokenIndexError
from evospec.wire import IndexPoint
from services.token_index import QdrantTokenIndex

DIM = 8
TARGET = "sha256:target-a"


def axis(number: int, towards: int | None = None, cosine: float = 1.0) -> np.ndarray:
    """Unit vector [DIM] along one axis, or at `cosine` to it in the plane of another one."""
    vector = np.zeros(DIM, dtype=np.float32)
    vector[number] = cosine
    if towards is not None:
        vector[towards] = np.sqrt(1.0 - cosine**2)
    return vector


def point(
    vector: np.ndarray, tokens: dict[int, float], tenant: str = "a", target: str = TARGET
) -> IndexPoint:
    return IndexPoint(vector, tuple(tokens), tuple(tokens.values()), tenant, target)


def random_points(count: int, tenant: str = "a", seed: int = 0) -> list[IndexPoint]:
    rows = np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [point(row, {number: 1.0}, tenant) for number, row in enumerate(rows)]


def assert_calls_fail(index: QdrantTokenIndex, message: str, place: str) -> None:
    """Every call raises one line that matches `message` and names the place."""
    for call in (
        lambda: index.search(axis(0)[None], "a", 8),
        lambda: index.write([point(axis(1), {2: 1.0})]),
        index.count,
    ):
        with pytest.raises(TokenIndexError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert place in str(caught.value)
