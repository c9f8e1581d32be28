"""Log-probabilities of emitted tokens, for requests that want to see them.

They are the target's own, before temperature and truncation, as in OpenAI's API and vLLM. The pass that
decides a token has its logits already: in a batch where somebody wants them, the cycle's report has
some columns more. Other batches' cycles are what they always were, to the last kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evospec.decoding.best import BestTokens
from evospec.decoding.verify import Verdict

MOST_ALTERNATIVES = 20  # OpenAI's bound; one number for all, so that cycles come in two kinds only


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's log-probability, and the best tokens of its place, best first, with theirs."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """The columns of a report that hold them: of each place the token's log-probability, then ids and
    log-probabilities of the best tokens.

    Attributes:
        places: tokens that a row emits at most.
        alternatives: best tokens of each place; at most the vocabulary.
    """

    places: int
    alternatives: int

    @property
    def count(self) -> int:
        return self.places * (1 + 2 * self.alternatives)

    def pack(self, logits: Tensor, verdict: Verdict, best: BestTokens) -> list[Tensor]:
        """Parts of a report, int64 [rows, any number] each.

        Args:
            logits: of all places of the pass [rows, nodes + 1, vocab].
            best: of the places that decided the tokens, as many as there are alternatives, and totals.
        """
        if best.totals is None:
            raise ValueError("log-probabilities need the totals of the scores")
        rows = torch.arange(len(logits), device=logits.device)[:, None]
        width = verdict.tokens.shape[1]
        places = torch.arange(width, device=logits.device) if verdict.places is None else verdict.places
        own = logits[rows, places, verdict.tokens].float() - best.totals  # [rows, places]
        others = best.scores[..., : self.alternatives] - best.totals[..., None]
        ids = best.ids[..., : self.alternatives]
        return [_bits(own), ids.flatten(1), _bits(others).flatten(1)]

    def read(self, numbers: np.ndarray, tokens: list[int], alternatives: int) -> tuple[TokenScore, ...]:
        """Of a row's emitted tokens.

        Args:
            numbers: the row's part of a report, int64 [count].
            alternatives: so many of the best tokens are wanted.
        """
        ids_start, others_start = self.places, self.places * (1 + self.alternatives)
        own = numbers[:ids_start].view(np.float64)
        ids = numbers[ids_start:others_start].reshape(self.places, self.alternatives)
        others = numbers[others_start:].view(np.float64).reshape(self.places, self.alternatives)
        return tuple(
            TokenScore(
                token,
                float(own[place]),
                tuple(
                    zip(
                        ids[place, :alternatives].tolist(), others[place, :alternatives].tolist(), strict=True
                    )
                ),
            )
            for place, token in enumerate(tokens)
        )


def _bits(numbers: Tensor) -> Tensor:
    return numbers.double().view(torch.int64)
