"""Vectors and points for the tests of the token index."""

from __future__ import annotations

import numpy as np

from evospec.wire import IndexPoint

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
