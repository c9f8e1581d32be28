"""What each replica recently served, in a few kilobytes, and which one suits a prompt.

Nothing is asked of the replicas: it is remembered from the routing itself. What a replica has active (its
vocabulary, the beginnings of prompts it need not process again) follows from what it was sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

CELLS = 4096  # of a sketch: token ids are hashed into as many
LATEST = 1024  # prompt tokens looked at, the latest: what is asked stands at the end
BLOCK = 32  # tokens by which beginnings of prompts are compared
MOST_BLOCKS = 4096  # remembered per replica
HALF_LIFE = 64  # requests after which what a replica served counts half
MARGIN = 0.05  # of the score, below which replicas suit a prompt alike
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio: Fibonacci hashing
_SHIFT = np.uint64(52)  # leaves 12 bits, for 4096 cells


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is compared of a prompt.

    Attributes:
        cells: of its distinct tokens, ascending (n).
        blocks: hash of each whole number of blocks that it begins with.
        length: in tokens.
    """

    cells: np.ndarray
    blocks: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, token_ids: Sequence[int]) -> Prompt:
        latest = np.asarray(token_ids[-LATEST:], dtype=np.uint64)
        cells = np.unique((latest * _MIX) >> _SHIFT).astype(np.int64)
        return cls(cells, tuple(_beginnings(token_ids)), len(token_ids))


def _beginnings(token_ids: Sequence[int]) -> Iterable[int]:
    known = 0
    for end in range(BLOCK, min(len(token_ids), BLOCK * MOST_BLOCKS // 4) + 1, BLOCK):
        known = hash((known, tuple(token_ids[end - BLOCK : end])))
        yield known


@dataclass(slots=True)
class _Served:
    """One replica: the decayed mean of its prompts' vectors (cells), and the beginnings it has seen."""

    sketch: np.ndarray = field(default_factory=lambda: np.zeros(CELLS, dtype=np.float32))
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def add(self, vector: np.ndarray, blocks: Iterable[int], keep: float) -> None:
        self.sketch *= keep
        self.sketch += (1.0 - keep) * vector
        for block in blocks:
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > MOST_BLOCKS:
            self.blocks.popitem(last=False)

    def known_blocks(self, blocks: Sequence[int]) -> int:
        for count, block in enumerate(blocks):
            if block not in self.blocks:
                return count
        return len(blocks)


class Affinity:
    """Scores replicas by name for a prompt.

    A prompt is a unit vector over hashed tokens, each weighted by how rare it is among recent prompts. What
    all prompts have in common is taken off, so that a replica that served something else scores below one
    that served nothing: topics spread over replicas by themselves. To the cosine is added the share of the
    prompt that the replica need not process again.
    """

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        self._keep = 0.5 ** (1.0 / half_life)
        self._served: dict[str, _Served] = {}
        self._prompts = 0.0  # seen, decayed
        self._frequency = np.zeros(CELLS, dtype=np.float32)  # prompts that have a cell, decayed
        self._mean = np.zeros(CELLS, dtype=np.float32)

    def record(self, replica: str, prompt: Prompt) -> None:
        """A prompt was given to a replica."""
        self._prompts = self._prompts * self._keep + 1.0
        self._frequency *= self._keep
        self._frequency[prompt.cells] += 1.0
        vector = self._vector(prompt)
        self._mean *= self._keep
        self._mean += (1.0 - self._keep) * vector
        self._served.setdefault(replica, _Served()).add(vector, prompt.blocks, self._keep)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forgets replicas that are gone."""
        alive = set(replicas)
        self._served = {name: served for name, served in self._served.items() if name in alive}

    def scores(self, prompt: Prompt, replicas: Iterable[str]) -> dict[str, float]:
        """-1 .. 2, the higher the better; 0 for a replica that served nothing."""
        centred = self._vector(prompt) - self._normed(self._mean)
        return {name: self._score(name, prompt, centred) for name in replicas}

    def _score(self, name: str, prompt: Prompt, centred: np.ndarray) -> float:
        served = self._served.get(name)
        if served is None:
            return 0.0
        known = served.known_blocks(prompt.blocks) * BLOCK / max(prompt.length, 1)
        return _cosine(centred, self._normed(served.sketch) - self._normed(self._mean)) + known

    def _vector(self, prompt: Prompt) -> np.ndarray:
        vector = np.zeros(CELLS, dtype=np.float32)
        rarity = np.log1p(self._prompts / (1.0 + self._frequency[prompt.cells]))
        vector[prompt.cells] = rarity
        return self._normed(vector)

    @staticmethod
    def _normed(vector: np.ndarray) -> np.ndarray:
        length = float(np.linalg.norm(vector))
        return vector / length if length > 0 else vector


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths > 1e-9 else 0.0


def suited(scores: Mapping[str, float], loads: Mapping[str, int], slack: int) -> str | None:
    """The replica that suits best among those not too busy; None when several suit alike.

    Args:
        loads: requests under way per replica.
        slack: requests that a replica may have more than the least busy one.
    """
    if not scores:
        return None
    bound = min(loads[name] for name in scores) + slack
    free = sorted((name for name in scores if loads[name] <= bound), key=lambda name: -scores[name])
    if len(free) > 1 and scores[free[0]] - scores[free[1]] < MARGIN:
        return None
    return free[0]
