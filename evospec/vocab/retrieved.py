"""The semantic source's last step: what an index found for the contexts at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evospec.vocab.proposals import NOTHING, Proposals

_SCORE = 0.4  # of the heaviest token of a look-up; the others in proportion


class RetrievedSource:
    """Long-tail tokens that similar contexts used."""

    def __init__(self) -> None:
        self._found: list[Proposals] = []

    def retrieved(self, token_ids: Sequence[int], weights: Sequence[float]) -> None:
        if len(token_ids):
            shares = np.asarray(weights, dtype=np.float64) / max(weights)
            self._found.append(Proposals.of(token_ids, _SCORE * shares))

    def propose(self) -> Proposals:
        if not self._found:
            return NOTHING
        found, self._found = self._found, []
        return Proposals.joined(found)
