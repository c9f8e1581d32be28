"""A load run along its time: speed, and requests under way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.load.results import LoadRequest

MOST_BINS = 60
LEAST_S = 0.5  # shorter bins would show the noise of single cycles


def bin_edges(requests: Sequence[LoadRequest]) -> np.ndarray:
    """Edges of equal bins (bins + 1), seconds, that hold the whole run."""
    end = max(request.finished_s for request in requests)
    bins = max(1, min(MOST_BINS, int(end / LEAST_S)))
    return np.linspace(0.0, end, bins + 1)


def tokens_per_s(requests: Sequence[LoadRequest], edges: np.ndarray) -> np.ndarray:
    """Of complete answers, per bin (bins); an answer's tokens come evenly from its first text to its end."""
    tokens = np.zeros(len(edges) - 1)
    for request in requests:
        if request.failed:
            continue
        begin = request.due_s if request.first_token_s is None else request.first_token_s
        tokens += request.tokens * _shares(begin, request.finished_s, edges)
    return tokens / np.diff(edges)


def under_way(requests: Sequence[LoadRequest], edges: np.ndarray) -> np.ndarray:
    """Mean requests under way, per bin (bins), from when they were due."""
    busy = np.zeros(len(edges) - 1)
    for request in requests:
        length = request.finished_s - request.due_s
        busy += length * _shares(request.due_s, request.finished_s, edges)
    return busy / np.diff(edges)


def _shares(begin: float, end: float, edges: np.ndarray) -> np.ndarray:
    """Share of a stretch of time that lies in each bin (bins); all of it in one when it has no length."""
    if end <= begin:
        place = np.searchsorted(edges, end, side="right") - 1
        shares = np.zeros(len(edges) - 1)
        shares[min(max(int(place), 0), len(shares) - 1)] = 1.0
        return shares
    inside = np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1])
    return np.maximum(inside, 0.0) / (end - begin)
