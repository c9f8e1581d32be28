"""The verification source: what the target ranked high, at the prompt's end and wherever it decided."""

from __future__ import annotations

import numpy as np

from evospec.vocab.proposals import NOTHING, Proposals

_SCORE = 0.5  # of the best token at a position; each rank below has half of the one above


class VerificationSource:
    """The target's best tokens; what it emitted is the context's.

    Args:
        top_k: best tokens per position.
        prompt_ranked: latest prompt positions that count.
    """

    def __init__(self, top_k: int, prompt_ranked: int) -> None:
        self.top_k = top_k
        self.prompt_ranked = prompt_ranked
        self._scores = _SCORE * 0.5 ** np.arange(top_k)
        self._best: list[np.ndarray] = []  # [positions, k] each

    def ranked(self, top_ids: np.ndarray) -> None:
        self._best.append(top_ids)

    def propose(self) -> Proposals:
        if not self._best:
            return NOTHING
        # Prompts and cycles report as many tokens per position: one table holds them all.
        best = np.concatenate(self._best)[:, : self.top_k]
        self._best.clear()
        return Proposals(best.ravel(), np.tile(self._scores[: best.shape[1]], len(best)))
