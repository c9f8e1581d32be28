"""A map of recent traffic: the token index's latest contexts, flattened to the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evospec.align.context_points import ContextPoints
from evospec.align.grouping import group
from evospec.wire import IndexPoint

MOST_TOPICS = 6
FEWEST_POINTS = 3  # fewer span no plane
_WORDS = 3  # that a topic is labelled with
_LETTERS = 3  # of a token that says something to people

Decode = Callable[[int], str]
Json = dict[str, Any]


@dataclass(slots=True)
class TopicMap:
    """Projects points onto the two directions in which they differ most.

    Later maps are turned to lie like the earlier one, so that the picture drifts rather than jumps.

    Args:
        decode: a token id's text.
    """

    decode: Decode
    _axes: np.ndarray | None = field(default=None)  # [dim, 2]

    def draw(self, points: Sequence[IndexPoint]) -> Json:
        """Points (x and y in -1 .. 1, topic, age from 0, the newest, to 1) and topics, largest first.

        Topics are groups of contexts that a gap sets apart (`evospec.align.grouping`); their words are the
        tokens that they use more than the others do.

        Args:
            points: newest first.
        """
        if len(points) < FEWEST_POINTS:
            return {"points": [], "topics": [], "count": len(points)}
        vectors = np.stack([point.vector for point in points]).astype(np.float64)
        places = self._project(vectors)
        groups = sorted(_groups(vectors), key=len, reverse=True)
        topic_of = {index: topic for topic, members in enumerate(groups) for index in members}
        oldest = max(len(points) - 1, 1)
        return {
            "points": [
                {
                    "x": round(x, 4),
                    "y": round(y, 4),
                    "topic": topic_of[index],
                    "age": round(index / oldest, 3),
                }
                for index, (x, y) in enumerate(places.tolist())
            ],
            "topics": [
                {"words": words, "size": len(members)}
                for words, members in zip(self._labels(points, groups), groups, strict=True)
            ],
            "count": len(points),
        }

    def _project(self, vectors: np.ndarray) -> np.ndarray:
        """[points, dim] to [points, 2]."""
        centred = vectors - vectors.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2].T
        if self._axes is not None and self._axes.shape == axes.shape:
            # Orthogonal Procrustes (Schönemann 1966): the turn that brings these axes closest to those.
            left, _, right = np.linalg.svd(axes.T @ self._axes)
            axes = axes @ left @ right
        self._axes = axes
        flat = centred @ axes
        # Half of the distance is kept by rank alone: a few outliers would push the others together.
        reach = float(np.abs(flat).max())
        shown: np.ndarray = np.sign(flat) * np.sqrt(np.abs(flat) / reach) if reach > 0 else flat
        return shown

    def _labels(self, points: Sequence[IndexPoint], groups: Sequence[Sequence[int]]) -> list[list[str]]:
        """The words of each group that set it apart."""
        shares = [_shares([points[index] for index in members]) for members in groups]
        everywhere: dict[int, float] = {}
        for share in shares:
            for token, weight in share.items():
                everywhere[token] = everywhere.get(token, 0.0) + weight
        return [self._words(share, everywhere) for share in shares]

    def _words(self, share: dict[int, float], everywhere: dict[int, float]) -> list[str]:
        ranked = sorted(share, key=lambda token: (-(share[token] ** 2) / everywhere[token], token))
        words: list[str] = []
        for token in ranked:
            word = self.decode(token).strip()
            if len(word) >= _LETTERS and word.isalpha() and word.lower() not in map(str.lower, words):
                words.append(word)
            if len(words) == _WORDS:
                break
        return words


def _groups(vectors: np.ndarray) -> list[list[int]]:
    contexts = ContextPoints(len(vectors))
    contexts.means = vectors
    contexts.weights = np.ones(len(vectors))
    contexts.places = np.full(len(vectors), -1, dtype=np.int64)
    return [list(members) for members in group(contexts, (), MOST_TOPICS)]


def _shares(points: Sequence[IndexPoint]) -> dict[int, float]:
    """How much of a group's weight each token has; in how many of its points counts more than how often."""
    summed: dict[int, float] = {}
    for point in points:
        largest = max(point.weights, default=1.0)
        for token, weight in zip(point.token_ids, point.weights, strict=True):
            summed[token] = summed.get(token, 0.0) + math.sqrt(weight / largest)
    return {token: weight / len(points) for token, weight in summed.items()}
