"""What a source wants to be active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Origin(IntEnum):
    """Why a token is active."""

    CORE = 0
    FREQUENT = 1
    CONTEXT = 2
    VERIFICATION = 3
    STATISTICAL = 4
    SEMANTIC = 5
    DRAFT = 6


@dataclass(frozen=True, slots=True, eq=False)
class Proposals:
    """Token ids and how much each is wanted.

    Attributes:
        token_ids: not always distinct, int64 [n].
        scores: float64 [n].
    """

    token_ids: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def of(cls, token_ids: Iterable[int], scores: np.ndarray | float) -> Proposals:
        ids = np.fromiter(token_ids, dtype=np.int64)
        return cls(ids, np.broadcast_to(np.asarray(scores, dtype=np.float64), ids.shape))

    @classmethod
    def joined(cls, parts: list[Proposals]) -> Proposals:
        return cls(
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Token ids, each with a score and the `Origin` that gave it [n]."""

    token_ids: np.ndarray
    scores: np.ndarray
    origins: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def of(cls, proposals: Mapping[Origin, Proposals]) -> Ranking:
        """All that is proposed, in order of origins; tokens may come more than once."""
        return cls(
            np.concatenate([each.token_ids for each in proposals.values()]),
            np.concatenate([each.scores for each in proposals.values()]),
            np.repeat(np.fromiter(proposals, dtype=np.int8), [len(each) for each in proposals.values()]),
        )

    def at(self, places: np.ndarray) -> Ranking:
        return Ranking(self.token_ids[places], self.scores[places], self.origins[places])

    def best(self) -> Ranking:
        """Each token once, at its best score, best first; at equal ones the first origin counts."""
        falling = np.argsort(-self.scores, kind="stable")
        _, first = np.unique(self.token_ids[falling], return_index=True)
        return self.at(falling[np.sort(first)])


NOTHING = Proposals.of((), 0.0)
