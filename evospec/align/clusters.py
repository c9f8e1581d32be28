"""Kinds of traffic, found as it comes: traces carry no domain labels."""

from __future__ import annotations

import numpy as np

from evospec.align.trace import Trace

_WARM_UP = 8  # traces before features are told apart: until then their spread is not known
_SAME = 0.3  # cosine from which a trace is of a cluster's kind
_RATE = 0.05  # of a cluster's centre towards a new trace


class OnlineClusters:
    """Puts each trace to the nearest cluster, or opens one for it while there are fewer than `most`.

    A trace is described by the mean of its features, each relative to what clusters have in common and by
    the deviation of all traces so far: raw features all point much the same way. All constants are ours.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self._mean = np.zeros(0)
        self._spread = np.zeros(0)  # sum of squared deviations (Welford)
        self._centres: list[np.ndarray] = []

    @property
    def count(self) -> int:
        return max(1, len(self._centres))

    def assign(self, trace: Trace) -> int:
        """The trace's cluster, from 0, which may be a new one."""
        if self._most == 1:
            return 0
        vector = trace.float_features().mean(axis=0, dtype=np.float64)  # [taps * hidden]
        self._learn(vector)
        if not self._centres:
            self._centres.append(vector)
        if self._seen <= _WARM_UP:
            return 0
        cosines = self._unit(np.stack(self._centres)) @ self._unit(vector)
        nearest = int(cosines.argmax())
        if cosines[nearest] < _SAME and len(self._centres) < self._most:
            self._centres.append(vector)
            return len(self._centres) - 1
        self._centres[nearest] = self._centres[nearest] + _RATE * (vector - self._centres[nearest])
        return nearest

    def _learn(self, vector: np.ndarray) -> None:
        if not self._seen:
            self._mean, self._spread = np.zeros_like(vector), np.zeros_like(vector)
        self._seen += 1
        change = vector - self._mean
        self._mean = self._mean + change / self._seen
        self._spread = self._spread + change * (vector - self._mean)

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        """[..., taps * hidden], standardised and of length 1."""
        deviation = np.sqrt(self._spread / self._seen)
        # Of clusters, not of traces: where one kind prevails, it would be the mean, and its traces noise.
        common = np.mean(self._centres, axis=0) if len(self._centres) > 1 else self._mean
        shown = (vectors - common) / np.maximum(deviation, 1e-12)
        unit: np.ndarray = shown / np.maximum(np.linalg.norm(shown, axis=-1, keepdims=True), 1e-12)
        return unit
