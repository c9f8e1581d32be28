"""What a point of the semantic index carries: long-tail token ids and their weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evospec.errors import TokenIndexError
from evospec.wire import IndexPoint, TokenHits

# A merged point is a running mean of its last merges: recent requests keep a say.
MERGE_MEMORY = 8


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Token ids of one point, heaviest first.

    Attributes:
        weights: one positive weight for each of `token_ids`.
        merges: how many requests the weights are the mean of.
    """

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    merges: int = 1

    @classmethod
    def of(cls, point: IndexPoint, limit: int) -> TokenWeights:
        """The `limit` heaviest tokens of `point`.

        Raises:
            TokenIndexError: ids and weights differ in number, an id is negative, or a
                weight is not positive.
        """
        if len(point.token_ids) != len(point.weights):
            raise TokenIndexError(
                f"an index point has {len(point.token_ids)} token ids but {len(point.weights)} weights"
            )
        total = _summed(zip(point.token_ids, point.weights, strict=True))
        if not all(token >= 0 and 0.0 < weight < math.inf for token, weight in total.items()):
            raise TokenIndexError("an index point has a negative token id, or a weight that is not positive")
        return _heaviest(total, limit=limit, merges=1)

    @classmethod
    def from_payload(cls, payload: object, where: str) -> TokenWeights:
        """Reads what `to_payload` wrote.

        Raises:
            TokenIndexError: the payload of the point `where` is something else.
        """
        fields = payload if isinstance(payload, dict) else {}
        ids, weights, merges = fields.get("token_ids"), fields.get("weights"), fields.get("merges")
        try:
            if isinstance(ids, str) and isinstance(weights, str) and isinstance(merges, int):
                read = cls(tuple(map(int, ids.split())), tuple(map(float, weights.split())), merges)
                if len(read.token_ids) == len(read.weights):
                    return read
        except ValueError:
            pass  # not numbers: said below
        raise TokenIndexError(f"{where} does not hold token ids and weights: delete it from the collection")

    def to_payload(self, *, tenant: str, target: str, time_s: float) -> dict[str, object]:
        """Numbers as text: the embedded index copies each payload it finds, a list element by element."""
        return {
            "token_ids": " ".join(map(str, self.token_ids)),
            "weights": " ".join(f"{weight:.6g}" for weight in self.weights),
            "merges": self.merges,
            "tenant": tenant,
            "target": target,
            "time": time_s,
        }

    def merged(self, newer: TokenWeights, limit: int) -> TokenWeights:
        """Running mean of both; a token that one of them lacks counts there as 0.

        w = (n * w_self + w_newer) / (n + 1), with n = min(merges, MERGE_MEMORY).
        """
        share = min(self.merges, MERGE_MEMORY)
        total = {token: share * weight for token, weight in zip(self.token_ids, self.weights, strict=True)}
        for token, weight in zip(newer.token_ids, newer.weights, strict=True):
            total[token] = total.get(token, 0.0) + weight
        mean = {token: weight / (share + 1) for token, weight in total.items()}
        return _heaviest(mean, limit=limit, merges=self.merges + newer.merges)


def hits_of(neighbours: Iterable[Neighbour], limit: int) -> TokenHits:
    """The `limit` heaviest tokens for a query: weights summed over its neighbours, scaled by similarity."""
    total = _summed(
        (token, max(neighbour.similarity, 0.0) * weight)
        for neighbour in neighbours
        for token, weight in zip(neighbour.tokens.token_ids, neighbour.tokens.weights, strict=True)
    )
    best = _heaviest({token: weight for token, weight in total.items() if weight > 0.0}, limit, 1)
    return TokenHits(best.token_ids, best.weights)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored point near a query; `similarity` is their cosine."""

    similarity: float
    tokens: TokenWeights


def _summed(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
    total: dict[int, float] = defaultdict(float)
    for token, weight in pairs:
        total[token] += weight
    return total


def _heaviest(total: Mapping[int, float], limit: int, merges: int) -> TokenWeights:
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return TokenWeights(tuple(token for token, _ in ranked), tuple(weight for _, weight in ranked), merges)
